import math

import pytest
import torch
from open_clip.loss import ClipLoss

from workbench import losses


def features(pairs=12, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(pairs, dim, generator=generator, dtype=dtype) for _ in range(2))


def naive(image, text, scale):
    """The paper's figure 3, one exponential at a time."""
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            logits = [scale * float(query @ key) / (float(query.norm()) * float(key.norm())) for key in keys]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return total / (2 * len(image))


def test_equals_the_naive_formula():
    image, text = features()
    loss = losses.contrastive(image, text, torch.tensor(14.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(naive(image, text, 14.0), rel=1e-12)


def test_equals_open_clip_with_gradients():
    image, text = (x.requires_grad_() for x in features(dtype=torch.float32))
    scale = torch.tensor(20.0, requires_grad=True)
    ours = torch.autograd.grad(losses.contrastive(image, text, scale), (image, text, scale))
    normalized = (torch.nn.functional.normalize(x, dim=-1) for x in (image, text))
    theirs = torch.autograd.grad(ClipLoss()(*normalized, scale), (image, text, scale))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_local_losses_average_to_the_whole():
    image, text = features()
    scale = torch.tensor(30.0, dtype=torch.float64)
    shares = [
        losses.contrastive(
            image[start : start + 4],
            text[start : start + 4],
            scale,
            all_image_features=image,
            all_text_features=text,
            offset=start,
        )
        for start in (0, 4, 8)
    ]
    assert float(sum(shares) / 3) == pytest.approx(float(losses.contrastive(image, text, scale)), rel=1e-12)


def test_knowing_nothing_scores_ln_n():
    same = torch.ones(32, 4)
    assert float(losses.contrastive(same, same, torch.tensor(100.0))) == pytest.approx(math.log(32), rel=1e-6)


def test_fp32_under_autocast():
    image, text = features(dtype=torch.float32)
    scale = torch.tensor(100.0)
    plain = losses.contrastive(image, text, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = losses.contrastive(image, text, scale)
    assert cast.dtype == torch.float32
    assert float(cast) == float(plain)


@pytest.mark.parametrize("block", [1, 5, 12, 100])
def test_blocks_equal_the_whole(block):
    image, text = features()
    scale = torch.tensor(50.0, dtype=torch.float64)
    assert float(losses.contrastive_in_blocks(image, text, scale, block)) == pytest.approx(
        float(losses.contrastive(image, text, scale)), rel=1e-12
    )
