"""Prompt learning: the words in front of the class name are learnt (CoOp)."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from workbench.errors import UserError
from workbench.models.prompt_learner import PromptLearner
from workbench.tasks.adapter import AdapterTask, normalized
from workbench.tasks.labelled import require_same_classes


class CoOpTask(AdapterTask):
    """Learn context vectors in front of the class names (Zhou et al. 2022, arXiv 2109.01134); all else is frozen.

    A class's prompt is the context, its first name and a full stop. Logits are exp(logit_scale) times the cosine of a
    picture and each class's prompt, and the loss is their cross-entropy. Every step encodes the prompts of all classes
    anew, on each process; `gradient_checkpointing` saves memory where they are many.

    Args:
        context_tokens: number of context vectors; null takes 16, or the tokens of `context_words`.
        context_words: what the context starts from, such as `a photo of a`; null draws it.
        class_specific: give each class a context of its own (the paper's CSC) instead of one for all.
        training: see `AdapterTask`, `TrainingTask` and `Task`.
    """

    method = "CoOp"

    def __init__(
        self,
        *,
        context_tokens: int | None = None,
        context_words: str | None = None,
        class_specific: bool = False,
        **training: Any,
    ):
        super().__init__(**training)
        self._vectors: Tensor | None = None

    @staticmethod
    def default_optimizer(parameters: Iterable) -> Optimizer:
        """Return SGD with the paper's values (section 4.1, and its code's defaults)."""
        return SGD(parameters, lr=2e-3, momentum=0.9, weight_decay=5e-4)

    def build_adapter(self) -> PromptLearner:
        """Return the prompts of the data's classes."""
        hparams = self.hparams
        return PromptLearner(
            self.class_names,
            self.clip.token_embedding,
            self.clip.context_length,
            hparams.context_tokens,
            hparams.context_words,
            hparams.class_specific,
        )

    def prompt_vectors(self) -> Tensor:
        """Return the normalised features of the classes' prompts, [C, embed_dim]."""
        with self._precision():
            features = self.clip.encode_embedded_text(*self.adapter(self.clip.token_embedding))
        return normalized(features)

    def logits(self, features: Tensor) -> Tensor:
        """Return the scaled cosines [B, C] of un-normalised image features and the classes' prompts."""
        vectors = self.prompt_vectors() if self._vectors is None else self._vectors
        return self.scaled_cosines(features, vectors)

    def on_validation_epoch_start(self) -> None:
        """Encode the prompts once for all batches."""
        super().on_validation_epoch_start()
        self._vectors = self.prompt_vectors()

    on_test_epoch_start = on_validation_epoch_start

    def measured(self) -> dict[str, float]:
        """Return the metrics of the split; the prompts may change after it."""
        self._vectors = None
        return super().measured()

    def accept(self, adapter: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Refuse another context. One for all classes does for any classes; `class_specific` ones are of theirs.

        Raises:
            UserError: another number of vectors, or of other classes.
        """
        if self.hparams.class_specific:
            require_same_classes(about["class_names"], self.class_names)
        context, ours = adapter["context"], self.adapter.context
        if context.shape != ours.shape:
            kinds = ["one for each class" if each.ndim == 3 else "one for all classes" for each in (context, ours)]
            raise UserError(
                f"--ckpt_path has a context of {context.shape[-2]} tokens, {kinds[0]}, and the configuration asks for "
                f"{ours.shape[-2]}, {kinds[1]}: take the config.yaml of the checkpoint's own run folder."
            )
