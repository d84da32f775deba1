r"""The grammar of templates: `a (good|bad|) photo of (a|the) {}.` is six prompts.

- `(x|y)` is x or y; either may be empty, and may hold further brackets;
- `{}` is where the class name goes, once in every prompt;
- `\(`, `\)`, `\|`, `\{`, `\}` and `\\` are the characters themselves.
"""

import re
from dataclasses import dataclass, field

from workbench.errors import UserError

# A bracket too many multiplies; nobody ensembles this many prompts.
MOST_PROMPTS = 10_000
MOST_CHARACTERS = 1_000

_TOKEN = re.compile(r"\\(?P<escaped>[\\(){}|])|(?P<text>[^\\(){}|]+)|(?P<name>\{\})|(?P<mark>[(|)])|(?P<stray>.)")
_NAME = "\0"  # stands for {} until the end, where braces that were escaped may have met


@dataclass
class _Group:
    """A bracket that is open: where it began, its alternatives so far, and the one that is being read."""

    start: int
    alternatives: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=lambda: [""])
    bars: int = 0


def expand(template: str) -> list[str]:
    """Return the prompts that a template stands for, each with one `{}`; the leftmost bracket varies slowest.

    Raises:
        UserError: it cannot be read, has no `{}` or several, or stands for too many prompts.
    """
    if len(template) > MOST_CHARACTERS:
        raise UserError(f"A template has at most {MOST_CHARACTERS} characters; {_short(template)} has {len(template)}.")
    groups = [_Group(0)]
    for token in _TOKEN.finditer(template):
        here = groups[-1]
        kind, text = token.lastgroup, token[token.lastgroup]
        if kind == "stray":
            raise _unreadable(template, token.start(), f"a lone {text}; write \\{text} for the character itself")
        if kind != "mark":
            here.current = _product(here.current, [_NAME if kind == "name" else text], template)
        elif text == "(":
            groups.append(_Group(token.start()))
        elif len(groups) == 1:
            raise _unreadable(
                template, token.start(), f"a {text} that no ( comes before; write \\{text} for the character itself"
            )
        elif text == "|":
            here.alternatives += here.current
            here.current = [""]
            here.bars += 1
        elif not here.bars:
            # Not taken as a group of one: whoever writes `{} (a bird)` means the brackets.
            raise _unreadable(
                template, here.start, r"brackets without |; write \( and \) for the characters themselves"
            )
        else:
            groups.pop()
            groups[-1].current = _product(groups[-1].current, here.alternatives + here.current, template)
    if len(groups) > 1:
        raise _unreadable(template, groups[-1].start, r"a ( that is not closed; write \( for the character itself")
    return [_named(prompt, template) for prompt in groups[0].current]


def _named(prompt: str, template: str) -> str:
    count, result = prompt.count(_NAME), prompt.replace(_NAME, "{}")
    if count != 1:
        becomes = f", which becomes {_short(result)}," if "|" in template else ""
        raise UserError(
            f"The template {_short(template)}{becomes} has {count or 'no'} {{}}; it needs one, for the class name."
        )
    if result.count("{}") != 1:
        raise UserError(
            f"The template {_short(template)} has \\{{\\}} beside {{}}, which would be taken for the class name, too; "
            "leave it out."
        )
    return result


def _product(heads: list[str], tails: list[str], template: str) -> list[str]:
    if len(heads) * len(tails) > MOST_PROMPTS:
        raise UserError(
            f"The template {_short(template)} stands for more than {MOST_PROMPTS} prompts; leave alternatives out."
        )
    return [head + tail for head in heads for tail in tails]


def _unreadable(template: str, position: int, what: str) -> UserError:
    return UserError(f"The template {_short(template)} has at character {position + 1} {what}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
