"""What every task shares: the CLIP model it wraps, the weights it starts from, and its checkpoint's metadata."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from workbench import preprocessing, weights
from workbench.errors import UserError
from workbench.models import CLIP, DEFAULT_ARCHITECTURE, Architecture, architecture, compile_blocks, create_model
from workbench.models.batch_norm import apply_policy
from workbench.models.lora import MARK, LoRA, add_lora, open_parameters
from workbench.optimization import ParameterRule
from workbench.weights import Weights

NO_RUN = (
    "The file given as --ckpt_path is not a checkpoint of a workbench run; to start from other weights use "
    "--model.init_args.weights."
)
_IDENTITY = (
    *("architecture", "activation", "embed_dim", "image_size", "context_length", "tokenizer"),
    *("vision", "text", "mean", "std", "interpolation", "logit_bias", "lora"),
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
        batch_norm: whose statistics a ResNet normalises with in training: `frozen`, those it has, which then never
            change (gains and biases still train unless a rule freezes them), `batch`, those of each process's batch, or
            `synchronised`, those of all processes' batches. Null is `frozen` with `weights` or `lora`, else
            `synchronised`, which on one process is its batch. Towers without batch normalisation refuse it.
        compile: `torch.compile` each block in place; pays on a GPU, and needs a C++ compiler on a CPU.
        lora: train low-rank adapters alone (Hu et al. 2021), see `workbench.models.lora.LoRA`; `{}` takes its defaults.
            The base is frozen, and the temperature with it; a row of `parameter_rules` whose `lr` is for a frozen
            parameter and for none of the adapter opens it. Checkpoints hold what is trained, and the hash of the
            `weights`, which they need again; without `weights` they hold everything.
    """

    parameter_rules: Sequence[ParameterRule] = ()
    """What trains how, in tasks that train."""

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
        batch_norm: str | None = None,
        compile: bool = False,
        lora: LoRA | None = None,
    ):
        super().__init__()
        # Of subclasses too. The optimizer and the rules would not load with weights_only=True; config.yaml has them.
        self.save_hyperparameters(ignore=["optimizer", "parameter_rules", "lora", "distillation"])
        self.clip: CLIP | None = None
        self.chance: dict[str, float] = {}
        self.weights_source: dict[str, Any] | None = None
        self._described: Architecture | None = None
        self._weights: Weights | None = None
        self.lora = lora
        self._base_sha256: str | None = None

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
                if self.lora is not None and hparams.weights is not None:  # the checkpoint has them not
                    self._weights = weights.read_weights(weights.named(hparams.weights, name))
                theirs = weights.checkpoint_architecture(ckpt_path, self._weights)
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
            if self.lora is not None:
                self._base_sha256 = weights.tensors_sha256(self.clip.state_dict())
        self._settle_batch_norm()
        if self.lora is not None:
            self._adapt(self.lora)
        mesh = self.device_mesh
        if mesh is not None:
            self._shard(mesh)
        if hparams.compile:
            compile_blocks(self.clip)

    def _settle_batch_norm(self) -> None:
        held = self.hparams.weights is not None or self.lora is not None
        policy = apply_policy(self.clip, self.hparams.batch_norm, "frozen" if held else "synchronised")
        if self.lora is not None and policy not in (None, "frozen"):
            raise UserError(f"batch_norm is {policy!r}, and lora freezes the base with its statistics; leave it out.")
        if policy == "frozen" and self.hparams.batch_norm is None:
            rank_zero_info(
                "Batch normalisation keeps the statistics that it has; --model.init_args.batch_norm synchronised lets "
                "them follow the data."
            )

    def _adapt(self, lora: LoRA) -> None:
        """Freeze the model and add the adapter, which checkpoints then hold alone."""
        add_lora(self.clip, lora)
        open_parameters(self.clip, self.parameter_rules)
        self.strict_loading = self._base_sha256 is None
        count = {name: parameter.numel() for name, parameter in self.clip.named_parameters()}
        trained = sum(count[name] for name, parameter in self.clip.named_parameters() if parameter.requires_grad)
        rank_zero_info(
            f"LoRA of rank {lora.rank}: {trained:,} of {sum(count.values()):,} parameters can train "
            f"({trained / sum(count.values()):.2%}), the others are frozen."
        )

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

    def refuse_sharding(self) -> None:
        """Refuse to be sharded: for tasks with more than `clip`, which is what `_shard` knows.

        Raises:
            UserError: the strategy shards the model.
        """
        if self.device_mesh is not None:
            raise UserError(
                f"{type(self).__name__} does not shard its model over processes; run it without a "
                "ModelParallelStrategy, for example with --config lightning_configs/ddp.yaml."
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
        about = weights.description(self.clip.architecture) | {"weights_source": self.weights_source}
        return about | ({} if self.lora is None else {"lora": asdict(self.lora)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself; `RunFolder` adds the commit and the configuration."""
        checkpoint["workbench"] = {**checkpoint.get("workbench", {}), **self.metadata()}
        if self._base_sha256 is not None:
            checkpoint["workbench"]["base_sha256"] = self._base_sha256
            beneath = self._beneath()
            checkpoint["state_dict"] = {k: value for k, value in checkpoint["state_dict"].items() if k not in beneath}

    def _beneath(self) -> set[str]:
        """Return the keys that an adapter's checkpoint leaves to its base: of parameters that nothing has changed."""
        return {
            f"clip.{name}"
            for name, parameter in self.clip.named_parameters()
            # Frozen, temperature and bias may still follow a schedule or a loss.
            if not (parameter.requires_grad or MARK in name or name in ("logit_scale", "logit_bias"))
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model before a single tensor is copied.

        Raises:
            UserError: the checkpoint is not ours, or its model differs from the configured one.
        """
        theirs = checkpoint.get("workbench")
        if not isinstance(theirs, dict):
            raise UserError(NO_RUN)
        self.configure_model()
        ours, theirs = ({"lora": None, **about} for about in (self.metadata(), theirs))
        different = [key for key in _IDENTITY if theirs.get(key, ours[key]) != ours[key]]
        if different:
            said = "; ".join(
                f"{key} {theirs.get(key)} in the checkpoint, {ours[key]} in the configuration" for key in different
            )
            raise UserError(
                f"--ckpt_path holds another model: {said}. Resume with the config.yaml of the checkpoint's "
                "own run folder, or start a new run with --model.init_args.weights."
            )
        keys = (self.state_dict(), checkpoint["state_dict"])
        here, there = ({key.partition(".")[0] for key in each} for each in keys)
        if here != there:
            raise UserError(
                f"--ckpt_path is of a run of another task: it holds {', '.join(sorted(there))}, and "
                f"{type(self).__name__} has {', '.join(sorted(here))}. Start from its weights with "
                "--model.init_args.weights."
            )
        if self._base_sha256 is None:
            self.weights_source = theirs.get("weights_source")
        if self.lora is not None:
            weights.refuse_other_base(self._base_sha256, theirs.get("base_sha256"), f"weights {self.hparams.weights}")
            self._refuse_other_parts(checkpoint["state_dict"])

    def _refuse_other_parts(self, state_dict: dict[str, Tensor]) -> None:
        """Refuse an adapter's checkpoint that lacks something or has more, which loading would pass over."""
        wanted = set(self.state_dict()) - (set() if self._base_sha256 is None else self._beneath())
        other = sorted(wanted ^ state_dict.keys())
        if other:
            raise UserError(
                f"--ckpt_path is of a run that trained other parameters: only one of the two has {', '.join(other[:3])}"
                "; take the config.yaml of its own run folder, whose parameter_rules say what was open."
            )

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float) -> None:
        """Keep exp(logit_scale) at or below `maximum` (100 in the paper, section 2.5)."""
        logit_scale = self.clip.logit_scale
        if not logit_scale.requires_grad and self.hparams.get("temperature_end") is None:
            return  # frozen to the last bit: OpenAI's, stored in fp16, is a hair above 100
        logit_scale.clamp_(max=torch.as_tensor(maximum).log().item())
