"""The modified ResNet image tower (Radford et al. 2021, section 2.4).

Three differences from torchvision's: a stem of three convolutions with average pooling (He et al. 2018, ResNet-D),
average pooling before strided convolutions (Zhang 2019), and attention pooling instead of average pooling.
State-dict names are OpenAI's (openai/CLIP @ d05afc4, clip/model.py).
"""

from collections import OrderedDict
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.chunking import held_running_statistics
from workbench.models.architectures import ResNetConfig


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions added to their input; a stride is an average pool of its size."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int):
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(channels, out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, H] to [B, 4 planes, H / stride, H / stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class AttentionPool2d(nn.Module):
    """Attention from the mean of the feature map to all its positions (section 2.4).

    Attributes:
        single_query: project and attend from the mean alone. Exact, since nothing reads the other outputs; saves
            5 % of RN50's image FLOPs.
    """

    def __init__(self, grid: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, channels))
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        self.single_query = True

    def forward(self, x: Tensor) -> Tensor:
        """Pool [B, C, H, H] into [B, embed_dim]."""
        return self.c_proj(self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """Pool [B, C, H, H] into [B, C], what the projection `c_proj` is applied to."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        queries = x[:, :1] if self.single_query else x
        q, k, v = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.q_proj, queries), (self.k_proj, x), (self.v_proj, x))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)[:, 0]


class ModifiedResNet(nn.Module):
    """Stem, four stages, attention pooling.

    Attributes:
        channels_last: keep feature maps in NHWC order in memory, which convolution kernels prefer.
        gradient_checkpointing: recompute each block in the backward pass; running statistics are counted once.
    """

    def __init__(self, config: ResNetConfig, image_size: int, embed_dim: int):
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for stage, blocks in enumerate(config.layers, start=1):
            planes, layers = width * 2 ** (stage - 1), []
            for block in range(blocks):
                layers.append(Bottleneck(channels, planes, 2 if stage > 1 and block == 0 else 1))
                channels = planes * Bottleneck.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.attnpool = AttentionPool2d(image_size // 32, channels, config.heads, embed_dim)
        self.channels_last = True
        self.gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """The type that the tower computes in."""
        return self.conv1.weight.dtype

    @property
    def pooled_dim(self) -> int:
        """Number of the features before the projection."""
        return self.attnpool.c_proj.in_features

    def blocks(self) -> list[Bottleneck]:
        """Return the residual blocks in order."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to un-normalised features [B, embed_dim]."""
        return self.attnpool(self._feature_map(images))

    def pool(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to the features before the projection, [B, 32 width].

        The projection of a ResNet is the attention pool's `c_proj` (its author in openai/CLIP #51).
        """
        return self.attnpool.pool(self._feature_map(images))

    def _feature_map(self, images: Tensor) -> Tensor:
        """Return what is pooled, [B, 32 width, S / 32, S / 32]."""
        x = images.to(self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        x = self.avgpool(x)
        for block in self.blocks():
            x = self._run(block, x)
        return x

    def _run(self, block: Bottleneck, x: Tensor) -> Tensor:
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return block(x)
        return checkpoint(
            block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), held_running_statistics(block))
        )
