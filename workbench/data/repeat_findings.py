"""Pictures and captions that come again: in a split, and in another one, where they leak."""

from collections.abc import Callable

import numpy as np

from workbench.data.captions import Trait
from workbench.data.duplicates import Groups, alike, equal
from workbench.data.findings import INFORMATION, WARNING, Finding, Seen, shortened
from workbench.data.pictures import Mark, Status
from workbench.data.scan import Scan

_LEAK = "What is measured on {} is partly what was trained on; --fix writes train without them."


class Looks:
    """Which pictures look alike, over all splits.

    Args:
        seen: all rows.

    Attributes:
        labels: int64 [rows], equal for pictures with equal pixels or that look alike; different for all others, and
            negative where there is nothing to compare.
    """

    def __init__(self, seen: Seen):
        pictures = seen.pictures
        comparable = (pictures["status"] == Status.READABLE) & (pictures["pixels"] != 0)
        # One of each group of equal pictures stands for all.
        _, first, which = np.unique(pictures["pixels"], return_index=True, return_inverse=True)
        stands = np.zeros(len(pictures), dtype=bool)
        stands[first] = True
        shaped = pictures["marks"] & (Mark.ONE_COLOUR | Mark.SHAPELESS) == 0
        shapes = pictures["width"] / np.maximum(pictures["height"], 1)
        turned = pictures["marks"] & Mark.TURNED > 0
        shapes = np.where(turned, 1 / np.maximum(shapes, 1e-9), shapes)
        groups = alike(pictures["look"], pictures["colour"], shapes, comparable & stands & shaped)
        labels = np.arange(len(pictures))
        labels[groups.rows] = np.repeat(groups.rows[groups.starts], groups.sizes)
        self.labels = np.where(comparable, labels[first[which.ravel()]], -1)


def repeat_findings(seen: Seen, looks: Looks, name: str) -> list[Finding]:
    """Return what comes again within a split."""
    within = seen.within(name)
    start, pictures, scan = within.start, seen.pictures[within], seen.scans[name]
    total = len(pictures)

    def named(row: int) -> str:
        return repr(shortened(seen.captions(row)[0])) if seen.captions(row) else ""

    files = equal(pictures["file"], scan.readable & (pictures["file"] != 0))
    found = seen.of_groups(
        "identical-files",
        WARNING,
        name,
        _moved(files, start),
        total,
        f"{{}} of {total:,} pictures [is|are] the same file as another, under another name.",
        "Put their captions together, as several of one picture.",
    )
    different = pictures["pixels"] != 0
    different[files.repeats] = False
    pixels = equal(pictures["pixels"], different)
    found += seen.of_groups(
        "identical-pixels",
        WARNING,
        name,
        _moved(pixels, start),
        total,
        f"{{}} of {total:,} pictures [has|have] the same pixels as another, in a file that is not the same.",
        "Put their captions together, as several of one picture.",
    )
    different[pixels.repeats] = False
    labels = looks.labels[within]
    found += seen.of_groups(
        "near-identical-pictures",
        INFORMATION,
        name,
        _moved(equal(labels, different & (labels >= 0)), start),
        total,
        f"{{}} of {total:,} pictures [looks|look] like another: saved again, in another size, or hardly changed.",
        "",
    )
    rows, keys = pairs_of(scan)
    what = "caption" if scan.split.labels is None else "class"
    repeated = equal(keys)
    found += seen.of_groups(
        "repeated-pairs",
        WARNING,
        name,
        Groups(rows[repeated.rows] + start, repeated.starts),
        total,
        f"{{}} of {total:,} rows [repeats|repeat] both a picture and its {what}.",
        "They weigh double; --fix leaves the repeats out.",
        named,
    )
    return found


