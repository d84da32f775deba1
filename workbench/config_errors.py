"""jsonargparse's messages, which list every type that a value might have had, as one sentence with the nearest key."""

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from lightning.pytorch import Callback

from datamodules import ImageDataModule
from workbench.errors import UserError
from workbench.tasks import Task

_EXAMPLE = "for example --config experiments/quickstart.yaml"

# The innermost list of types that a value might have had, and the value.
_NO_SUBTYPE = re.compile(r"Errors:\n((?:\s+- Expected .*\n)+)\s+Given value type: .*\n\s+Given value: (.*)")
_OPTIMIZER = {"lr", "betas", "eps", "weight_decay", "momentum"}


def explained(message: str, keys: Iterable[str], missing_hint: str = f"name an experiment, {_EXAMPLE}") -> str:
    """Return what was wrong, where, and what to do.

    Args:
        message: jsonargparse's.
        keys: the valid options of the command, dotted.
        missing_hint: what to do where a required option is missing.
    """
    where = _where(message)
    if found := re.search(r"(?:Option|accept option) '([^']+)'", message):
        return _unknown_key(found[1], where, keys)
    if found := re.search(r"unrecognized arguments: --([^\s=]+)", message):
        return _unknown_key(found[1], where, keys)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        near = _near_class(found[1])
        return (
            f"{where}there is no class {found[1]!r}{f'; did you mean {near!r}?' if near else '.'} Classes of the "
            "workbench go by their name, others by their full import path."
        )
    if found := re.search(r"failed: (.*)", message, re.DOTALL):
        return found[1].strip()
    if found := re.search(r"arguments are required: (.*)", message):
        missing = [name.split(".", 1)[-1] for name in found[1].split(", ")]
        return f"{' and '.join(sorted(missing))} missing; {missing_hint}."
    if found := re.search(r"Expected an? ([^\n]*)\. Got value: ([^\n]*)", message):
        return f"{where}expected {_kinds([found[1]])}, got {found[2]!r}."
    if found := _NO_SUBTYPE.search(message):
        where = _where(message[: found.start()])
        return f"{where}expected {_kinds(re.findall(r'- Expected an? (.*)', found[1]))}, got {found[2]!r}."
    return " ".join(message.split())[:400]


def _kinds(expected: Sequence[str]) -> str:
    """Return jsonargparse's names of types as words: `int, float or null`, `64, 32, 16 or null`."""
    words: list[str] = []
    for kind in expected:
        literals = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
        plain = re.sub(r"<class '([^']+)'>", r"\1", kind).replace("NoneType", "null")
        words += literals[1].replace("'", "").split(", ") if literals else [plain]
    *first, last = sorted(dict.fromkeys(words), key=lambda word: word == "null")
    return f"{', '.join(first)} or {last}" if first else last


def check_files(args: Sequence[str]) -> None:
    """Look at the files of --config options before anything else does.

    Raises:
        UserError: one is missing, or is no YAML; the message has the line.
    """
    for position, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name not in ("--config", "-c"):
            continue
        path = Path(value or (args[position + 1] if position + 1 < len(args) else ""))
        if not path.is_file():
            there = sorted(str(file) for file in (path.parent if path.parent.is_dir() else Path()).glob("*.yaml"))
            near = difflib.get_close_matches(str(path), there, n=1, cutoff=0.5)
            raise UserError(f"--config {path} does not exist{f'; did you mean {near[0]}?' if near else '.'}")
        try:
            yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"{path}{line} is no valid YAML: {problem}.") from error


def _where(message: str) -> str:
    """Return the dotted path of the keys that the message descends through."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    # A Union repeats the way down for each of its types.
    path = list(dict.fromkeys(keys))
    return f"{'.'.join(path)}: " if path else ""


def _unknown_key(key: str, where: str, keys: Iterable[str]) -> str:
    parent, _, last = key.rpartition(".")
    groups = {name.split(".")[0] for name in keys}
    if not where and parent and key.split(".")[0] not in groups:
        near = difflib.get_close_matches(key.split(".")[0], groups, n=1)
    else:
        siblings = {name.rsplit(".", 1)[-1] for name in keys if name.rpartition(".")[0] == parent}
        parameters = {name for cls in _classes() for name in inspect.signature(cls.__init__).parameters}
        near = difflib.get_close_matches(last, siblings if parent else siblings | parameters | _OPTIMIZER, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; --help lists the options."
    return f"{where}there is no option {key!r}{hint}"


def _near_class(name: str) -> str | None:
    names = [cls.__name__ for cls in _classes()]
    starting = [known for known in names if known.lower().startswith(name.lower())]
    return next(iter([*difflib.get_close_matches(name, names, n=1), *starting]), None)


def _classes() -> list[type]:
    """Return every class that a short name in a YAML may mean."""
    found: list[type] = []
    waiting = [Task, ImageDataModule, Callback]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.append(cls)
            waiting.extend(cls.__subclasses__())
    return found
