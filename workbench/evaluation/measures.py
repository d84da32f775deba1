"""What a model is worth on a split, with everything that it takes kept for the next model."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from workbench.errors import UserError
from workbench.evaluation import retrieval
from workbench.evaluation.classification import accuracies, outcomes
from workbench.evaluation.encoding import Batch, Encoder, class_vectors, encode_images, encode_pairs
from workbench.evaluation.zero_shot import top_k_correct

Kind = Literal["zero_shot", "retrieval", "head"]
_METRICS = {"zero_shot": "zero_shot_top1", "head": "top1"}
_HELD_BYTES = 1 << 30
_MANY_CLASSES = 10


class Measure:
    """A score on validation data, for choosing between models.

    It is top-1, or the mean of image-to-text and text-to-image recall at the smallest k. Pictures that take up to 1 GiB
    in each process are kept from one model to the next, more are read again.

    Args:
        name: of its metrics.
        data: a datamodule, prepared for the models and set up: it has `datasets` and `evaluation_dataloader`, and
            for zero-shot classification `class_names`, `templates` and `context_length`.
        kind: zero_shot; retrieval; or head, of an encoder with `logits`: features [N, D] -> [N, classes].
        split: of the data; not test, which is for the model that was chosen.
        samples: rows to take, chosen by the data's seed; None takes all.
        ks: the k of recall@k.

    Attributes:
        metric: what the score is called.
        rows: that it was measured on, over all processes; 0 before.

    Raises:
        UserError: the split is test.
    """

    def __init__(
        self,
        name: str,
        data: Any,
        kind: Kind,
        split: str = "val",
        samples: int | None = None,
        ks: Sequence[int] = (1, 5, 10),
    ):
        if split == "test":
            raise UserError(
                f"{name} measures test data, and what is chosen by test data says nothing about new data: give it "
                "another split, such as val, or leave it out."
            )
        self.name, self.data, self.kind, self.split, self.samples = name, data, kind, split, samples
        self.ks = sorted(ks)
        self.metric = _METRICS.get(kind) or f"mean_recall@{self.ks[0]}"
        self.rows = 0
        self._held: list[Batch] | None = None

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Return every metric of a model, the score among them as `<name>/<metric>`.

        Raises:
            UserError: the model's features are not finite, of which every comparison would be won.
        """
        found = {"zero_shot": self._zero_shot, "retrieval": self._retrieval, "head": self._head}[self.kind](encoder)
        return {f"{self.name}/{key}": value for key, value in found.items()}

    def loader(self) -> Any:
        """Return the loader of the split.

        Raises:
            UserError: the data have no such split, or too few rows.
        """
        return self.data.evaluation_dataloader(self.split, self.samples)

    def score(self, metrics: dict[str, float]) -> float:
        """Return the score among the metrics of a model."""
        return metrics[f"{self.name}/{self.metric}"]

    def _zero_shot(self, encoder: Encoder) -> dict[str, float]:
        data = self.data
        vectors = class_vectors(encoder, data.class_names, data.templates, data.context_length)
        image, labels = encode_images(encoder, self._batches(), "label")
        self._require_finite(image, vectors)
        ks = (1, 5) if len(data.class_names) > _MANY_CLASSES else (1,)
        return {f"zero_shot_top{k}": float(top_k_correct(image, vectors, labels, k).float().mean()) for k in ks}

    @torch.inference_mode()
    def _head(self, encoder: Any) -> dict[str, float]:
        image, labels = encode_images(encoder, self._batches(), "label")
        logits = encoder.logits(image)
        self._require_finite(image, logits)
        _, ranks = outcomes(logits, labels)
        return accuracies(ranks, labels, logits.shape[1])

    def _retrieval(self, encoder: Encoder) -> dict[str, float]:
        labelled = self.data.datasets[self.split].labels is not None  # any of a class's is then a right answer
        image, text, *labels = encode_pairs(encoder, self._batches(), *(["label"] if labelled else []))
        self._require_finite(image, text)
        found = retrieval.recall_at_k(image, text, self.ks, groups=labels[0] if labels else None)
        first = self.ks[0]
        both = [found[f"{way}_recall@{first}"] for way in ("image_to_text", "text_to_image")]
        return {**found, self.metric: sum(both) / len(both)}

    def _require_finite(self, image: torch.Tensor, text: torch.Tensor) -> None:
        self.rows = len(image)
        if not bool(image.isfinite().all() and text.isfinite().all()):
            raise UserError(f"{self.name}: the model's features are not finite; its weights are spoilt.")

    def _batches(self) -> Iterable[Batch]:
        """Return the batches, from memory where they fit."""
        if self._held is not None:
            return self._held
        loader = self.loader()
        if 3 * self.data.image_size**2 * len(loader.sampler) > _HELD_BYTES:
            return loader
        # Copies: what comes from a worker lies in shared memory, of which there may be little.
        self._held = [{key: value.clone() for key, value in batch.items()} for batch in loader]
        return self._held
