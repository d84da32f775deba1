"""Files of class names and templates: those in this folder, and a user's own.

    class_names: [cat, [dog, puppy], ...]     # by label; a class may have several names
    templates: [a photo of (a|the) {}., ...]  # see `grammar`
    template_subsets: {short: [a photo of a {}.]}
    aliases: {cats: cat}                      # the dataset's own spellings; or a list of them, one a class
    source: ...
    licence: ...
    notes: ...

The first two are needed.
"""

import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import UserError
from workbench.prompts.grammar import MOST_PROMPTS, expand

_SHIPPED = Path(__file__).parent
_NEEDED = ("class_names", "templates")
_TEXTS = ("source", "licence", "notes")
_KEYS = (*_NEEDED, "template_subsets", "aliases", *_TEXTS)
_MOST_BYTES = 4 * 2**20
_MOST_NAMES = 100_000


@dataclass(frozen=True)
class Prompts:
    """What the classes of a dataset are called, and the prompts that the names go into.

    Attributes:
        name: `imagenet`, or the stem of the user's file.
        names: for each label all the names of its class.
        templates: prompts with one `{}` each.
        template_subsets: name -> some of the templates.
        aliases: the dataset's own spelling -> the first name of the class.
        source: project, commit and file.
        licence: of names and templates.
        notes: known differences from datasets.
    """

    name: str
    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    template_subsets: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str]
    source: str = ""
    licence: str = ""
    notes: str = ""

    @property
    def class_names(self) -> list[str]:
        """The first name of each class, by label."""
        return [first for first, *_ in self.names]

    @property
    def collisions(self) -> dict[str, tuple[int, ...]]:
        """Names that several classes share -> their labels: a text classifier cannot tell these apart."""
        labels: dict[str, list[int]] = {}
        for label, names in enumerate(self.names):
            for name in dict.fromkeys(names):
                labels.setdefault(name, []).append(label)
        return {name: tuple(found) for name, found in labels.items() if len(found) > 1}


def available() -> list[str]:
    """Return the names of the sets that come with the workbench."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def read(path_or_name: str | os.PathLike[str]) -> Prompts:
    """Read one of the sets that come with the workbench, by name, or a YAML file, by path.

    Raises:
        UserError: there is none, or its content will not do; the message has the file and the key.
    """
    name = os.fspath(path_or_name)
    if name in available():
        return _shipped(name)
    path = Path(name).expanduser()
    if isinstance(path_or_name, os.PathLike) or path.suffix in (".yaml", ".yml") or os.sep in name:
        return _read(path)
    near = difflib.get_close_matches(name.lower().replace("-", "_"), available(), n=3, cutoff=0.5)
    raise UserError(
        f"There are no prompts called {name!r}; "
        + (f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(available())}.")
        + " A file of your own goes by its path, which ends in .yaml."
    )


@functools.cache
def _shipped(name: str) -> Prompts:
    return _read(_SHIPPED / f"{name}.yaml")


def _read(path: Path) -> Prompts:
    document = _document(path)
    try:
        names = _names(document["class_names"])
        templates = _templates(document["templates"], "templates")
        return Prompts(
            name=path.stem,
            names=names,
            templates=templates,
            template_subsets=_subsets(document.get("template_subsets", {}), templates),
            aliases=_aliases(document.get("aliases", {}), [first for first, *_ in names]),
            **{key: _text(document.get(key, ""), key) for key in _TEXTS},
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Loader(yaml.BaseLoader):
    """Keeps every scalar a string, as a class may be called `no` or `10`; refuses a key that is there twice.

    In Python, as libyaml's loader ends the process on a file of nothing but opening brackets.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return mapping


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        there = sorted(str(file) for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), there, n=1, cutoff=0.5)
        raise UserError(f"There is no file {path}{f'; did you mean {near[0]}?' if near else '; mend the path.'}")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(
                f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no list of class names is; is it the right file?"
            )
        document = yaml.load(content.decode("utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it as such.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML that can be read{_place(error)}.") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must be a YAML mapping with the keys {' and '.join(_NEEDED)}.")
    if unknown := [key for key in document if key not in _KEYS]:
        near = difflib.get_close_matches(unknown[0], _KEYS, n=1)
        raise UserError(
            f"{path} has the key {unknown[0]!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEYS)}.")
        )
    if missing := [key for key in _NEEDED if key not in document]:
        raise UserError(f"{path} has no {' and no '.join(missing)}; give a list.")
    return document


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 1})" if mark else ""
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is nested too deeply"
    # Names and templates are where YAML's own signs turn up by accident.
    quoting = isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError))
    return f": {what}{line}{'; put quotes round a text with YAML signs in it' if quoting else ''}"


