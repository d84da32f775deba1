"""What is wrong, or unusual, with captions."""

from collections.abc import Callable

import numpy as np

from workbench.data.captions import Trait
from workbench.data.duplicates import Groups, equal
from workbench.data.findings import BREAKS, INFORMATION, WARNING, Finding, Seen, said, shortened
from workbench.data.planning import Plan
from workbench.data.scan import Scan

MANY_CUT = 0.01
"""Share of captions that are cut, above which it is a warning."""
MOST_COMMON = 10

_LOOKS = (
    ("file-name-captions", Trait.FILE_NAME, "[has a caption|have captions] like the name of a file"),
    ("address-captions", Trait.ADDRESS, "[has a caption|have captions] with a web address"),
    ("markup-captions", Trait.MARKUP, "[has a caption|have captions] with HTML"),
    ("garbled-captions", Trait.GARBLED, "[has a caption|have captions] once read in a wrong encoding (mojibake)"),
)


def caption_findings(seen: Seen, plan: Plan, name: str) -> list[Finding]:
    """Return the findings about the captions of a split; of classification data, only what is cut."""
    scan = seen.scans[name]
    found = _cut(seen, plan, name, scan)
    if scan.split.labels is not None:
        return found
    rows = scan.rows_of_captions() + seen.within(name).start
    traits, total = scan.captions["traits"], len(scan.captions)
    severity = BREAKS if plan.refused is not None else WARNING
    for code, trait, what in (("empty-captions", Trait.EMPTY, "empty"), ("blank-captions", Trait.BLANK, "white space")):
        found += seen.of_rows(
            code,
            severity,
            name,
            np.unique(rows[traits & trait > 0]),
            total,
            f"The caption of {{}} [row is|rows are] {what}.",
            "Fill them in, or take the rows out.",
        )
    for code, trait, what in _LOOKS:
        found += seen.of_rows(
            code,
            INFORMATION,
            name,
            np.unique(rows[traits & trait > 0]),
            total,
            f"{{}} [row|rows] {what}.",
            "",
            _with_trait(seen, trait),
        )
    return [*found, *_repeated(seen, name, rows, scan.captions)]


def _with_trait(seen: Seen, trait: Trait) -> Callable[[int], str]:
    from workbench.data.captions import traits

    return lambda row: repr(shortened(next(text for text in seen.captions(row) if traits(text) & trait)))


def _cut(seen: Seen, plan: Plan, name: str, scan: Scan) -> list[Finding]:
    long = scan.captions["tokens"] > plan.data.context_length
    count, total = int(long.sum()), len(long)
    if not count:
        return []
    share, start = count / total, seen.within(name).start
    rows = np.zeros(0, np.int64)
    if scan.split.entry_of is None:
        rows = np.unique(scan.rows_of_captions()[long]) + start
    examples = [shortened(scan.split.texts.array.flatten()[int(at)].as_py(), 80) for at in np.flatnonzero(long)[:3]]
    return [
        Finding(
            "cut-captions",
            WARNING if share > MANY_CUT else INFORMATION,
            name,
            count,
            total,
            said(
                f"{{}} of {total:,} captions ({share:.1%}) [is|are] longer than {plan.data.context_length} tokens and "
                "[is|are] cut.",
                count,
            ),
            "What matters should come first; or raise --model.init_args.context_length.",
            tuple(f"{seen.place(row)}: {text!r}" for row, text in zip(rows[:3].tolist(), examples, strict=False))
            or tuple(map(repr, examples)),
            rows,
        )
    ]


def _repeated(seen: Seen, name: str, rows: np.ndarray, captions: np.ndarray) -> list[Finding]:
    filled = captions["traits"] & (Trait.EMPTY | Trait.BLANK) == 0
    total = len(captions)
    texts = equal(captions["text"], filled)

    def quoted(row: int) -> str:
        return repr(shortened(seen.captions(row)[0]))

    found = seen.of_groups(
        "repeated-captions",
        INFORMATION,
        name,
        _of_rows(texts, rows),
        total,
        f"{{}} of {total:,} captions [is|are] another row's, too.",
        "",
        quoted,
        count=len(texts.rows) - len(texts),
    )
    filled = filled.copy()
    filled[texts.repeats] = False
    similar = equal(captions["folded"], filled)
    return found + seen.of_groups(
        "similar-captions",
        INFORMATION,
        name,
        _of_rows(similar, rows),
        total,
        f"{{}} of {total:,} captions [differs|differ] from another in capitals, accents, punctuation or spaces alone.",
        "",
        quoted,
        count=len(similar.rows) - len(similar),
    )


def _of_rows(groups: Groups, rows: np.ndarray) -> Groups:
    """Return groups of captions as groups of their rows."""
    return Groups(rows[groups.rows], groups.starts)


def caption_statistics(scan: Scan, context_length: int) -> dict[str, object]:
    """Return counts and lengths of captions: plain values, for a report."""
    tokens = scan.captions["tokens"]
    if not len(tokens):
        return {"captions": 0}
    lengths, counts = np.unique(tokens, return_counts=True)
    return {
        "captions": len(tokens),
        "different": len(np.unique(scan.captions["text"])),
        "tokens": {
            "min": int(tokens.min()),
            "median": float(np.median(tokens)),
            "95%": float(np.percentile(tokens, 95)),
            "max": int(tokens.max()),
        },
        "cut": float((tokens > context_length).mean()),
        "lengths": [[int(length), int(count)] for length, count in zip(lengths, counts, strict=True)],
        "most_common": _most_common(scan),
    }


def _most_common(scan: Scan) -> list[list[object]]:
    """Return the captions that are there more than once, with their counts."""
    groups = equal(scan.captions["text"])
    order = np.argsort(-groups.sizes, kind="stable")[:MOST_COMMON]
    texts = scan.split.texts.array.flatten()
    return [[texts[int(groups.rows[groups.starts[group]])].as_py() or "", int(groups.sizes[group])] for group in order]
