"""The parser under every command."""

from typing import Any

import jsonargparse


class StrictParser(jsonargparse.ArgumentParser):
    """A parser that raises its mistakes, and takes no abbreviated options, which hide typing mistakes."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raise instead of printing usage and leaving."""
        raise jsonargparse.ArgumentError(None, message) from ex

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        return []
