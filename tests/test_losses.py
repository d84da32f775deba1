import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

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
    assert float(losses.contrastive_in_blocks(image, text, scale, block=block)) == pytest.approx(
        float(losses.contrastive(image, text, scale)), rel=1e-12
    )


GROUPS = torch.tensor([0, 1, 0, 2, 3, 1, 0, 4, 5, 2, 6, 7])


def test_multi_positive_equals_the_naive_formula():
    image, text = features()
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            logits = [14.0 * float(query @ key) / (float(query.norm()) * float(key.norm())) for key in keys]
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            right = [j for j in range(len(keys)) if GROUPS[j] == GROUPS[i]]
            total += sum(log_sum - logits[j] for j in right) / len(right)
    loss = losses.multi_positive(image, text, torch.tensor(14.0, dtype=torch.float64), GROUPS)
    assert float(loss) == pytest.approx(total / (2 * len(image)), rel=1e-12)


def test_multi_positive_equals_the_plain_loss_where_every_positive_is_unique():
    scale = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    inputs = (*(x.requires_grad_() for x in features()), scale)
    groups = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(0))
    ours, plain = losses.multi_positive(*inputs, groups), losses.contrastive(*inputs)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_local_multi_positive_losses_average_to_the_whole():
    image, text = features()
    scale = torch.tensor(30.0, dtype=torch.float64)
    everyone = {"all_image_features": image, "all_text_features": text, "all_groups": GROUPS}
    shares = [
        losses.multi_positive(image[rows], text[rows], scale, GROUPS[rows], **everyone)
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    whole = losses.multi_positive(image, text, scale, GROUPS)
    assert float(sum(shares) / 3) == pytest.approx(float(whole), rel=1e-12)
    least = [losses.least(GROUPS[rows], GROUPS) for rows in (slice(0, 6), slice(6, 12))]
    assert float(sum(least) / 2) == pytest.approx(float(losses.least(GROUPS)))


def test_multi_positive_cannot_go_below_its_least_and_reaches_it():
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    one_hot = torch.eye(3, dtype=torch.float64)[groups]
    loss = losses.multi_positive(one_hot, one_hot, torch.tensor(200.0, dtype=torch.float64), groups)
    assert float(loss) == pytest.approx((2 * math.log(2) + 3 * math.log(3)) / 6, rel=1e-6)
    assert float(losses.least(groups)) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("block", [1, 5, 100])
def test_blocks_with_groups_equal_the_whole(block):
    image, text = features()
    scale = torch.tensor(50.0, dtype=torch.float64)
    found = losses.contrastive_in_blocks(image, text, scale, GROUPS, block)
    assert float(found) == pytest.approx(float(losses.multi_positive(image, text, scale, GROUPS)), rel=1e-12)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_sigmoid_equals_the_naive_formula(groups):
    image, text = features()
    scale, bias = 12.0, -2.5
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            logit = scale * float(torch.cosine_similarity(image[i], text[j], dim=0)) + bias
            right = i == j if groups is None else bool(groups[i] == groups[j])
            total -= math.log(1 / (1 + math.exp(-logit if right else logit)))
    scalars = torch.tensor([scale, bias], dtype=torch.float64)
    loss = losses.sigmoid(image, text, *scalars, groups=groups)
    assert float(loss) == pytest.approx(total / len(image), rel=1e-12)
    shares = [
        losses.sigmoid(
            image[rows],
            text[rows],
            *scalars,
            all_text_features=text,
            groups=None if groups is None else groups[rows],
            all_groups=groups,
            offset=rows.start,
        )
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    assert float(sum(shares) / 3) == pytest.approx(float(loss), rel=1e-12)


def test_sigmoid_equals_open_clip_with_gradients():
    inputs = [*(x.requires_grad_() for x in features(dtype=torch.float32)), torch.tensor(20.0), torch.tensor(-3.0)]
    inputs = [x.requires_grad_() for x in inputs]
    ours = torch.autograd.grad(losses.sigmoid(*inputs), inputs)
    normalized = (torch.nn.functional.normalize(x, dim=-1) for x in inputs[:2])
    theirs = torch.autograd.grad(SigLipLoss()(*normalized, *inputs[2:]), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_bias_starts_where_the_sigmoid_loss_is_lowest():
    image, text = features()
    for scale in (10.0, 100.0):
        scale = torch.tensor(scale, dtype=torch.float64)
        bias = torch.tensor(losses.starting_bias(image, text, scale), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(losses.sigmoid(image, text, scale, bias), bias)
        assert abs(float(gradient)) < 1e-9
    knows_nothing = torch.eye(512, dtype=torch.float64)
    bias = losses.starting_bias(knows_nothing[:256], knows_nothing[256:], torch.tensor(10.0))
    assert bias == pytest.approx(-math.log(255), rel=1e-9)
    loss = losses.sigmoid(knows_nothing[:256], knows_nothing[256:], torch.tensor(10.0), torch.tensor(bias))
    assert float(loss) == pytest.approx(losses.sigmoid_chance(256), rel=1e-6)


def test_distillation_of_logits_is_the_divergence_of_both_directions():
    student, teacher = [features(seed=seed) for seed in (0, 1)]
    student, teacher = list(student), list(teacher)
    scales = torch.tensor([9.0, 20.0], dtype=torch.float64)
    loss = losses.logit_distillation(*student, scales[0], *teacher, scales[1])
    expected = 0.0
    for i in range(12):
        for first, second in ((0, 1), (1, 0)):
            ours, theirs = (
                (scale * torch.cosine_similarity(side[first][i : i + 1], side[second])).softmax(0)
                for side, scale in ((student, scales[0]), (teacher, scales[1]))
            )
            expected += float((theirs * (theirs / ours).log()).sum())
    assert float(loss) == pytest.approx(expected / 24, rel=1e-10)
    assert float(losses.logit_distillation(*student, scales[0], *student, scales[0])) == pytest.approx(0, abs=1e-12)
    shares = [
        losses.logit_distillation(
            *(side[rows] for side in student),
            scales[0],
            *(side[rows] for side in teacher),
            scales[1],
            all_image_features=student[0],
            all_text_features=student[1],
            all_teacher_image_features=teacher[0],
            all_teacher_text_features=teacher[1],
        )
        for rows in (slice(0, 6), slice(6, 12))
    ]
    assert float(sum(shares) / 2) == pytest.approx(float(loss), rel=1e-12)


def test_distillation_of_features_is_one_minus_the_cosine():
    ours, theirs = features()
    expected = 1 - torch.cosine_similarity(ours, theirs).mean()
    assert float(losses.feature_distillation(ours, theirs)) == pytest.approx(float(expected), rel=1e-12)
    assert float(losses.feature_distillation(ours, 3 * ours)) == pytest.approx(0, abs=1e-12)


def test_with_one_caption_for_each_class_the_plain_loss_is_the_multi_positive_one():
    """So with a single template it does not matter whether pairs of a class are positives or negatives."""
    image, text = features()
    text = text[GROUPS]
    scale = torch.tensor(14.0, dtype=torch.float64)
    plain = losses.contrastive(image, text, scale)
    assert float(losses.multi_positive(image, text, scale, GROUPS)) == pytest.approx(float(plain), rel=1e-12)
