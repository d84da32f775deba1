"""Samples that cannot be read: how many may be left out of a run before it stops, and which they were."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from workbench.errors import UserError

ON_ERROR = ("skip", "raise")


class Skipped(NamedTuple):
    """A sample that was left out; plain values, as it travels in a batch and lies in checkpoints."""

    row: int
    place: str
    reason: str


@dataclass(frozen=True)
class OnError:
    """What happens to a sample that cannot be read.

    Attributes:
        action: `skip`, or `raise` to stop at the first.
        budget: share of a split's rows that may be skipped.
    """

    action: str = "skip"
    budget: float = 0.001

    def __post_init__(self) -> None:
        if self.action not in ON_ERROR:
            raise UserError(f"on_error is {self.action!r}; there are {' and '.join(ON_ERROR)}.")
        if not 0 <= self.budget < 1:
            raise UserError(
                f"max_skipped is {self.budget}; give a share of the rows, from 0 to below 1 (0.001: 0.1 %)."
            )

    def allowed(self, rows: int) -> int:
        """Return how many of so many rows may be skipped."""
        return int(self.budget * rows) if self.action == "skip" else 0


class SkippedSamples:
    """Every different sample that a run has left out, by split.

    Args:
        on_error: how many there may be.
    """

    def __init__(self, on_error: OnError):
        self.on_error = on_error
        self.rows: dict[str, int] = {}
        self._found: dict[tuple[str, int], Skipped] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, split: str, skipped: Iterable[tuple[int, str, str]]) -> list[Skipped]:
        """Remember samples of a split; return those that are new."""
        new = [Skipped(*each) for each in skipped]
        new = [each for each in dict.fromkeys(new) if (split, each.row) not in self._found]
        self._found.update({(split, each.row): each for each in new})
        return new

    def require_few(self) -> None:
        """Stop when the budget of a split is spent.

        Raises:
            UserError: it is; with the first few samples and what to do.
        """
        for split, rows in self.rows.items():
            found = [each for (of, _), each in self._found.items() if of == split]
            allowed = self.on_error.allowed(rows)
            if len(found) > allowed:
                first = "; ".join(f"{each.place}: {each.reason}" for each in found[:3])
                raise UserError(
                    f"{len(found)} of the {rows:,} samples of the {split} split could not be read, and "
                    f"{allowed} may be ({self.on_error.budget:.2%}, --data.max_skipped): {first}"
                    f"{'; ...' if len(found) > 3 else ''} `python -m workbench data check` finds them all, and its "
                    "--fix writes a table without them."
                )

    def table(self) -> list[tuple[str, int, str, str]]:
        """Return all of them as (split, row, place, reason), in order: plain values for a file or a checkpoint."""
        return [(split, *each) for (split, _), each in sorted(self._found.items())]