def pairs_of(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and the hash of each different pair of a readable picture and a caption (or class): int64, uint64.

    Captions are equal where they are written alike.
    """
    picture = contents(scan.pictures)
    if scan.split.labels is not None:
        rows, what = np.arange(len(scan)), scan.split.labels.astype(np.uint64)
    else:
        rows, what = captions_of_rows(scan, "text")
    there = (picture != 0)[rows]
    rows, what = rows[there], what[there]
    keys = picture[rows] * np.uint64(0x9E3779B97F4A7C15) + what * np.uint64(0xD6E8FEB86659FD93)
    return rows, keys


def contents(pictures: np.ndarray) -> np.ndarray:
    """Return a hash of what each picture shows, uint64 [N]: of its pixels, or its bytes where it is too large for that.

    It is 0 where the picture cannot be read.
    """
    shown = np.where(pictures["pixels"] == 0, pictures["file"], pictures["pixels"])
    return np.where(pictures["status"] == Status.READABLE, shown, np.uint64(0))


def captions_of_rows(scan: Scan, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Return row and hash of each caption that is not empty, once for each row."""
    filled = scan.captions["traits"] & (Trait.EMPTY | Trait.BLANK) == 0
    links = np.zeros(int(filled.sum()), [("row", "<i8"), ("what", "<u8")])
    links["row"], links["what"] = scan.rows_of_captions()[filled], scan.captions[field][filled]
    order = np.lexsort((links["what"], links["row"]))
    links = links[order]
    new = np.ones(len(links), dtype=bool)
    new[1:] = links[1:] != links[:-1]
    return links["row"][new], links["what"][new]


def leak_findings(seen: Seen, looks: Looks, held_out: str) -> list[Finding]:
    """Return what val or test shares with train."""
    train, other = seen.within("train"), seen.within(held_out)
    total, split = other.stop - other.start, f"train, {held_out}"
    pixels = contents(seen.pictures)
    shared = np.isin(pixels[other], pixels[train]) & (pixels[other] != 0)
    found = seen.of_groups(
        "shared-pictures",
        WARNING,
        split,
        _shared(pixels, train, np.flatnonzero(shared) + other.start),
        total,
        f"{{}} of {total:,} pictures of {held_out} [is|are] in train, too.",
        _LEAK.format(held_out),
        count=int(shared.sum()),
    )
    labels = looks.labels
    near = np.isin(labels[other], labels[train]) & (labels[other] >= 0) & ~shared
    found += seen.of_groups(
        "shared-looks",
        WARNING,
        split,
        _shared(labels, train, np.flatnonzero(near) + other.start),
        total,
        f"{{}} of {total:,} pictures of {held_out} [looks|look] like one of train.",
        f"Look at them: {held_out} may be easier than it seems.",
        count=int(near.sum()),
    )
    if seen.scans["train"].split.labels is not None:
        return found
    mine, theirs = (captions_of_rows(seen.scans[name], "spelling") for name in ("train", held_out))
    rows = np.concatenate([mine[0] + train.start, theirs[0] + other.start])
    keys = np.concatenate([mine[1], theirs[1]])
    known = np.isin(theirs[1], mine[1])
    groups = _shared(keys, slice(0, len(mine[0])), np.flatnonzero(known) + len(mine[0]))
    count = len(np.unique(theirs[0][known]))
    return found + seen.of_groups(
        "shared-captions",
        WARNING,
        split,
        Groups(rows[groups.rows], groups.starts),
        total,
        f"{{}} of {total:,} rows of {held_out} [has a caption|have captions] of train.",
        _LEAK.format(held_out),
        _quoted(seen),
        count=count,
    )


def _quoted(seen: Seen) -> Callable[[int], str]:
    return lambda row: repr(shortened(seen.captions(row)[0]))


def _shared(keys: np.ndarray, train: slice, others: np.ndarray) -> Groups:
    """Return groups of rows with equal keys, of those of train and some others, where both are in it."""
    among = np.zeros(len(keys), dtype=bool)
    among[others] = True
    among[train] = np.isin(keys[train], keys[others])
    return equal(keys, among)


def _moved(groups: Groups, start: int) -> Groups:
    return Groups(groups.rows + start, groups.starts)
