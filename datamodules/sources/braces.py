"""What a name with braces stands for: `{000..010}` numbers, as wide as they are written, `{a,b}` alternatives."""

import itertools
import re

from workbench.errors import UserError

MOST_FILES = 1_000_000
"""Names that a pattern may stand for."""


def expand_braces(text: str) -> list[str]:
    """Return the names that a text with braces stands for, as a shell would; the text itself where it has none.

    Raises:
        UserError: they are more than `MOST_FILES`.
    """
    return _braces(text, text)


def _braces(text: str, whole: str) -> list[str]:
    """Return what a text with braces stands for, as a shell would."""
    alternatives, end = None, -1
    for start in (match.start() for match in re.finditer("{", text)):
        end = _closing(text, start)
        alternatives = _alternatives(text[start + 1 : end], whole) if end > start else None
        if alternatives is not None:
            break
    if alternatives is None:
        return [text]
    rests = _braces(text[end + 1 :], whole)
    if len(alternatives) * len(rests) > MOST_FILES:
        raise UserError(f"{whole} names more than {MOST_FILES:,} files.")
    return [text[:start] + middle + rest for middle in alternatives for rest in rests]


def _closing(text: str, start: int) -> int:
    """Return where the brace that opens at `start` closes, or -1."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position
    return -1


def _alternatives(inside: str, whole: str) -> list[str] | None:
    """Return what one pair of braces stands for; None if they are braces and nothing more."""
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", inside)
    if numbers:
        first, last, step = int(numbers[1]), int(numbers[2]), max(1, int(numbers[3] or 1))
        if abs(last - first) // step >= MOST_FILES:
            raise UserError(f"{whole} names more than {MOST_FILES:,} files.")
        padded = any(len(text) > 1 and text[0] == "0" for text in (numbers[1], numbers[2]))
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        step = step if first <= last else -step
        return [f"{number:0{width}d}" for number in range(first, last + (1 if step > 0 else -1), step)]
    parts, depth, begin = [], 0, 0
    for position, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(inside[begin:position])
            begin = position + 1
    if not parts:
        return None
    return list(itertools.chain.from_iterable(_braces(part, whole) for part in [*parts, inside[begin:]]))
