"""Zero-shot classification with prompt ensembling (Radford et al. 2021, section 3.1)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import UserError


@torch.no_grad()
def classifier(
    encode_text: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
) -> Tensor:
    """Return one normalised vector for each class: the mean of its prompts' normalised features, [C, D].

    Every distinct prompt is encoded once, in batches of similar length, which a text tower that computes only up
    to the longest text of its batch rewards.

    Args:
        encode_text: texts -> [B, D], un-normalised.
        class_names: C names.
        templates: prompts with `{}` where the name goes.
        batch_size: prompts encoded at a time.

    Raises:
        UserError: no class, or a template without `{}`.
    """
    if not class_names:
        raise UserError("Zero-shot classification needs class names, and there are none.")
    bad = [template for template in templates if template.count("{}") != 1]
    if bad or not templates:
        raise UserError(
            f"A template needs exactly one {{}} for the class name; {bad[0]!r} has not."
            if bad
            else "Zero-shot classification needs at least one template, such as 'a photo of a {}.'."
        )
    prompts = [[template.replace("{}", name) for template in templates] for name in class_names]
    distinct = sorted({prompt for row in prompts for prompt in row}, key=lambda prompt: (len(prompt), prompt))
    encoded = torch.cat(
        [
            F.normalize(encode_text(distinct[start : start + batch_size]).float(), dim=-1)
            for start in range(0, len(distinct), batch_size)
        ]
    )
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    means = torch.stack([encoded[[row_of[prompt] for prompt in row]].mean(dim=0) for row in prompts])
    return F.normalize(means, dim=-1)


def top_k_correct(features: Tensor, weights: Tensor, labels: Tensor, k: int) -> Tensor:
    """Tell for each row of [N, D] whether its class is among the k nearest of [C, D]; bool [N].

    A tie counts against the row, as in `retrieval.ranks`.
    """
    scores = F.normalize(features.float(), dim=-1) @ weights.T
    right = scores.gather(1, labels[:, None])
    return (scores >= right).sum(dim=1) - 1 < k
