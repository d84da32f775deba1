"""`python -m workbench data check`, `show` and `shards`."""

from pathlib import Path
from typing import Any


def check(
    config_or_path: str,
    json: str | None = None,
    html: str | None = None,
    fix: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    processes: int = 1,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> int:
    """Look at every picture and caption, say what would break training and what would hurt it, and mend it.

    Args:
        config_or_path: an experiment's YAML, a run folder, a table, shards, a folder of pairs, or a folder of classes.
        json: file for everything that was found, with the rows by place.
        html: file for a page with pictures, to read in a browser; it needs nothing else.
        fix: a table (.csv, .tsv, .jsonl, .parquet) to write of train without unreadable pictures, empty captions,
            repeats, and what val or test has; or a folder, for shards. Must not exist.
        batch_size: pairs of a training step over all processes; null takes the experiment's.
        workers: processes to look with; null takes one for each core. The findings do not depend on it.
        processes: of the training run.
        seed: of the pictures that are shown in the page.
        data: options of the data, written as for `fit`: --data.val val.csv --data.max_skipped 0.01.
        model: options of the model, which pictures and texts follow: --model.architecture RN50.

    Returns:
        0, or 1 when something would break training.
    """
    from workbench.data.checking import check_plan
    from workbench.data.outputs import Outputs
    from workbench.data.planning import make_plan
    from workbench.data.report_text import report_text

    outputs = Outputs(json, html, fix)
    plan = make_plan(config_or_path, data, model, batch_size)
    outputs.require_possible(plan)
    checked = check_plan(plan, workers, processes)
    try:
        written = outputs.write(checked, seed)  # before the screen, which may be a pipe that closes
    finally:
        print(report_text(checked), flush=True)
    for line in written:
        print(line, flush=True)
    return 1 if checked.breaks else 0


def show(
    config_or_path: str,
    output: str = "batch.png",
    step: int = 0,
    split: str = "train",
    pictures: int = 64,
    batch_size: int | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> int:
    """Draw a batch exactly as the model sees it: the same crops in the same order as the run, and the cut texts.

    Args:
        config_or_path: an experiment's YAML, a run folder, a table, shards, a folder of pairs, or a folder of classes.
        output: PNG file; an old one is replaced.
        step: of the run, counted from 0; over all epochs.
        split: train, val or test.
        pictures: of the batch to draw, at most.
        batch_size: pairs of a training step over all processes; null takes the experiment's.
        data: options of the data, written as for `fit`: --data.root pictures.
        model: options of the model, which pictures and texts follow: --model.architecture RN50.
    """
    from workbench.data.showing import draw_batch

    for line in draw_batch(config_or_path, Path(output), step, split, pictures, batch_size, data, model):
        print(line)
    return 0


def shards(
    source: str,
    output: str,
    samples_per_shard: int = 10_000,
    max_bytes: int | None = None,
    prefix: str = "",
    data: dict[str, Any] | None = None,
) -> int:
    """Write tar shards of any source, or of an experiment's training split; they are read in any order, and fast.

    Args:
        source: a table, shards, a folder of pairs, a folder of classes, or an experiment's YAML.
        output: a folder that does not exist, or is empty.
        samples_per_shard: at most.
        max_bytes: of a shard, at most; null sets no limit.
        prefix: of the shards' names.
        data: options of the data, written as for `fit`: --data.caption_column title.
    """
    from workbench.data.sharding import make_shards

    for line in make_shards(source, output, samples_per_shard, max_bytes, prefix, data):
        print(line)
    return 0


SUBCOMMANDS = {"check": check, "show": show, "shards": shards}
"""What stands behind `python -m workbench data`."""
