"""`data check`: all that is to be known of a data set, as one object for the screen, JSON and HTML."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.data.batch_findings import batch_findings, block_findings, class_counts, split_findings
from workbench.data.caption_findings import caption_findings, caption_statistics
from workbench.data.findings import BREAKS, SEVERITIES, Finding, Seen
from workbench.data.picture_findings import picture_findings, picture_statistics
from workbench.data.planning import Plan
from workbench.data.repeat_findings import Looks, leak_findings, repeat_findings
from workbench.data.scan import Scan, scan
from workbench.data.speed import measure


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        plan: what was looked at.
        seen: every row.
        findings: by severity, then by split.
        statistics: split -> counts and sizes, plain values.
        batches: numbers of the run's batches, plain values.
        measured: what depends on this machine and moment, plain values.
    """

    plan: Plan
    seen: Seen
    findings: tuple[Finding, ...]
    statistics: Mapping[str, Mapping[str, Any]]
    batches: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def breaks(self) -> bool:
        """Whether training would fail."""
        return any(finding.severity == BREAKS for finding in self.findings)


def check_plan(plan: Plan, workers: int | None = None, processes: int = 1) -> Check:
    """Look at all of a plan's rows.

    Args:
        plan: what to look at.
        workers: processes to look with; None takes a process for each core. The result does not depend on them.
        processes: of the training run.
    """
    started = time.perf_counter()
    scans = scan(plan.splits, workers, plan.data.max_pixels)
    looking = time.perf_counter() - started
    seen = Seen(scans)
    findings = split_findings(plan)
    looks = Looks(seen)
    for name in scans:
        findings += [*picture_findings(seen, plan, name), *caption_findings(seen, plan, name)]
        findings += repeat_findings(seen, looks, name)
    for name in scans:
        if name != "train" and "train" in scans:
            findings += leak_findings(seen, looks, name)
    batches: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    train = scans.get("train")
    if train is not None and len(train):
        batches, more = batch_findings(plan, train, processes)
        findings += more
        blocks, more = block_findings(train.split, plan.data.num_workers * processes)
        batches["blocks"] = blocks
        findings += more
        measured = {"seconds_looking": looking, **measure(plan.data, train)}
    findings += _unexplained(plan, findings)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    statistics = {name: _statistics(plan, each) for name, each in scans.items()}
    return Check(plan, seen, tuple(findings), statistics, batches, measured)


def _unexplained(plan: Plan, findings: list[Finding]) -> list[Finding]:
    """Return why a run would not start, where no finding says so."""
    if plan.refused is None or any(finding.severity == BREAKS for finding in findings):
        return []
    rows = sum(map(len, plan.splits.values()))
    return [Finding("refused", BREAKS, ", ".join(plan.splits), rows, rows, f"A run would refuse it: {plan.refused}")]


def _statistics(plan: Plan, scan: Scan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pictures": picture_statistics(scan.pictures),
        "captions": caption_statistics(scan, plan.data.context_length),
    }
    classes = class_counts(scan.split)
    if classes:
        counts = np.array(list(classes.values()))
        found["classes"] = {
            "classes": len(classes),
            "min": int(counts.min()),
            "median": float(np.median(counts)),
            "max": int(counts.max()),
            "counts": classes,
        }
    return found
