"""CLIP: an image tower and a text tower that share a space (Radford et al. 2021)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.models.architectures import Architecture, ResNetConfig, ViTConfig, architecture
from workbench.models.initialization import initialize, rules
from workbench.models.layers import Transformer
from workbench.models.modified_resnet import AttentionPool2d, ModifiedResNet
from workbench.models.text_transformer import TextTransformer
from workbench.models.vision_transformer import VisionTransformer


class CLIP(TextTransformer):
    """Both towers. State-dict keys and shapes are those of OpenAI's checkpoints.

    Built empty: `create_model` also initialises.

    Attributes:
        visual: the image tower.
        logit_scale: scalar parameter, the logarithm of the multiplier of the cosine (1 / temperature).
        logit_bias: scalar parameter added to the logits, where the architecture has one. Frozen until
            `learn_logit_bias`, as the softmax loss cannot see it.
        architecture: what was built, changes included.
    """

    def __init__(self, architecture: Architecture):
        text = architecture.text
        super().__init__(
            architecture.embed_dim,
            architecture.context_length,
            architecture.vocab_size,
            text.width,
            text.heads,
            text.layers,
            architecture.activation,
        )
        self.architecture = architecture
        self.visual = _image_tower(architecture)
        # Where OpenAI's examples look for them.
        self.vocab_size, self.visual.input_resolution = architecture.vocab_size, architecture.image_size
        self.logit_scale = nn.Parameter(torch.empty(()))
        bias = nn.Parameter(torch.zeros(()), requires_grad=False) if architecture.logit_bias else None
        self.register_parameter("logit_bias", bias)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the image tower computes in, as OpenAI's `model.dtype`."""
        return self.visual.dtype

    def encode_image(self, image: Tensor, *options: Tensor) -> Tensor:
        """Encode normalised images [B, 3, S, S] into un-normalised features [B, embed_dim].

        A ViT also takes the patches to keep, see `VisionTransformer.forward`.
        """
        return self.visual(image, *options)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, scaled cosines, of images [N, 3, S, S] and tokens [M, L]: [N, M] and [M, N]."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.T
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return logits_per_image, logits_per_image.T

    def learn_logit_bias(self) -> bool:
        """Let `logit_bias` train, for the sigmoid loss; return whether it had to be added, as 0."""
        added = self.logit_bias is None
        if added:
            self.logit_bias = nn.Parameter(torch.zeros_like(self.logit_scale))
            self.architecture = replace(self.architecture, logit_bias=True)
        self.logit_bias.requires_grad_(True)
        return added

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks of both towers: the units to compile, shard or recompute."""
        image = self.visual.blocks() if isinstance(self.visual, ModifiedResNet) else []
        return image + [b for m in self.modules() if isinstance(m, Transformer) for b in m.resblocks]


def _image_tower(architecture: Architecture) -> nn.Module:
    vision, size, dim = architecture.vision, architecture.image_size, architecture.embed_dim
    if isinstance(vision, ViTConfig):
        return VisionTransformer(vision, size, dim, architecture.activation)
    if isinstance(vision, ResNetConfig):
        return ModifiedResNet(vision, size, dim)
    from workbench.models.timm_tower import TimmTower  # timm takes half a second to import

    return TimmTower(vision, size, dim)


def create_model(
    name: str | Architecture,
    *,
    init: str | Mapping[str, str] = "openai",
    temperature_init: float = 0.07,
    patch_dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    **changes: object,
) -> CLIP:
    """Build and initialise a CLIP; under `torch.device("meta")` it takes no memory.

    Args:
        name: of an architecture, `timm/<backbone>`, or an `Architecture`.
        init: preset of `workbench.models.initialization`, or a table tensor family -> preset.
        temperature_init: the temperature that `logit_scale` starts from.
        patch_dropout: share of patches that a ViT drops while training, in [0, 1).
        gradient_checkpointing: recompute each residual block in the backward pass.
        **changes: fields of `Architecture` to change, such as `image_size` or `activation`.

    Raises:
        UserError: an unknown name, preset or field, or an option that the image tower does not have.
    """
    described = (architecture(name) if isinstance(name, str) else name).changed(**changes)
    rules(init)  # a wrong preset is reported before gigabytes are drawn
    model = CLIP(described)
    initialize(model, init, temperature_init)
    if patch_dropout:
        if not isinstance(model.visual, VisionTransformer) or not 0 <= patch_dropout < 1:
            raise UserError(
                f"patch_dropout {patch_dropout} cannot be had with {described.name}: it is for ViTs, from 0 to below 1."
            )
        model.visual.patch_dropout = patch_dropout
    if gradient_checkpointing:
        _recompute_blocks(model)
    if isinstance(model.visual, ModifiedResNet):
        model.visual.to(memory_format=torch.channels_last)
    return model


def _recompute_blocks(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, Transformer | ModifiedResNet):
            module.gradient_checkpointing = True
        elif hasattr(module, "set_grad_checkpointing"):  # timm's own
            module.set_grad_checkpointing()


def set_shortcuts(model: CLIP, enabled: bool) -> None:
    """Switch all exact shortcuts on (as built) or off, for comparison with the plain form.

    They are attributes and can be set one by one: `CLIP.trim_text`, `Transformer.pooled_last_block`,
    `AttentionPool2d.single_query`, `ModifiedResNet.channels_last`.
    """
    model.trim_text = enabled
    for module in model.modules():
        if isinstance(module, Transformer):
            module.pooled_last_block = enabled
        elif isinstance(module, AttentionPool2d):
            module.single_query = enabled
        elif isinstance(module, ModifiedResNet):
            module.channels_last = enabled
            module.to(memory_format=torch.channels_last if enabled else torch.contiguous_format)


def compile_blocks(model: CLIP) -> None:
    """`torch.compile` each residual block in place.

    Regional: blocks of one kind share a graph, so twelve cost one compilation, and state-dict keys stay as they are.
    The last block of a transformer runs its pooled form, which stays uncompiled.
    """
    for block in model.blocks():
        block.compile()
