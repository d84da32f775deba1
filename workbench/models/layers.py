"""Transformer layers shared by the image and the text tower.

Legend: B batch, L tokens, W width, H heads, D = W / H.

State-dict names are OpenAI's (openai/CLIP @ d05afc4): attn.in_proj_weight, attn.out_proj, ln_1, mlp.c_fc, mlp.c_proj,
ln_2. Attention runs in `scaled_dot_product_attention` with the causal flag: a dense mask would shut out the
flash kernels.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in fp32 when its input is half precision, returned in the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., W]."""
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU of OpenAI's weights (Hendrycks & Gimpel 2016, section 2).

    Written as SiLU of 1.702 x, a single kernel whose backward pass keeps one tensor instead of three.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return F.silu(x * 1.702) * (1 / 1.702)


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with one fused input projection; `causal` tokens see none behind them."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every token of [B, L, W]."""
        q, k, v = (self._split(part) for part in self.project(x, "qkv"))
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))

    def pooled(self, x: Tensor, position: Tensor) -> Tensor:
        """Attend from one token per row: [B, L, W] and its position [B] -> [B, 1, W]."""
        visible = None
        if self.causal:  # one row of the mask per caption, as each has its own position
            visible = (torch.arange(x.shape[1], device=x.device) <= position[:, None])[:, None, None]
        (q,), (k, v) = self.project(pick(x, position), "q"), self.project(x, "kv")
        attended = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v), attn_mask=visible)
        return self._merge(attended)

    def project(self, x: Tensor, parts: str) -> tuple[Tensor, ...]:
        """Project [B, L, W] to those of queries, keys and values that `parts` names: `qkv`, `q` or `kv`."""
        return fused_projection(x, self.in_proj_weight, self.in_proj_bias, parts).chunk(len(parts), dim=-1)

    def _split(self, x: Tensor) -> Tensor:  # [B, L, W] -> [B, H, L, D], a view
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:  # [B, H, L, D] -> [B, L, W]
        return self.out_proj(x.transpose(1, 2).flatten(-2))


def fused_projection(x: Tensor, weight: Tensor, bias: Tensor, parts: str) -> Tensor:
    """Project [B, L, W] by the rows of `parts`, neighbours among `qkv`, of weight [3 W, W]; [B, L, W len(parts)]."""
    if parts != "qkv":  # the gradient of a slice is a copy, so none is taken of the whole
        first, width = "qkv".index(parts), x.shape[-1]
        rows = slice(first * width, (first + len(parts)) * width)
        weight, bias = weight[rows], bias[rows]
    return F.linear(x, weight, bias)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm block: attention, then an MLP of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int, activation: str, causal: bool):
        super().__init__()
        self.attn = Attention(width, heads, causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=ACTIVATIONS[activation](),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, W] to [B, L, W]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def pooled(self, x: Tensor, position: Tensor) -> Tensor:
        """Map [B, L, W] to the output at one token per row, given by its position [B]; returns [B, W]."""
        token = pick(x, position) + self.attn.pooled(self.ln_1(x), position)
        return (token + self.mlp(self.ln_2(token))).squeeze(1)


def pick(x: Tensor, position: Tensor) -> Tensor:
    """Take the token at `position` [B] of each row of [B, L, W], as [B, 1, W]."""
    # Not len(x), which torch.export takes for a constant.
    return x[torch.arange(x.shape[0], device=x.device), position][:, None]


class Transformer(nn.Module):
    """A stack of blocks.

    Attributes:
        pooled_last_block: compute the last block for the pooled token alone. Exact, since nothing reads the others;
            saves 7 % of the training FLOPs of ViT-B/32.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(self, width: int, layers: int, heads: int, activation: str, causal: bool):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, activation, causal) for _ in range(layers))
        self.pooled_last_block = True
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map [B, L, W] to the output at token `position` [B] of each row, [B, W]."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = self._run(block, x)
        if self.pooled_last_block:
            return last.pooled(x, position)
        return pick(self._run(last, x), position).squeeze(1)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)
