"""Prompts whose words in front of the class name are learnt (CoOp, Zhou et al. 2022, arXiv 2109.01134, section 3.2).

Legend: C classes, M context vectors, L tokens, W width of the text tower.

A class's prompt is the start token, M context vectors, the tokens of its name and a full stop, and the end token. Where
the context starts from words, it is at first the prompt of these words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.tokenizer import EOT, SOT, tokenizer

CONTEXT_TOKENS = 16
_STD = 0.02
"""Of context vectors that start from no words, as in the paper's section 4.1."""


class PromptLearner(nn.Module):
    """The prompts of some classes, whose context vectors are its only parameter.

    Args:
        class_names: C names, one for each class.
        token_embedding: of the text tower, from which words are looked up.
        context_length: of the text tower.
        context_tokens: M, the number of context vectors; None takes 16, or the tokens of `words`.
        words: what the context starts from, such as `a photo of a`; None draws it from a normal distribution.
        class_specific: give each class a context of its own instead of one for all.

    Attributes:
        context: [M, W], or [C, M, W] of classes with their own.

    Raises:
        UserError: there is no context, or a prompt is longer than the context length.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        token_embedding: nn.Embedding,
        context_length: int,
        context_tokens: int | None = None,
        words: str | None = None,
        class_specific: bool = False,
    ):
        super().__init__()
        if words is not None and context_tokens is not None:
            raise UserError("Give context_tokens or context_words: words have as many vectors as they have tokens.")
        ids = None if words is None else tokenizer().encode(words)
        count = (CONTEXT_TOKENS if context_tokens is None else context_tokens) if ids is None else len(ids)
        if count < 1:
            raise UserError(f"The context has {count} tokens, so that there is nothing to learn; give it at least 1.")
        shape = (len(class_names), count) if class_specific else (count,)
        weight = token_embedding.weight.detach()
        if ids is None:
            context = torch.empty(*shape, weight.shape[1], dtype=weight.dtype).normal_(std=_STD)
        else:
            context = weight[ids].expand(*shape, -1).clone()
        self.context = nn.Parameter(context.to(weight.device))
        # Not of the state dict: they follow from the class names.
        self.register_buffer("tokens", _tokens(class_names, count, context_length), persistent=False)

    def forward(self, token_embedding: nn.Embedding) -> tuple[Tensor, Tensor]:
        """Return what `encode_embedded_text` takes: the prompts' vectors [C, L, W] and where each ends, [C]."""
        embedded = token_embedding(self.tokens)
        start, behind = embedded[:, :1], embedded[:, 1 + self.context.shape[-2] :]
        context = self.context.expand(len(self.tokens), -1, -1)
        return torch.cat([start, context, behind], dim=1), self.tokens.argmax(dim=-1)


def _tokens(class_names: Sequence[str], count: int, context_length: int) -> Tensor:
    """Return the prompts' tokens [C, L], padded to the longest, with zeros where the context goes."""
    rows = []
    for name in class_names:
        ids = tokenizer().encode(f"{name}.")
        row = [SOT, *[0] * count, *ids, EOT]
        if len(row) > context_length:
            raise UserError(
                f"The prompt of the class {name!r} has {len(row)} tokens, more than the context length of "
                f"{context_length}: start and end, {count} of context, {len(ids)} of the name and a full stop. Take at "
                f"most {max(0, context_length - 2 - len(ids))} context_tokens, or a shorter name (--data.class_names)."
            )
        rows.append(torch.tensor(row))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