def _names(value: Any) -> tuple[tuple[str, ...], ...]:
    _check_list(value, "class_names", "the class names in the order of the labels")
    classes = [entry if isinstance(entry, list) else [entry] for entry in value]
    # Counted first: an anchor can repeat a long list in few characters.
    if sum(map(len, classes)) > _MOST_NAMES:
        raise UserError(f"class_names has more than {_MOST_NAMES} names.")
    for label, names in enumerate(classes):
        if not names:
            raise UserError(f"class_names[{label}] is an empty list; give the class a name.")
        for name in names:
            _text(name, f"class_names[{label}]", needed=True)
    return tuple(map(tuple, classes))


def _templates(value: Any, key: str) -> tuple[str, ...]:
    _check_list(value, key, "templates such as 'a photo of a {}.'")
    prompts: dict[str, int] = {}
    for row, template in enumerate(value):
        text = _text(template, f"{key}[{row}]", needed=True)
        try:
            expanded = expand(text)
        except UserError as error:
            raise UserError(f"{key}[{row}]: {error}") from None
        for prompt in expanded:
            # It would count twice in the mean over prompts.
            if prompt in prompts:
                raise UserError(
                    f"{key}[{row}] gives {prompt!r}, which {key}[{prompts[prompt]}] has given; leave one out."
                )
            prompts[prompt] = row
        if len(prompts) > MOST_PROMPTS:
            raise UserError(f"{key} stand for more than {MOST_PROMPTS} prompts; leave alternatives out.")
    return tuple(prompts)


def _subsets(value: Any, templates: Iterable[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UserError("template_subsets must map the name of each subset to a list of templates.")
    subsets = {name: _templates(listed, f"template_subsets.{name}") for name, listed in value.items()}
    known = set(templates)
    for name, prompts in subsets.items():
        if strange := [prompt for prompt in prompts if prompt not in known]:
            raise UserError(f"template_subsets.{name} has {strange[0]!r}, which is not among the templates.")
    return subsets


def _aliases(value: Any, class_names: list[str]) -> dict[str, str]:
    if isinstance(value, list):
        if len(value) != len(class_names):
            raise UserError(
                f"aliases is a list of {len(value)} for {len(class_names)} classes; give one a class, or a mapping."
            )
        pairs = list(zip(value, class_names, strict=True))
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        raise UserError("aliases must map the dataset's spellings to class names, or list one for each class.")
    known = set(class_names)
    for spelling, name in pairs:
        _text(spelling, "aliases", needed=True)
        _text(name, f"aliases.{spelling}", needed=True)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"aliases.{spelling} is {name!r}, which is no class name"
                f"{f'; did you mean {near[0]!r}?' if near else '; write it as in class_names.'}"
            )
        if spelling in known and spelling != name:
            raise UserError(f"aliases calls {spelling!r} another name of {name!r}, and it is a class of its own.")
    if len(aliases := dict(pairs)) < len(pairs):
        raise UserError("aliases lists a spelling for two classes; each can be of one.")
    return aliases


def _check_list(value: Any, key: str, what: str) -> None:
    if not isinstance(value, list) or not value:
        raise UserError(f"{key} must be a list of {what}, and is {_kind(value)}.")


def _text(value: Any, where: str, needed: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} must be text, and is {_kind(value)}; quote a text that holds ': ' or braces.")
    if needed and not value.strip():
        raise UserError(f"{where} is empty; give a text or leave it out.")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return f"the text {value[:40]!r}" if value else "empty"
