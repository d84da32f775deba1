"""`data show`: a batch as the model sees it."""

import itertools
from pathlib import Path
from textwrap import wrap
from types import SimpleNamespace
from typing import Any

import numpy as np

from datamodules.pairs import collate
from workbench.atomic import written_atomically
from workbench.data.experiment import Experiment, Options
from workbench.data.report_text import printable
from workbench.errors import UserError
from workbench.tokenizer import tokenizer

_COLUMNS = 8
_LETTERS, _LINES = 26, 6


def draw_batch(
    target: str,
    output: Path,
    step: int,
    split: str,
    pictures: int,
    batch_size: int | None,
    data: Options,
    model: Options,
) -> list[str]:
    """Write the pictures of a batch with their texts as a PNG, and return the texts.

    Args:
        target: see `Experiment`, as for `data` and `model`.
        output: the PNG.
        step: of the run, from 0; of val and test, the batch.
        split: train, val or test.
        pictures: at most so many of the batch.
        batch_size: None takes the experiment's.
        data: see `Experiment`.
        model: see `Experiment`.

    Raises:
        UserError: no such split or step, or the data cannot be trained on.
    """
    if step < 0 or pictures < 1:
        raise UserError(f"step is {step} and pictures {pictures}; steps count from 0, and at least 1 picture is drawn.")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output} is written as PNG; give it a name that ends with .png.")
    experiment = Experiment(target, data, model)
    module = experiment.data
    if batch_size is not None:
        module.batch_size = batch_size
    module.num_workers = 0
    module.prepare_data()
    module.setup()
    if batch_size is None and not experiment.chosen_batch:
        module.batch_size = min(module.batch_size, max(2, len(module.datasets["train"])))
    module.setup("fit" if split == "train" else None)
    batch, about = _batch(experiment, split, step)
    pairs = module.datasets[split]
    texts = [tokenizer().decode(tokens) for tokens in batch["text"].numpy()[:, 1:]]
    full = (batch["text"] != 0).sum(dim=1).numpy() >= module.context_length
    places = [pairs.place(int(row)) for row in batch["index"]]
    shown = min(pictures, len(texts))
    images = batch["image"][:shown].numpy().transpose(0, 2, 3, 1)
    captions = [f"{text} |" if cut else text for text, cut in zip(texts[:shown], full[:shown], strict=True)]
    try:
        with written_atomically(output) as file:
            figure(images, captions, f"{target}: {about}").savefig(file, format="png", dpi=100)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}).") from error
    lines = [
        f"{number:4}  {printable(text)}  [{printable(place)}]"
        for number, (text, place) in enumerate(zip(captions, places, strict=False))
    ]
    skipped = [f"Left out: {each.place}: {each.reason}" for each in batch.get("skipped", ())]
    mark = ["A text that ends with | is as long as the model reads."] if full[:shown].any() else []
    return [*lines, *mark, *skipped, f"Written: {output}, {shown} of the {len(texts)} pairs of {about}"]


def _batch(experiment: Experiment, split: str, step: int) -> tuple[dict[str, Any], str]:
    """Return a batch, and what it is called."""
    module = experiment.data
    if split not in module.datasets:
        raise UserError(f"There is no split {split!r}; this data has {', '.join(module.datasets)}.")
    if split != "train":
        loader = module.evaluation_dataloader(split)
        if step >= len(loader):
            raise UserError(f"step is {step}, and {split} has {len(loader)} batches, counted from 0.")
        return next(itertools.islice(iter(loader), step, None)), f"batch {step} of {split}"
    limit = experiment.trainer.get("limit_train_batches")
    module.trainer = SimpleNamespace(limit_train_batches=1.0 if limit is None else limit)
    an_epoch = module.batches_per_epoch
    if an_epoch < 1:
        raise UserError(f"limit_train_batches is {limit}, so that an epoch has no step.")
    # One process's share is the whole batch, and the sampler's position is all that is random in it.
    batches = module.training_batches(trained=lambda: step, batches_per_epoch=lambda: an_epoch)
    keys = next(iter(batches))
    return collate(
        module.datasets["train"].__getitems__(keys)
    ), f"step {step} (epoch {step // an_epoch}, seed {module.seed})"


def figure(images: np.ndarray, texts: list[str], title: str) -> Any:
    """Return a grid of pictures with their texts below.

    Args:
        images: uint8 [N, S, S, 3].
        texts: N of them.
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    drawn = Figure(figsize=(1.9 * max(3, columns), 2.45 * rows + 0.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    for position, (image, text) in enumerate(zip(images, texts, strict=True), start=1):
        axes = drawn.add_subplot(rows, columns, position)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        lines = wrap(printable(text), _LETTERS) or [""]
        lines = [*lines[: _LINES - 1], "..."] if len(lines) > _LINES else lines
        # As it is written: a dollar sign would start a formula.
        below = "\n".join(lines).replace("$", r"\$")
        axes.text(0.5, -0.04, below, transform=axes.transAxes, ha="center", va="top", fontsize=7.5)
    drawn.suptitle(title.replace("$", r"\$"), fontsize=9)
    return drawn
