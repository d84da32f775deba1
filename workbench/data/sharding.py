"""`data shards`: any source, or a training split, as tar shards."""

from pathlib import Path

import numpy as np

from datamodules.sources.write_shards import write_shards
from workbench.data.experiment import Options
from workbench.data.fixing import chosen_source
from workbench.data.planning import make_plan
from workbench.data.report_text import readable_bytes
from workbench.errors import UserError


def make_shards(
    source: str, output: str, samples_per_shard: int, max_bytes: int | None, prefix: str, data: Options
) -> list[str]:
    """Write the shards, and return what to say of them.

    Args:
        source: a place of data, or an experiment's YAML.
        output: a folder.
        samples_per_shard: see `write_shards`, as for `max_bytes` and `prefix`.
        max_bytes: see `write_shards`.
        prefix: see `write_shards`.
        data: options of the data.

    Raises:
        UserError: rows that no run would take, or a folder that is not empty.
    """
    plan = make_plan(source, data)
    if plan.refused is not None:
        raise UserError(
            f"{plan.refused} `python -m workbench data check {source}` finds all such rows, and with --fix FOLDER it "
            "writes shards without them."
        )
    split = plan.splits.get("train")
    if split is None:
        raise UserError(f"{source} has no training split to write.")
    if split.entry_of is None and len(split.sources) == 1:
        found = split.sources[0]
    else:
        rows = np.arange(len(split))
        found = chosen_source(split, rows, [split.captions(row) for row in rows.tolist()])
    paths = write_shards(found, output, samples_per_shard, max_bytes, prefix)
    size = sum(path.stat().st_size for path in paths)
    folder = Path(output)
    label = "" if split.labels is None else " --data.label_column label"
    how = "ImageTextDataModule" if split.labels is None else "ClassificationDataModule"
    return [
        f"Written: {len(split):,} samples in {len(paths):,} shards of {readable_bytes(size)}, {paths[0]} to "
        f"{paths[-1].name}",
        f"Check them: python -m workbench data check {folder}{label}",
        f"Train on them: python -m workbench fit --config ... --data {how} --data.train {folder}{label}",
    ]
