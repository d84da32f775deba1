"""The command line: the Trainer's verbs go to LightningCLI, everything else is a function of COMMANDS.

Heavy imports happen behind the choice, so that `python -m workbench --help` answers at once.
"""

import difflib
import importlib
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.commands import CLOSED_PIPE, COMMANDS, INTERRUPTED, MISTAKE, POSITIONAL, VERBS
from workbench.errors import Notice, UserError


def usage() -> str:
    """Return the overview."""
    rows = [*VERBS.items(), *((name, text) for name, (_, text) in COMMANDS.items())]
    return "\n".join(
        [
            "usage: python -m workbench COMMAND [options]",
            "",
            *(f"  {name:<12} {text}" for name, text in rows),
            "",
            "examples:",
            "  python -m workbench fit --config experiments/quickstart.yaml",
            "  python -m workbench fit --config experiments/ft_rn50.yaml --data.batch_size 32",
            "  python -m workbench fit --config runs/quickstart/0/config.yaml "
            "--ckpt_path runs/quickstart/0/checkpoints/last.ckpt",
            "",
            "python -m workbench COMMAND --help lists the options of one.",
        ]
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is 0, 1 where a command says so, 2 for a mistake, 130 when interrupted, 141 when nobody reads what it prints.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0
        with _notices_alone():
            return _run(args)
    except UserError as error:
        print(f"error: {_without_traceback(str(error))}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
        return CLOSED_PIPE


@contextmanager
def _notices_alone() -> Iterator[None]:
    """Show a `Notice` without the place in the code that a warning comes with."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, Notice):
            print(f"warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *where)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _run(args: list[str]) -> int:
    name = args[0]
    if name in COMMANDS:
        return _run_command(name, args[1:])
    if name in VERBS:
        from workbench.cli import run_verb

        return run_verb(args)
    near = difflib.get_close_matches(name, [*VERBS, *COMMANDS], n=1)
    raise UserError(
        f"there is no command {name!r}{f'; did you mean {near[0]!r}' if near else ''}? "
        f"There are {', '.join([*VERBS, *COMMANDS])}."
    )


def _run_command(name: str, args: list[str]) -> int:
    from jsonargparse import ArgumentError, auto_cli

    from workbench.parser import StrictParser

    function = _load(COMMANDS[name][0])
    prog = f"python -m workbench {name}"
    if isinstance(function, dict):
        return _run_subcommand(function, args, prog)
    words = name in POSITIONAL
    if words:
        args = _words_as_list(args)
    try:
        return auto_cli(function, args=args, as_positional=words, prog=prog, parser_class=StrictParser) or 0
    except ArgumentError as error:
        from workbench.config_errors import explained

        raise UserError(
            explained(str(error), inspect.signature(function).parameters, "--help lists the options")
        ) from error


def _words_as_list(args: list[str]) -> list[str]:
    """Return the words that belong to no option as one list, which is how jsonargparse takes several by position."""
    words, options, rest = [], [], iter(args)
    for arg in rest:
        if not arg.startswith("-"):
            words.append(arg)
            continue
        options.append(arg)
        if "=" not in arg and arg not in ("-h", "--help"):
            options += [value for value in (next(rest, None),) if value is not None]
    return [*([json.dumps(words)] if words else []), *options]


def _run_subcommand(functions: dict[str, Callable], args: list[str], prog: str) -> int:
    from jsonargparse import ArgumentError, auto_cli

    from workbench.parser import StrictParser

    class Parser(StrictParser):
        """Has no file of options: --config is an experiment, and that is the first argument here."""

        def add_argument(self, *names: str, **options: Any) -> Any:
            return None if "--config" in names else super().add_argument(*names, **options)

    spelling = {"--data": "--data.class_path", "--model": "--model.class_path"}  # as `fit` takes them
    args = [spelling.get(each, each) for each in args if each != "--config"] or ["--help"]
    name = args[0]
    if name not in functions and name not in ("-h", "--help"):
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"There is no {prog.rpartition(' ')[2]} {name!r}{hint} There are {', '.join(functions)}.")
    try:
        return auto_cli(functions, args=args, prog=prog, parser_class=Parser) or 0
    except ArgumentError as error:
        from workbench.config_errors import explained

        keys = inspect.signature(functions[name]).parameters
        raise UserError(explained(str(error), keys, f"{prog} {name} --help lists the options")) from error


def _without_traceback(message: str) -> str:
    """Return the sentence alone, of which a loading worker makes the last line of a traceback."""
    return re.sub(
        r"\ACaught \w+ in DataLoader worker.*^\S*UserError: ", "", message.strip(), flags=re.DOTALL | re.MULTILINE
    )


def _load(reference: str) -> Callable:
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)
