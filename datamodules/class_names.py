"""What classes are called in prompts, and whether that is in the order of the labels."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench import prompts
from workbench.errors import UserError
from workbench.prompts.order import check_class_order, positions

DEFAULT_TEMPLATES = ["a photo of a {}."]
_SHOWN = 6


@dataclass(frozen=True)
class ClassNames:
    """Names as the user gave them, before they meet the data.

    Attributes:
        names: for each class all its names.
        where: what messages call them.
        aliases: a spelling of the data's -> the first name of its class.
        renames: whether any name may stand for any class, by position: a plain list; prompts name what they are for.
        templates: those that came with the names; None where none did.
    """

    names: list[list[str]]
    where: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    renames: bool = False
    templates: list[str] | None = None

    @property
    def first(self) -> list[str]:
        """The first name of each class."""
        return [first for first, *_ in self.names]

    def places(self, found: Sequence[str]) -> list[int | None]:
        """Return for each of some spellings which class it is, None where it is none.

        Raises:
            UserError: it is the name of two.
        """
        spellings = list(self.aliases)
        if [self.aliases[spelling] for spelling in spellings] == self.first and set(found) <= set(spellings):
            return [spellings.index(name) for name in found]  # WordNet's ids tell classes apart that are called alike
        aliases = {other: first for first, *others in self.names for other in others} | dict(self.aliases)
        placed: list[int | None] = [None] * len(found)
        left = list(range(len(found)))
        while left:  # again, as several spellings may be of one class, and `positions` gives it to one of them
            places = positions([found[index] for index in left], self.first, aliases)
            for index, place in zip(left, places, strict=True):
                placed[index] = place
            if all(place is None for place in places):
                break
            left = [index for index in left if placed[index] is None]
        for name, place in zip(found, placed, strict=True):
            if place is not None and self.first.count(self.first[place]) > 1:
                raise UserError(f"{self.where} has the name {self.first[place]!r} twice, so {name!r} could be either.")
        return placed


def read_class_names(given: str | Sequence[str]) -> ClassNames:
    """Return names from a list, a text file of one a line, a prompt set that comes with the workbench, or a YAML.

    Raises:
        UserError: there is no such file or set, or no name in it.
    """
    if not isinstance(given, str):
        names, where = [name.strip() for name in given], "class_names"
        if not all(names):
            raise UserError(f"class_names has an empty name, number {names.index('')} from 0.")
    elif _is_prompts(given):
        read = prompts.read(given)
        return ClassNames(
            [list(each) for each in read.names], _said(given), read.aliases, templates=list(read.templates)
        )
    else:
        names, where = _lines(given, "class names"), given
    if not names:
        raise UserError(f"There is no class name in {where}.")
    return ClassNames([[name] for name in names], where, renames=True)


def read_templates(given: str | Sequence[str]) -> list[str]:
    """Return prompts from a list, a text file of one a line, a prompt set (`imagenet`, `imagenet:subset7`), or a YAML.

    A text with `{}` in it is a prompt itself.

    Raises:
        UserError: there is no such file or set, no prompt, or one that has not exactly one `{}`.
    """
    if not isinstance(given, str):
        templates = list(given)
    elif "{}" in given:
        templates = [given]
    else:
        name, _, subset = given.partition(":")
        if _is_prompts(name):
            return prompts.templates(name, subset or None)
        templates = _lines(given, "templates")
    if not templates:
        raise UserError("There is no template; give at least one, such as 'a photo of a {}.'.")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"A template needs exactly one {{}} for the class name; {template!r} has not.")
    return templates


def names_of(found: Sequence[str], given: ClassNames | None, what: str) -> list[list[str]]:
    """Return the names of classes that the data has numbered and called in its own way.

    Args:
        found: what the data calls them, by label: folders, or a data set's own list.
        given: what they are called in prompts, by label, which is compared with `found`: names of prompts must be
            the same ones, names of a list may be others, but none that `found` has elsewhere. None takes `found` with
            `_` as a space.
        what: the data, for messages.

    Raises:
        UserError: another number of names, or another order.
    """
    if given is None:
        return [[name.replace("_", " ")] for name in found]
    if not (given.renames or _are_labels(found)):
        check_class_order(found, given.first, what, given.where, given.aliases)
        return given.names
    if len(given.names) != len(found):
        raise UserError(
            f"{given.where} has {len(given.names)} names for the {len(found)} classes of {what} "
            f"({_listed(found)}); give one for each, in that order."
        )
    _require_own_places(found, given, what)
    return given.names


def names_by_match(found: Sequence[str], given: ClassNames, what: str, unused: Sequence[str] = ()) -> list[list[str]]:
    """Return the names that prompts have for the classes of a well-known data set, in its order, which may be another.

    Args:
        found: what the data set calls them, by label.
        given: the prompts for it.
        what: the data set, for messages.
        unused: names of the prompts that the data set has no class for.

    Raises:
        UserError: a class that the prompts do not have, or the other way round.
    """
    placed = positions(found, given.first, given.aliases)
    left = [name for index, name in enumerate(given.first) if index not in placed]
    if None in placed or set(left) - set(unused):
        check_class_order(found, given.first, what, given.where, given.aliases)
    return [given.names[index] for index in placed if index is not None]


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a suggestion for a name that is none of the known: `; did you mean 'cat'?`, or nothing."""
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else "."


def _require_own_places(found: Sequence[str], given: ClassNames, what: str) -> None:
    """Refuse names that go by position where some of them are those of classes at other positions."""
    placed = positions(found, given.first)
    wrong = [label for label, place in enumerate(placed) if place not in (None, label)]
    # Folders 0, 1, 2 may be called 3, 4, 5, but hardly 2, 0, 1.
    if wrong and (None not in placed or not _are_labels(found)):
        label = wrong[0]
        raise UserError(
            f"{given.where} is not in the order of the classes of {what}: number {label} is {found[label]!r} there and "
            f"{given.first[label]!r} here, where {found[label]!r} is number {placed[label]}. Names go by position, in "
            f"the order of the sorted classes: {_listed(found)}."
        )
    if None in placed and are_numbers(found) and sorted(found, key=int) != list(found):
        raise UserError(
            f"The classes of {what} are numbers whose sorted order is {_listed(found)}, so that it cannot be told "
            f"what {given.where} goes by; write them with as many digits each, such as 02 and 10."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether all are whole numbers."""
    return all(name.isascii() and name.isdigit() for name in names)


def _are_labels(names: Sequence[str]) -> bool:
    return are_numbers(names) and [int(name) for name in names] == list(range(len(names)))


def _is_prompts(given: str) -> bool:
    """Tell prompts from a file of lines; a misspelt set counts as prompts, whose message has the nearest ones."""
    path = Path(given)
    if given in prompts.available() or path.suffix in (".yaml", ".yml"):
        return True
    return path.name == given and not path.suffix and not path.exists()


def _said(given: str) -> str:
    return given if Path(given).suffix else f"the prompts {given}"


def _lines(path: str, what: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} in {path} cannot be read: {error}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
