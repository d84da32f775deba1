"""The text tower (Radford et al. 2021, section 2.4): a causal transformer read at the end-of-text token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.layers import LayerNorm, Transformer


def computed_length(longest: int, context_length: int, device_type: str) -> int:
    """Return how many tokens to compute for a longest text of `longest`, start and end included.

    On CUDA a multiple of 8: cuDNN plans its attention kernels anew for each length, in tens of milliseconds.
    """
    return min(-(-longest // 8) * 8, context_length) if device_type == "cuda" else longest


class TextTransformer(nn.Module):
    """The text tower. In OpenAI's state dict its parameters sit at the root, so `CLIP` inherits from it.

    Attributes:
        trim_text: compute only up to the longest end-of-text token of the batch. Exact, as no token sees what stands
            behind it; captions of 10 to 20 tokens then cost a quarter of 77.
    """

    def __init__(
        self,
        embed_dim: int,
        context_length: int,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        activation: str,
    ):
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, layers, heads, activation, causal=True)
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.trim_text = True

    @property
    def text_dtype(self) -> torch.dtype:
        """The type that the text tower computes in."""
        return self.text_projection.dtype

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode tokens [B, L] into un-normalised features [B, embed_dim].

        The end-of-text token is the one with the largest id. L may be shorter than the context length: a loader
        that trims its batches on the CPU (`tokenizer.trim`) spares the device the wait for their longest caption,
        which is why only batches of full width are trimmed here.

        Raises:
            ValueError: L exceeds the context length.
        """
        end = text.argmax(dim=-1)
        length = self._length(text.shape[1], end)
        text = F.pad(text, (0, length - text.shape[1]))  # or cut
        return self._encode(self.token_embedding(text), end)

    def encode_embedded_text(self, embedded: Tensor, end: Tensor) -> Tensor:
        """Encode what stands in the place of token embeddings [B, L, width], as `encode_text` does those of tokens.

        Args:
            embedded: vectors of the start token, the words and the end token; those behind the end take no part.
            end: [B], the position of each text's end token.

        Raises:
            ValueError: L exceeds the context length.
        """
        length = self._length(embedded.shape[1], end)
        return self._encode(F.pad(embedded, (0, 0, 0, length - embedded.shape[1])), end)  # or cut

    def _length(self, width: int, end: Tensor) -> int:
        """Return how many of a batch's columns to compute."""
        if width > self.context_length:
            raise ValueError(f"Texts of {width} tokens, but the context length is {self.context_length}.")
        if self.trim_text and width == self.context_length:
            width = int(end.max()) + 1
        return computed_length(width, self.context_length, end.device.type)

    def _encode(self, embedded: Tensor, end: Tensor) -> Tensor:
        x = embedded + self.positional_embedding[: embedded.shape[1]]
        x = self.transformer(x.to(self.text_dtype), end)
        return self.ln_final(x) @ self.text_projection
