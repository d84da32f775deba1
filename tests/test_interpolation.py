"""Weights between weights: exact at the ends, right in between, and refused where nothing lies between."""

import weakref
from fractions import Fraction

import pytest
import torch
from torch import nn

from workbench import interpolation
from workbench.errors import UserError
from workbench.interpolation import Soup, greedy_soup, interpolate, interpolate_into, uniform_soup
from workbench.models import architecture, create_model


def drawn(seed, name="tiny-rn"):
    """A state dict with values of its own in every tensor, BatchNorm's statistics included."""
    torch.manual_seed(seed)
    state = create_model(name, init="pytorch", vocab_size=512).state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_()
        else:
            value.fill_(10 * seed)
    return state


def same_bits(first, second):
    def bits(value):
        return value.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[value.element_size()])

    return first.keys() == second.keys() and all(bits(value).equal(bits(second[key])) for key, value in first.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_ends_are_the_ends_bit_for_bit(dtype):
    values = torch.tensor([0.0, -0.0, 1e-40, -3.7, 6e4, float("inf")], dtype=torch.float64).to(dtype)
    start = {"a": values.clone(), "steps": torch.tensor(3)}
    end = {"a": values.flip(0).clone(), "steps": torch.tensor(5)}
    assert same_bits(interpolate(start, end, 0.0), start) and same_bits(interpolate(start, end, 1.0), end)
    assert interpolate(start, end, 1.0)["a"].data_ptr() != end["a"].data_ptr(), "a copy"


def test_ends_of_a_whole_model_and_into_a_module():
    start, end = drawn(1), drawn(2)
    model = create_model("tiny-rn", vocab_size=512)
    for alpha, expected in ((0.0, start), (1.0, end), (0.3, interpolate(start, end, 0.3))):
        interpolate_into(model, start, end, alpha)
        assert same_bits(model.state_dict(), expected)
    assert not same_bits(model.state_dict(), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_equal_stays_as_it_is(dtype):
    """A frozen tower is not disturbed by rounding."""
    value = {"a": torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=dtype)}
    for alpha in (0.1, 1 / 3, 0.7, 0.9):
        assert same_bits(interpolate(value, value, alpha), value)


def test_known_answer_of_a_linear_model():
    """What a linear map computes is interpolated as its weights are."""
    start, end = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    between = nn.Linear(3, 2).double()
    between.load_state_dict(interpolate(start.state_dict(), end.state_dict(), 0.25))
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(between(x), 0.75 * start(x) + 0.25 * end(x), rtol=0, atol=1e-14)
    halves = interpolate({"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([2.0, 6.0])}, 0.25)
    assert halves["w"].tolist() == [1.25, 0.0]


def test_rounded_once():
    """To the fp32 number that is nearest to the exact result, computed in fractions."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(2000, generator=generator) for _ in range(2))
    alpha = Fraction(0.3)
    pairs = zip(start.tolist(), end.tolist(), strict=True)
    exact = [float((1 - alpha) * Fraction(one) + alpha * Fraction(other)) for one, other in pairs]
    found = interpolate({"a": start}, {"a": end}, 0.3)["a"]
    assert found.equal(torch.tensor(exact, dtype=torch.float64).float())
    assert (torch.lerp(start, end, 0.3) != found).float().mean() > 0.1, "fp32 rounds several times"


def test_batch_normalisation_and_temperature():
    """Statistics are interpolated like weights, so that variances stay positive; a counter is the end's."""
    start, end = drawn(1), drawn(2)
    found = interpolate(start, end, 0.25)
    for key in ("visual.bn1.running_mean", "visual.bn1.running_var", "logit_scale"):
        torch.testing.assert_close(found[key], 0.75 * start[key] + 0.25 * end[key])
    assert all(bool((value > 0).all()) for key, value in found.items() if key.endswith("running_var"))
    counters = [key for key in found if key.endswith("num_batches_tracked")]
    assert counters and all(found[key] == 20 and found[key].dtype == torch.int64 for key in counters)


def test_alphas():
    assert interpolation.alphas(11) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert interpolation.alphas(2) == [0.0, 1.0]
    with pytest.raises(UserError, match="alphas is 1"):
        interpolation.alphas(1)
    with pytest.raises(UserError, match=r"alpha is 1\.1"):
        interpolate({}, {}, 1.1)


@pytest.mark.parametrize(
    "field, change",
    [
        ("activation", {"activation": "gelu"}),
        ("mean", {"mean": (0.5, 0.5, 0.5)}),
        ("interpolation", {"interpolation": "bilinear"}),
        ("image_size", {"image_size": 64}),
        ("context_length", {"context_length": 20}),
        ("embed_dim", {"embed_dim": 16}),
        ("logit_bias", {"logit_bias": True}),
        ("vision", {"vision": architecture("tiny-rn").vision}),
    ],
)
def test_other_models_are_refused_in_one_sentence(field, change):
    ours = architecture("tiny-vit")
    with pytest.raises(UserError, match=f"one and two are different models.*: {field} is ") as found:
        interpolation.refuse_other_model(ours, ours.changed(**change), ("one", "two"))
    assert str(found.value).count(". ") == 0 and str(found.value).endswith(".")


def test_what_models_are_called_does_not_matter():
    ours = architecture("tiny-vit")
    interpolation.refuse_other_model(ours, ours.changed(name="another"), ("one", "two"))


@pytest.mark.parametrize(
    "other, said",
    [
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "only one of them has b"),
        ({}, "only one of them has a"),
        ({"a": torch.zeros(3)}, r"a is \(2,\) float32 in one and \(3,\) float32"),
        ({"a": torch.zeros(2).double()}, r"a is \(2,\) float32 in one and \(2,\) float64"),
    ],
)
def test_other_tensors_are_refused(other, said):
    ours = {"a": torch.zeros(2)}
    with pytest.raises(UserError, match=said):
        interpolate(ours, other, 0.5)
    soup = Soup()
    soup.add(ours)
    for stir in (soup.add, soup.mean_with):
        with pytest.raises(UserError, match=said):
            stir(other)
    assert soup.count == 1 and same_bits(soup.mean(), ours)


def test_a_module_of_another_model_is_left_alone():
    model, state = create_model("tiny-vit"), drawn(1)
    before = interpolation.snapshot(model)
    with pytest.raises(UserError, match="different models"):
        interpolate_into(model, state, state, 0.5)
    assert same_bits(model.state_dict(), before)


def test_numbers_that_are_none_are_refused():
    state = drawn(1)
    interpolation.refuse_not_finite(state, "it")
    state["visual.bn1.running_var"][0] = float("nan")
    with pytest.raises(UserError, match=r"it: its visual\.bn1\.running_var has numbers that are not finite"):
        interpolation.refuse_not_finite(state, "it")


def test_uniform_soup_is_the_mean_in_fp64():
    states = [drawn(seed) for seed in range(1, 8)]
    for state, value in zip(states, (1e8, *range(1, 6), -1e8), strict=True):
        state["logit_scale"].fill_(value)  # fp32 would lose the small ones
    found = uniform_soup(iter(states))
    for key, value in found.items():
        if value.is_floating_point():
            expected = torch.stack([state[key].double() for state in states]).mean(dim=0)
            torch.testing.assert_close(value, expected.float(), rtol=1e-7, atol=0)
        else:
            assert value == 70, "the largest"
        assert value.dtype == states[0][key].dtype
    assert float(found["logit_scale"]) == pytest.approx(15 / 7, rel=1e-7)
    assert float(sum(state["logit_scale"] for state in states) / 7) < 1.2
    assert same_bits(uniform_soup(states[:1]), states[0])


def test_uniform_soup_holds_one_model_at_a_time():
    seen = []

    def models():
        for number in range(5):
            assert all(each() is None for each in seen[:-1]), "models of before are still in memory"
            value = torch.full((4,), float(number))
            seen.append(weakref.ref(value))
            yield {"a": value}
            del value

    assert uniform_soup(models())["a"].tolist() == [2.0] * 4


def test_no_soup_without_models():
    with pytest.raises(UserError, match="at least one model"):
        uniform_soup([])


def planted(values, evaluate):
    """Models of one number each, whose scores are given by it."""
    models = [lambda value=value: {"a": torch.tensor([value])} for value in values]
    return greedy_soup(models, [evaluate(value) for value in values], lambda state: evaluate(float(state["a"])))


def test_greedy_soup_of_planted_scores():
    """The nearer to 10 the better: 9 comes first, 12 makes it 10.5, 7 then 9.33 (worse), and 4 worse still."""
    mean, kept, score = planted([4.0, 12.0, 9.0, 7.0], lambda value: -abs(value - 10))
    assert kept == [2, 1] and float(mean["a"]) == 10.5 and score == -0.5


def test_greedy_soup_takes_what_does_not_lower_the_score():
    _, kept, score = planted([1.0, 2.0, 3.0], lambda value: 0.5)
    assert kept == [0, 1, 2] and score == 0.5, "equal ones stay, in the order given"
    _, kept, score = planted([3.0, 1.0], lambda value: value)
    assert kept == [0] and score == 3.0


def test_greedy_soup_is_the_mean_of_what_was_kept():
    states = [drawn(seed) for seed in (1, 2, 3)]
    scores = iter([0.9, 0.1])  # with the second, with the third
    mean, kept, _ = greedy_soup([lambda s=s: s for s in states], [0.8, 0.7, 0.6], lambda state: next(scores))
    assert kept == [0, 1] and same_bits(mean, uniform_soup(states[:2]))
