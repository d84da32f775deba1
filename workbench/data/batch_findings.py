"""What a run's batches will be like: how many there are, and how often a pair meets its like."""

import numpy as np

from datamodules.grouping import by_caption_and_picture
from datamodules.sampling import check_batch_size
from workbench.data.false_negatives import expected_share, linked, partners, share_in_first_epoch
from workbench.data.findings import BREAKS, EXAMPLES, INFORMATION, WARNING, Finding, said
from workbench.data.planning import Plan
from workbench.data.repeat_findings import captions_of_rows, contents
from workbench.data.scan import Scan
from workbench.data.splits import Split
from workbench.errors import UserError

MANY = 0.05
"""Share of the pairs of a batch that have a false negative, above which it is a warning."""


_HELPS = 0.5
"""Share of it to which keeping them apart must bring it, to be worth a word."""


def split_findings(plan: Plan) -> list[Finding]:
    """Return the findings about what splits there are, and the classes in them."""
    found = []
    for name, split in plan.splits.items():
        if not len(split):
            found.append(
                Finding(
                    "empty-split",
                    BREAKS,
                    name,
                    0,
                    0,
                    f"The {name} split has no pair.",
                    "Check the path, and the share that is held out.",
                )
            )
        found += _class_findings(name, split)
    found += _different_classes(plan)
    if plan.same:
        rows = len(plan.splits["train"])
        found.append(
            Finding(
                "val-is-train",
                WARNING,
                "train, val",
                rows,
                rows,
                "There is no validation split, so that val is the training rows themselves.",
                "Hold some out, for example with --data.val_fraction 0.1.",
            )
        )
    return found


def _class_findings(name: str, split: Split) -> list[Finding]:
    classes = class_counts(split)
    empty = [called for called, count in classes.items() if not count]
    if not empty:
        return []
    return [
        Finding(
            "empty-classes",
            WARNING,
            name,
            len(empty),
            len(classes),
            said(f"{{}} of {len(classes):,} classes [has|have] no picture.", len(empty)),
            "Add pictures of them, or leave the classes out.",
            tuple(empty[:EXAMPLES]),
        )
    ]


def _different_classes(plan: Plan) -> list[Finding]:
    names = {name: split.classes for name, split in plan.splits.items() if split.labels is not None}
    first = next(iter(names), None)
    found = []
    for name, classes in names.items():
        only = sorted(set(classes) ^ set(names[first]))
        if classes != names[first]:
            found.append(
                Finding(
                    "different-classes",
                    BREAKS,
                    f"{first}, {name}",
                    len(only),
                    len(classes),
                    f"{first} and {name} have different classes, so that a label is not the same in both.",
                    "Give both the same folders, an empty one where there is no picture.",
                    tuple(only[:EXAMPLES]),
                )
            )
    return found


def class_counts(split: Split) -> dict[str, int]:
    """Return the number of pictures of each class, of classification data."""
    if split.labels is None or not split.classes:
        return {}
    return dict(zip(split.classes, np.bincount(split.labels, minlength=len(split.classes)).tolist(), strict=False))


