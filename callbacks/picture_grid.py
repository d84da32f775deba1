"""Held-out pictures with the texts that the model thinks of, as a picture."""

from textwrap import shorten

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.evaluation import encode_images, evaluating
from callbacks.run_folder import run_folder
from workbench.atomic import written_atomically
from workbench.tokenizer import tokenize, trim


class PictureGrid(Callback):
    """Draw pictures of a split with their top-k texts among the split's captions, at the end of training.

    Saved as `<run folder>/pictures/step_<n>.png` and shown in TensorBoard under Images.

    Args:
        split: of the run's data.
        pictures: how many, spread over the split.
        top_k: texts for each.
        columns: of the grid.
    """

    def __init__(self, split: str = "val", pictures: int = 20, top_k: int = 3, columns: int = 5):
        self.split, self.pictures, self.top_k, self.columns = split, pictures, top_k, columns

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode on all processes, draw on the first."""
        data = trainer.datamodule
        pairs = data.datasets[self.split]
        image, rows = encode_images(pl_module, data.evaluation_dataloader(self.split, self.pictures), "index")
        with evaluating(pl_module):
            tokens = tokenize(pairs.captions[:], pairs.context_length, truncate=True)
            text = [pl_module.encode_text_batch(trim(part).to(pl_module.device)) for part in tokens.split(256)]
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        scores = F.normalize(image, dim=-1) @ F.normalize(torch.cat(text).float(), dim=-1).T
        best = scores.topk(min(self.top_k, len(pairs)), dim=1)
        figure = self._draw(pairs, rows.tolist(), best.indices.tolist(), best.values.tolist())
        path = folder / "pictures" / f"step_{trainer.global_step}.png"
        with written_atomically(path) as file:
            figure.savefig(file, format="png", dpi=110)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(f"{self.split}/pictures", pixels, trainer.global_step, dataformats="HWC")

    def _draw(self, pairs, rows, texts, scores):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = -(-len(rows) // self.columns)
        figure = Figure(figsize=(2.7 * self.columns, 3 * lines), layout="constrained")
        figure.get_layout_engine().set(hspace=0.08)
        FigureCanvasAgg(figure)
        for position, (row, names, values) in enumerate(zip(rows, texts, scores, strict=True), start=1):
            axes = figure.add_subplot(lines, self.columns, position)
            axes.imshow(pairs.picture(row))
            axes.set_axis_off()
            truth = pairs.captions[row]
            axes.set_title(shorten(truth, 32, placeholder="..."), fontsize=9, fontweight="bold")
            for line, (name, value) in enumerate(zip(names, values, strict=True)):
                right = pairs.captions[name] == truth
                axes.text(
                    0.5,
                    -0.02 - 0.12 * line,
                    f"{shorten(pairs.captions[name], 30, placeholder='...')}  {value:.2f}",
                    transform=axes.transAxes,
                    ha="center",
                    va="top",
                    fontsize=8,
                    color="#157f3b" if right else "#555555",
                    fontweight="bold" if right else "normal",
                )
        figure.suptitle(
            f"{self.split}: true name in bold, below it the model's {self.top_k} nearest of {len(pairs)} names "
            "(cosine; green is right)",
            fontsize=11,
        )
        return figure
