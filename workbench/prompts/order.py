"""Whether a dataset's classes are those of a prompt file, in the same order.

A classifier is built from one list and scored with labels that come from the other. Where the orders differ it still
runs, and reports an accuracy near chance.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from workbench.errors import UserError

_SHOWN = 3
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_ARTICLES = {"a", "an", "the"}


def check_class_order(
    found: Sequence[str], expected: Sequence[str], what: str, where: str, aliases: Mapping[str, str] | None = None
) -> None:
    """Compare a dataset's own class names with those of prompts, index by index.

    Names are the same that differ in case, punctuation, accents, articles or words in brackets, as long as that
    leaves no two names of a list alike; and those that `aliases` says are.

    Args:
        found: the dataset's names, by label.
        expected: the prompts' names, by label.
        what: the dataset, for the message.
        where: the file of the prompts, for the message.
        aliases: the dataset's spelling -> the prompts' name.

    Raises:
        UserError: they differ; the message says whether in order or in names.
    """
    placed = positions(found, expected, aliases)
    if placed == list(range(len(expected))):
        return
    unknown = [index for index, place in enumerate(placed) if place is None]
    moved = [index for index, place in enumerate(placed) if place not in (None, index)]
    if len(found) != len(expected):
        reached = set(placed)
        missing = [name for index, name in enumerate(expected) if index not in reached]
        both = [index for index in sorted(unknown + moved) if index < len(expected)]
        raise UserError(
            f"{what} has {len(found)} classes and {where} has {len(expected)}"
            f"{_only(what, [found[index] for index in unknown])}{_only(where, missing)}, so that labels would be taken "
            f"for other classes{f': {_side_by_side(both, found, expected)}' if both else ''}. Give prompts for the "
            "classes of the dataset, in its order."
        )
    if not unknown:
        raise UserError(
            f"{what} has the classes of {where} in another order, so that labels would be taken for other classes: "
            f"{_side_by_side(moved, found, expected)}. Put the class names into the order of the dataset, for which "
            "workbench.prompts.order.positions gives the indices."
        )
    raise UserError(
        f"{what} and {where} have different classes: {_side_by_side(unknown, found, expected)}"
        f"{'; and others are in another order' if moved else ''}. Two spellings of one class go "
        "under `aliases` in the file of the prompts; otherwise give the prompts of this dataset."
    )


def positions(
    found: Sequence[str], expected: Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[int | None]:
    """Return for each of a dataset's names the index of that class in the prompts' list, None where there is none.

    `[names[index] for index in positions(...)]` puts the prompts' names into the dataset's order. Arguments are those
    of `check_class_order`. No index is given twice.
    """
    meant = _meant(found, expected, aliases or {})
    free: dict[str, list[int]] = {}
    placed: list[int | None] = [None] * len(found)
    for index, name in enumerate(expected):
        # A name that is there twice stays where both lists have it.
        if index < len(found) and meant.get(found[index]) == name:
            placed[index] = index
        else:
            free.setdefault(name, []).append(index)
    for index, name in enumerate(found):
        if placed[index] is None and (left := free.get(meant.get(name, ""))):
            placed[index] = left.pop(0)
    return placed


def _meant(found: Sequence[str], expected: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return dataset's name -> prompts' name, from strict to loose, and loosely only what remains unambiguous."""
    spellings = {**aliases, **{name: name for name in expected}}
    result: dict[str, str] = {}
    for form in (str, _folded, _without_articles, _without_brackets):
        names: dict[str, set[str]] = {}
        for spelling, name in spellings.items():
            names.setdefault(form(spelling), set()).add(name)
        alike: dict[str, set[str]] = {}
        for name in found:
            alike.setdefault(form(name), set()).add(name)
        for key, (first, *others) in alike.items():
            if key and not others and len(names.get(key, ())) == 1:
                result[first] = next(iter(names[key]))
    return result


def _words(name: str) -> list[str]:
    # Accents come apart from their letters, and are no letters themselves.
    return re.split(r"[\W_]+", unicodedata.normalize("NFKD", name).casefold())


def _folded(name: str) -> str:
    # No spaces either: `HammerThrow` is a folder's name for `Hammer Throw`.
    return "".join(_words(name))


def _without_articles(name: str) -> str:
    return "".join(word for word in _words(name) if word not in _ARTICLES)


def _without_brackets(name: str) -> str:
    return _without_articles(_BRACKETS.sub(" ", name))


def _side_by_side(indices: Sequence[int], found: Sequence[str], expected: Sequence[str]) -> str:
    shown = [
        f"label {index} is {found[index]!r} in the data and {expected[index]!r} in the prompts"
        for index in indices[:_SHOWN]
    ]
    return ", ".join(shown) + _more(indices)


def _only(side: str, names: Sequence[str]) -> str:
    return f", only {side} has {', '.join(map(repr, names[:_SHOWN]))}{_more(names)}" if names else ""


def _more(things: Sequence[object]) -> str:
    return f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