def batch_findings(plan: Plan, train: Scan, processes: int = 1) -> tuple[dict[str, object], list[Finding]]:
    """Return the numbers of a run's batches, and the findings about them.

    Args:
        plan: the run.
        train: what was seen of its training split.
        processes: that share a batch.
    """
    rows = epoch_rows(plan)
    batch_size, found = plan.data.batch_size, []
    try:
        check_batch_size(rows, batch_size, processes)
    except UserError as error:
        if plan.chosen_batch:
            found.append(Finding("batch-size", BREAKS, "train", rows, rows, str(error), ""))
        batch_size = max(0, min(batch_size, rows))
    numbers: dict[str, object] = {"batch_size": batch_size, "rows": rows, "steps": rows // max(1, batch_size)}
    if batch_size < 2:
        return numbers, found
    shares = false_negative_shares(plan, train, batch_size)
    numbers["false_negatives"] = shares
    if shares["expected"] > 0:
        found.append(_false_negative_finding(plan, train, batch_size, shares))
    return numbers, found


def _false_negative_finding(plan: Plan, train: Scan, batch_size: int, shares: dict[str, float | None]) -> Finding:
    share, apart, avoided = shares["expected"], shares["first_epoch_apart"], plan.data.avoid_false_negatives
    text = (
        f"In a batch of {batch_size:,}, {share:.2%} of the pairs meet another with the same "
        f"{'caption' if train.split.labels is None else 'class'} or picture"
    )
    advice, left = "", share
    if avoided and apart is not None:
        text, left = f"{text}; as they are kept apart, {apart:.2%} in the first epoch.", apart
    elif apart is not None:
        text = f"{text} (with --data.avoid_false_negatives true {apart:.2%})."
        if share > MANY and apart < _HELPS * share:
            advice = "Keep them apart with --data.avoid_false_negatives true."
    if left > MANY and not advice:
        advice = "Some are of so many rows that batches cannot do without; a smaller batch meets fewer."
    severity = WARNING if left > MANY else INFORMATION
    return Finding("false-negatives", severity, "train", round(share * batch_size), batch_size, text, advice)


def epoch_rows(plan: Plan) -> int:
    """Return how many pairs make an epoch: captions, where each is a pair of its own, else rows."""
    train = plan.splits["train"]
    return int(train.caption_counts().sum()) if plan.captions_apart else len(train)


def false_negative_shares(plan: Plan, train: Scan, batch_size: int) -> dict[str, float | None]:
    """Return the shares of a batch's pairs that have a false negative in it.

    Args:
        plan: the run.
        train: what was seen of its training split.
        batch_size: over all processes.

    Returns:
        `expected` where batches are drawn uniformly; `first_epoch` counted in the order of the run's first epoch, and
        `first_epoch_apart` in that of a run that avoids them; both None where each caption is a pair.
    """
    split = train.split
    picture = contents(train.pictures)
    known = np.flatnonzero(picture)
    if plan.captions_apart:
        # A picture's own other captions are its positives, by their label.
        row_of = train.rows_of_captions()
        units = np.arange(len(row_of))
        links = linked((units, train.captions["spelling"]), (units, _or_own(picture)[row_of]))
        own = np.diff(train.starts)[row_of] - 1
        return {
            "expected": expected_share(partners(len(units), links) - own, batch_size),
            "first_epoch": None,
            "first_epoch_apart": None,
        }
    if split.labels is not None:
        said = np.arange(len(split)), split.labels
    else:
        said = captions_of_rows(train, "spelling")
    links = linked(said, (known, picture[known]))
    shares: dict[str, float | None] = {"expected": expected_share(partners(len(split), links), batch_size)}
    parts, seed = list(split.parts), plan.data.seed
    shares["first_epoch"] = share_in_first_epoch(parts, links, batch_size, seed, None)
    apart = _kept_apart(split)
    shares["first_epoch_apart"] = None if apart is None else share_in_first_epoch(parts, links, batch_size, seed, apart)
    return shares


def _or_own(picture: np.ndarray) -> np.ndarray:
    """Give what has no hash one of its own: the captions of one row are of one picture in any case."""
    return np.where(picture == 0, np.arange(len(picture), dtype=np.uint64), picture)


def _kept_apart(split: Split) -> np.ndarray | None:
    """Return what `avoid_false_negatives` goes by, int64 [rows]."""
    if split.labels is not None:
        return split.labels
    if not split.sources:
        return None
    return by_caption_and_picture(list(split.sources))


def block_findings(split: Split, workers: int) -> tuple[dict[str, object] | None, list[Finding]]:
    """Return the numbers of a split's shards or row groups, and a finding that says them; None where it has none.

    Args:
        split: the training split.
        workers: loading processes, over all training processes.
    """
    sizes = [np.diff(np.append(part.block_starts, part.rows)) for part in split.parts if part.block_starts is not None]
    if not sizes:
        return None, []
    blocks = np.concatenate(sizes)
    numbers = {
        "blocks": len(blocks),
        "min": int(blocks.min()),
        "median": float(np.median(blocks)),
        "max": int(blocks.max()),
    }
    text = (
        f"The rows lie in {len(blocks):,} shards or row groups of {numbers['min']:,} to {numbers['max']:,}; the "
        f"{max(1, workers)} loading processes share them row by row, so that any number of either will do."
    )
    return numbers, [Finding("blocks", INFORMATION, split.name, len(blocks), len(split), text)]
