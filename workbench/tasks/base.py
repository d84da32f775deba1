"""What every task shares: the CLIP model it wraps, the weights it starts from, and its checkpoint's metadata."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

import workbench
from workbench import preprocessing, weights
from workbench.errors import UserError
from workbench.models import CLIP, compile_blocks, create_model
from workbench.tokenizer import content_hash


class Task(L.LightningModule):
    """A CLIP model inside Lightning; subclasses say what is done with it.

    Args:
        architecture: a name of `workbench.models.ARCHITECTURES` (`RN50`, `ViT-B/32`, ...) or `timm/<backbone>`.
        weights: where to start: `openai`, a name of the zoo, a path to a checkpoint, or null for `init`.
        image_size: pixels; null takes the architecture's. Position embeddings are built for it, and those of
            loaded weights interpolated. The datamodule's `image_size` follows it.
        init: preset of `workbench.models.initialization`, or a table tensor family -> preset.
        temperature_init: the temperature (0.07 in the paper) that a new model's `logit_scale` starts from;
            weights bring their own.
        patch_dropout: share of patches that a ViT drops while training (FLIP, arXiv 2212.00794).
        gradient_checkpointing: recompute blocks in the backward pass: about a third more time, much less memory.
        compile: `torch.compile` each block in place; pays on a GPU, and needs a C++ compiler on a CPU.
    """

    def __init__(
        self,
        architecture: str = "ViT-B/32",
        weights: str | None = None,
        image_size: int | None = None,
        init: str | dict[str, str] = "openai",
        temperature_init: float = 0.07,
        patch_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        self.clip: CLIP | None = None
        self.chance: dict[str, float] = {}
        self.weights_source: dict[str, Any] | None = None

    def configure_model(self) -> None:
        """Build the model and load its weights, once; called by the Trainer before optimizers and wrapping."""
        if self.clip is not None:
            return
        hparams = self.hparams
        changes = {} if hparams.image_size is None else {"image_size": hparams.image_size}
        self.clip = create_model(
            hparams.architecture,
            init=hparams.init,
            temperature_init=hparams.temperature_init,
            patch_dropout=hparams.patch_dropout,
            gradient_checkpointing=hparams.gradient_checkpointing,
            **changes,
        )
        resumed = self._trainer is not None and self.trainer.ckpt_path is not None
        if hparams.weights is not None and not resumed:
            self.weights_source = weights.load_weights(self.clip, hparams.weights)
            rank_zero_info(f"Started from weights {hparams.weights}.")
        mesh = self.device_mesh
        if mesh is not None:
            self._shard(mesh)
        if hparams.compile:
            compile_blocks(self.clip)

    def _shard(self, mesh: Any) -> None:
        """Shard parameters over processes (FSDP2), block by block; encode_* are entry points beside forward."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = mesh["data_parallel"]
        for block in self.clip.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(self.clip, mesh=mesh)
        for method in ("encode_image", "encode_text"):
            register_fsdp_forward_method(self.clip, method)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a batch's uint8 pixels [B, 3, S, S] into the model's normalised fp32 input."""
        architecture = self.clip.architecture
        return preprocessing.normalize(images, architecture.mean, architecture.std)

    def encode_image_batch(self, images: Tensor) -> Tensor:
        """Encode uint8 pixels [B, 3, S, S] in the trainer's precision; un-normalised [B, embed_dim]."""
        with self._precision():
            return self.clip.encode_image(self.normalize(images))

    def encode_text_batch(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] in the trainer's precision; un-normalised [B, embed_dim]."""
        with self._precision():
            return self.clip.encode_text(tokens)

    def _precision(self) -> Any:
        return self.trainer.strategy.precision_plugin.forward_context()

    def metadata(self) -> dict[str, Any]:
        """Return what is true of the weights and must travel with them."""
        architecture = self.clip.architecture
        return {
            "version": workbench.__version__,
            "architecture": architecture.name,
            "activation": architecture.activation,
            "embed_dim": architecture.embed_dim,
            "image_size": architecture.image_size,
            "context_length": architecture.context_length,
            "mean": list(architecture.mean),
            "std": list(architecture.std),
            "interpolation": architecture.interpolation,
            "tokenizer": content_hash(),
            "weights_source": self.weights_source,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself."""
        checkpoint["workbench"] = self.metadata()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model before a single tensor is copied.

        Raises:
            UserError: the checkpoint is not ours, or its model differs from the configured one.
        """
        theirs = checkpoint.get("workbench")
        if theirs is None:
            raise UserError(
                "The file given as --ckpt_path is not a checkpoint of a workbench run; to start from other "
                "weights use --model.init_args.weights."
            )
        self.configure_model()
        ours = self.metadata()
        keys = ("architecture", "activation", "embed_dim", "image_size", "context_length", "tokenizer")
        different = [key for key in keys if theirs.get(key) != ours[key]]
        if different:
            said = "; ".join(
                f"{key} {theirs.get(key)} in the checkpoint, {ours[key]} in the configuration" for key in different
            )
            raise UserError(
                f"--ckpt_path holds another model: {said}. Resume with the config.yaml of the checkpoint's "
                "own run folder, or start a new run with --model.init_args.weights."
            )
        self.weights_source = theirs.get("weights_source")

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float) -> None:
        """Keep exp(logit_scale) at or below `maximum` (100 in the paper, section 2.5)."""
        logit_scale = self.clip.logit_scale
        logit_scale.clamp_(max=torch.as_tensor(maximum).log().item())
