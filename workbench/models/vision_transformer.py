"""The Vision Transformer image tower (Dosovitskiy et al. 2020; Radford et al. 2021, section 2.4)."""

import torch
from torch import Tensor, nn

from workbench.models.architectures import ViTConfig
from workbench.models.layers import LayerNorm, Transformer


class VisionTransformer(nn.Module):
    """Patches, a class token, blocks, and a projection of the class token.

    Attributes:
        patch_dropout: share of patches left out of each training picture, drawn on the picture's device; the class
            token stays (Li et al. 2022, "FLIP", arXiv 2212.00794).
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

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to un-normalised features [B, embed_dim]."""
        patches = self.conv1(images.to(self.dtype)).flatten(2).transpose(1, 2)
        token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([token, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        if self.training and self.patch_dropout > 0:
            x = self._drop_patches(x)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.ln_post(self.transformer(self.ln_pre(x), first)) @ self.proj

    def _drop_patches(self, x: Tensor) -> Tensor:  # [B, 1 + N, W] -> [B, 1 + kept, W]
        patches = x.shape[1] - 1
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        chosen = torch.rand(len(x), patches, device=x.device).topk(kept, dim=1).indices
        rows = torch.arange(len(x), device=x.device)[:, None]
        return torch.cat([x[:, :1], x[rows, 1 + chosen]], dim=1)
