"""The Vision Transformer image tower (Dosovitskiy et al. 2020; Radford et al. 2021, section 2.4)."""

import torch
from torch import Tensor, nn

from workbench.models.architectures import ViTConfig
from workbench.models.layers import LayerNorm, Transformer


class VisionTransformer(nn.Module):
    """Patches, a class token, blocks, and a projection of the class token.

    Attributes:
        patch_dropout: share of patches left out of each training picture; the class token stays (Li et al. 2022,
            "FLIP", arXiv 2212.00794).
    """

    def __init__(self, config: ViTConfig, image_size: int, embed_dim: int, activation: str):
        super().__init__()
        self.grid = image_size // config.patch_size
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.positional_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, config.width))
        self.ln_pre = LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads, activation, causal=False)
        self.ln_post = LayerNorm(config.width)
        self.proj = nn.Parameter(torch.empty(config.width, embed_dim))
        self.patch_dropout = 0.0

    @property
    def dtype(self) -> torch.dtype:
        """The type that the tower computes in."""
        return self.conv1.weight.dtype

    @property
    def pooled_dim(self) -> int:
        """Number of the features before the projection."""
        return self.proj.shape[0]

    def draw_patches(self, pictures: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw which patches stay, [pictures, kept], on the tower's device and from its global state by default."""
        patches = self.grid**2
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        scores = torch.rand(pictures, patches, device=self.conv1.weight.device, generator=generator)
        return scores.topk(kept, dim=1).indices

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Map normalised images [B, 3, S, S] to un-normalised features [B, embed_dim]; see `pool` for the patches."""
        return self.pool(images, patches) @ self.proj

    def pool(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Map normalised images [B, 3, S, S] to the features before the projection, [B, width].

        Args:
            images: the pictures.
            patches: the patches that stay of each, see `draw_patches`; None draws them where patches are dropped.
        """
        x = self.conv1(images.to(self.dtype)).flatten(2).transpose(1, 2)
        token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([token, x], dim=1) + self.positional_embedding.to(x.dtype)
        if self.training and self.patch_dropout > 0:
            patches = self.draw_patches(len(x)) if patches is None else patches
            rows = torch.arange(len(x), device=x.device)[:, None]
            x = torch.cat([x[:, :1], x[rows, 1 + patches]], dim=1)
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return self.ln_post(self.transformer(self.ln_pre(x), first))
