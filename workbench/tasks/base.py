"""What every task shares: the CLIP model it wraps, the weights it starts from, and its checkpoint's metadata."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from workbench import preprocessing, weights
from workbench.errors import UserError
from workbench.models import CLIP, DEFAULT_ARCHITECTURE, Architecture, architecture, compile_blocks, create_model
from workbench.weights import Weights

NO_RUN = (
    "The file given as --ckpt_path is not a checkpoint of a workbench run; to start from other weights use "
    "--model.init_args.weights."
)
_IDENTITY = (
    *("architecture", "activation", "embed_dim", "image_size", "context_length", "tokenizer"),
    *("vision", "text", "mean", "std", "interpolation", "logit_bias"),
)


class Task(L.LightningModule):
    """A CLIP model inside Lightning; subclasses say what is done with it.

    Args:
        architecture: a name of `workbench.models.ARCHITECTURES` (`RN50`, `ViT-B/32`, ...) or `timm/<backbone>`; null
            takes that of the weights, and ViT-B/32 without weights.
        weights: where to start: `openai`, a name of the zoo, `hf-hub:org/name[@revision]`, a path to a checkpoint or to
            a model's folder (see `workbench.weights.read_weights`), or null for `init`. Activation, mean, std and
            interpolation of pictures are then the weights'.
        image_size: pixels; null takes the weights', else the architecture's. The data follow it.
        context_length: tokens of a text; null takes the weights', else the architecture's. The data follow it.
        activation: `quick_gelu` or `gelu`; null takes the weights', else the architecture's. Weights that were trained
            with another are refused; for files that do not say it, it must be said here.
        interpolate_positions: resample the weights' position embeddings for another `image_size` or `context_length`;
            without, such weights are refused.
        init: preset of `workbench.models.initialization`, or a table tensor family -> preset.
        temperature_init: the temperature (0.07 in the paper) that a new model's `logit_scale` starts from;
            weights bring their own.
        patch_dropout: share of patches that a ViT drops while training (FLIP, arXiv 2212.00794).
        gradient_checkpointing: recompute blocks in the backward pass: about a third more time, much less memory.
        compile: `torch.compile` each block in place; pays on a GPU, and needs a C++ compiler on a CPU.
    """

    def __init__(
        self,
        architecture: str | None = None,
        weights: str | None = None,
        image_size: int | None = None,
        context_length: int | None = None,
        activation: str | None = None,
        interpolate_positions: bool = False,
        init: str | dict[str, str] = "openai",
        temperature_init: float = 0.07,
        patch_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        # Of subclasses too. The optimizer and the rules would not load with weights_only=True; config.yaml has them.
        self.save_hyperparameters(ignore=["optimizer", "parameter_rules", "distillation"])
        self.clip: CLIP | None = None
        self.chance: dict[str, float] = {}
        self.weights_source: dict[str, Any] | None = None
        self._described: Architecture | None = None
        self._weights: Weights | None = None

    def described(self, ckpt_path: str | None = None) -> Architecture:
        """Return what will be built: settled once, by the checkpoint of a run, else by `weights`, else by the name.

        Args:
            ckpt_path: the checkpoint that the run goes on from or is measured with.

        Raises:
            UserError: weights that cannot be had, read, or be used for what the configuration demands.
        """
        if self._described is None:
            hparams = self.hparams
            name = hparams.architecture
            asked = {key: hparams[key] for key in ("image_size", "context_length", "activation")}
            asked = {key: value for key, value in asked.items() if value is not None}
            if ckpt_path is not None:
                theirs = weights.checkpoint_architecture(ckpt_path)
                if theirs is None:
                    raise UserError(NO_RUN)
                self._described = weights.under_demands(theirs, name, **asked)
            elif hparams.weights is not None:
                self._weights = weights.read_weights(weights.named(hparams.weights, name))
                self._described = weights.architecture_for(self._weights, name, **asked)
            else:
                self._described = architecture(name or DEFAULT_ARCHITECTURE).changed(**asked)
        return self._described

    def configure_model(self) -> None:
        """Build the model and load its weights, once; called by the Trainer before optimizers and wrapping."""
        if self.clip is not None:
            return
        hparams = self.hparams
        self.clip = create_model(
            self.described(None if self._trainer is None else self.trainer.ckpt_path),
            init=hparams.init,
            temperature_init=hparams.temperature_init,
            patch_dropout=hparams.patch_dropout,
            gradient_checkpointing=hparams.gradient_checkpointing,
        )
        self._refuse_other_data()
        if self._weights is not None:
            started, self._weights = self._weights, None
            resampled = weights.put_weights(self.clip, started, hparams.interpolate_positions)
            self.weights_source = started.provenance(hparams.weights, resampled)
            said = "".join(f"; {key} resampled from {old} to {new}" for key, (old, new) in resampled.items())
            rank_zero_info(f"Started from weights {hparams.weights}: {started.source}{said}.")
        mesh = self.device_mesh
        if mesh is not None:
            self._shard(mesh)
        if hparams.compile:
            compile_blocks(self.clip)

    def _refuse_other_data(self) -> None:
        """Refuse data that are prepared for another model; the command line makes them follow."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        ours = self.clip.architecture
        for setting in ("image_size", "interpolation", "context_length"):
            found = getattr(data, setting, getattr(ours, setting))
            if found != getattr(ours, setting):
                raise UserError(
                    f"The data's {setting} is {found}, and the model's {getattr(ours, setting)}: call "
                    "data.follow(task.described()) before the Trainer does anything with them."
                )

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
        return weights.description(self.clip.architecture) | {"weights_source": self.weights_source}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself; `RunFolder` adds the commit and the configuration."""
        checkpoint["workbench"] = {**checkpoint.get("workbench", {}), **self.metadata()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model before a single tensor is copied.

        Raises:
            UserError: the checkpoint is not ours, or its model differs from the configured one.
        """
        theirs = checkpoint.get("workbench")
        if not isinstance(theirs, dict):
            raise UserError(NO_RUN)
        self.configure_model()
        ours = self.metadata()
        different = [key for key in _IDENTITY if theirs.get(key, ours[key]) != ours[key]]
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
