"""`python -m workbench report`."""

from pathlib import Path
from typing import Literal


def report(
    runs: list[str],
    format: Literal["text", "markdown", "csv", "latex"] = "text",
    output: str | None = None,
) -> int:
    """Compare runs in one table: the target at start and end, what was forgotten, what was trained, time and status.

    The target is the metric of `checkpoint.monitor` where its start was measured, else that of the monitor of the run's
    own data, else of val. Gains and drops are in points. `method` is the task, and those of its settings and of the
    data's in which the runs differ. A run with `WeightInterpolation` has a second row, of the weights that were chosen.

    Args:
        runs: run folders; a folder of an experiment stands for its newest run, any other for those of its experiments.
        format: of the table; csv has the numbers as they are, others rounded.
        output: file to write the table to, whole or not at all, in place of the screen.
    """
    from workbench.errors import UserError
    from workbench.report.reading import find_runs, rows_of
    from workbench.report.tables import FORMATS

    text = FORMATS[format](rows_of(find_runs(runs)))
    if output is None:
        print(text, end="", flush=True)
        return 0
    from workbench.atomic import written_atomically

    try:
        with written_atomically(Path(output), "w") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}).") from error
    print(f"Written: {output}", flush=True)
    return 0
