"""Any timm backbone as image tower, with our projection into the shared space."""

import timm
import torch
from torch import Tensor, nn

from workbench.models.architectures import TimmConfig


class TimmTower(nn.Module):
    """`trunk`, the backbone with its own pooling and no classifier, and `proj`, a linear map without bias.

    The backbone keeps timm's initialisation.
    """

    def __init__(self, config: TimmConfig, image_size: int, embed_dim: int):
        super().__init__()
        options = {"pretrained": False, "num_classes": 0}
        try:
            # Backbones with position embeddings are built for a size; the others take any, and refuse the option.
            self.trunk = timm.create_model(config.name, img_size=image_size, **options)
        except TypeError:
            self.trunk = timm.create_model(config.name, **options)
        # Mobile backbones widen once more behind the pooling, so what comes out is not their `num_features`.
        width = getattr(self.trunk, "head_hidden_size", self.trunk.num_features)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the tower computes in."""
        return self.proj.weight.dtype

    @property
    def pooled_dim(self) -> int:
        """Number of the features before the projection."""
        return self.proj.in_features

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to un-normalised features [B, embed_dim]."""
        return self.proj(self.pool(images))

    def pool(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to the features before the projection, [B, width of the backbone]."""
        return self.trunk(images.to(self.dtype))
