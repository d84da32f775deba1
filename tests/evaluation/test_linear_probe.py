"""Against scikit-learn: the same weights, the same accuracy, and by the protocol the same strength."""

import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as Reference

from workbench.errors import UserError
from workbench.evaluation import logistic_regression
from workbench.evaluation.linear_probe import linear_probe, mean_per_class, top1
from workbench.evaluation.logistic_regression import Fit, LinearClassifier, LogisticRegression
from workbench.models import create_model


def digits(rows=600, classes=10):
    pixels, labels = load_digits(return_X_y=True)
    some = np.flatnonzero(labels < classes)[:rows]
    return torch.tensor(pixels[some]).float(), torch.tensor(labels[some])


def noisy(rows=400, width=12, classes=3, seed=0):
    """Classes that no plane divides, in features with a mean far from zero and directions of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    means = torch.randn(classes, width, generator=generator)
    features = torch.randn(rows, width, generator=generator) + 0.7 * means[labels]
    scales = torch.logspace(1, -2, width)
    return features * scales + 20 * scales, labels


@functools.cache
def encoded(name):
    """What a tiny CLIP with random weights makes of the digits, before the projection."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    pixels, labels = digits(200, classes=4)
    size = model.architecture.image_size
    images = torch.nn.functional.interpolate(pixels.view(-1, 1, 8, 8) / 16, (size, size)).expand(-1, 3, -1, -1)
    with torch.no_grad():
        return torch.cat([model.visual.pool(some) for some in images.split(50)]), labels


def reference(features, labels, strength, **options):
    options = {"solver": "newton-cholesky", "tol": 1e-15, "max_iter": 300} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Reference(C=1 / strength, **options).fit(features.double().numpy(), labels.numpy())


def error(classifier, model):
    """Return the relative errors of weights and bias; of two classes scikit-learn has the difference alone."""
    weight, bias = classifier.weight.double(), classifier.bias.double()
    theirs, intercept = torch.tensor(model.coef_), torch.tensor(model.intercept_)
    if len(theirs) == 1:
        weight, bias = weight.diff(dim=0), bias.diff(dim=0)
    else:
        intercept = intercept - intercept.mean()
    return float((weight - theirs).norm() / theirs.norm()), float((bias - intercept).norm() / intercept.norm())


DATA = {
    "digits": digits,
    "two classes": lambda: noisy(classes=2),
    "noisy": noisy,
    "more features than rows": lambda: tuple(part[:40] for part in noisy(width=60)),
    "tiny-vit": lambda: encoded("tiny-vit"),
    "tiny-rn": lambda: encoded("tiny-rn"),
}


@pytest.mark.parametrize("strength", [1e4, 1.0, 1e-2, 1e-6])
@pytest.mark.parametrize("data", DATA)
def test_the_solution_is_scikit_learns(data, strength):
    features, labels = DATA[data]()
    classes = int(labels.max()) + 1
    theirs = reference(features, labels, strength)
    single = LogisticRegression(features, labels, classes).fit(strength)
    double = LogisticRegression(features.double(), labels, classes).fit(strength, tolerance=1e-8)
    assert single.converged and double.converged
    assert single.classifier.weight.dtype == torch.float32 and double.classifier.weight.dtype == torch.float64
    assert error(single.classifier, theirs)[0] < 1e-3
    assert max(error(double.classifier, theirs)) < 1e-5
    assert abs(top1(single.classifier(features), labels) - theirs.score(features.numpy(), labels.numpy())) < 1e-3


def test_tolerance_bounds_the_error_of_the_weights():
    features, labels = digits()
    problem = LogisticRegression(features.double(), labels, 10)
    exact = problem.fit(0.1, tolerance=1e-10).classifier.weight
    for tolerance in (0.3, 1e-2, 1e-4):
        found = problem.fit(0.1, tolerance=tolerance)
        assert (found.classifier.weight - exact).norm() < tolerance * exact.norm()


def test_where_it_starts_and_how_it_is_cut_does_not_matter(monkeypatch):
    features, labels = digits()
    problem = LogisticRegression(features.double(), labels, 10)
    cold = problem.fit(0.1, tolerance=1e-9)
    start = LogisticRegression(features[:300].double(), labels[:300], 10).fit(10.0).classifier
    warm = problem.fit(0.1, start, tolerance=1e-9)
    assert warm.steps < cold.steps
    monkeypatch.setattr(logistic_regression, "_BLOCK", 70)  # seven rows of ten classes, and a rest
    cut = LogisticRegression(features.double(), labels, 10).fit(0.1, tolerance=1e-9)
    for other in (warm, cut):
        torch.testing.assert_close(other.classifier.weight, cold.classifier.weight, rtol=0, atol=1e-8)
        torch.testing.assert_close(other.classifier.bias, cold.classifier.bias, rtol=0, atol=1e-7)


def test_it_says_when_it_stopped_short(monkeypatch):
    features, labels = digits()
    monkeypatch.setattr(logistic_regression, "_MAX_STEPS", 1)
    assert not LogisticRegression(features, labels, 10).fit(0.1).converged
    assert not linear_probe((features[:400], labels[:400]), (features[400:], labels[400:]), 10).converged


def test_a_class_without_rows_never_wins():
    features, labels = noisy(classes=3)
    labels = labels * 2  # 0, 2 and 4 of six
    found = LogisticRegression(features, labels, 6).fit(1.0).classifier
    assert set(found(100 * torch.randn(50, 12)).argmax(dim=1).tolist()) <= {0, 2, 4}
    assert float(found(torch.zeros(1, 12))[0, 1::2].max()) < -1e30
    assert found.weight.isfinite().all() and found.bias.isfinite().all()  # or a checkpoint would be refused
    three = LogisticRegression(features, labels // 2, 3).fit(1.0).classifier
    assert torch.equal(found.weight[::2], three.weight)


def test_features_that_tell_nothing():
    labels = torch.tensor([0, 0, 0, 1])
    found = LogisticRegression(torch.ones(4, 3), labels, 2).fit(1.0)
    assert found.converged and float(found.classifier.weight.norm()) == 0
    shares = found.classifier(torch.ones(1, 3)).softmax(dim=1)
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25]]))


# The protocol


def literally(train, val, metric=lambda model, features, labels: (model.predict(features) == labels).mean(), **options):
    """Return the strength, the curve, and the classifier of the paper's protocol, with scikit-learn."""
    curve = {}

    def try_strength(place):
        model = reference(*train, 10 ** (place / 8), **options)
        curve[place] = metric(model, val[0].double().numpy(), val[1].numpy())

    def best():
        return max(curve, key=lambda place: (curve[place], place))

    for exponent in (-6, -4, -2, 0, 2, 4, 6):
        try_strength(8 * exponent)
    step = 16
    while step > 1:
        step //= 2
        peak = best()
        for place in (peak - step, peak + step):
            if -48 <= place <= 48 and place not in curve:
                try_strength(place)
    both = [torch.cat(parts) for parts in zip(train, val, strict=True)]
    return 10 ** (best() / 8), curve, reference(*both, 10 ** (best() / 8), **options)


@pytest.mark.parametrize("data", ["digits", "noisy", "two classes", "tiny-vit", "tiny-rn"])
def test_the_literal_protocol_chooses_the_same_strength(data):
    features, labels = (part[:320] for part in DATA[data]())
    cut = len(labels) * 5 // 8
    train, val = (features[:cut], labels[:cut]), (features[cut:], labels[cut:])
    strength, curve, model = literally(train, val)
    found = linear_probe(train, val, int(labels.max()) + 1)
    assert found.converged and found.strength == strength
    assert list(found.curve) == [10 ** (place / 8) for place in sorted(curve)]
    np.testing.assert_allclose(list(found.curve.values()), [curve[place] for place in sorted(curve)], atol=1e-12)
    assert found.validation == max(found.curve.values())
    assert error(found.classifier, model)[0] < 1e-3
    assert error(found.of_train, reference(*train, strength))[0] < 1e-3


def halves():
    features, labels = noisy(rows=200)
    return (features[:100], labels[:100]), (features[100:], labels[100:])


@pytest.mark.parametrize("exponent, wanted, fits", [(0.8, 10**0.75, 15), (-6, 1e-6, 11), (6, 1e6, 11), (1, 10, 15)])
def test_search_halves_the_bracket_to_eight_a_decade_and_stays_in_the_range(exponent, wanted, fits, monkeypatch):
    tried = []

    def fit(problem, strength, start=None, tolerance=None):
        tried.append(strength)
        return Fit(LinearClassifier(torch.zeros(3, 12), torch.zeros(3)), True, 0)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    found = linear_probe(*halves(), 3, metric=lambda scores, labels: -abs(np.log10(tried[-1]) - exponent))
    assert found.strength == tried[-1] == pytest.approx(wanted)
    assert len(found.curve) == len(tried) - 1 == fits
    assert min(tried) >= 1e-6 and max(tried) <= 1e6


def test_of_strengths_that_do_equally_well_it_takes_the_strongest():
    assert linear_probe(*halves(), 3, metric=lambda scores, labels: 0.5, tolerance=0.3).strength == 1e6


def test_the_metric_chooses():
    """One class has most rows, so that top-1 likes a penalty that knows nothing else."""
    features, labels = noisy(rows=600, seed=1)
    some = torch.cat([(labels == 0).nonzero()[:, 0], (labels > 0).nonzero()[:40, 0]])
    some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))]
    features, labels = features[some], labels[some]
    parts = (features[:100], labels[:100]), (features[100:], labels[100:])
    by_rows, by_classes = (linear_probe(*parts, 3, metric=metric) for metric in (top1, mean_per_class))
    assert by_rows.strength > by_classes.strength
    scores = by_classes.of_train(parts[1][0])
    right = scores.argmax(dim=1) == parts[1][1]
    assert by_classes.validation == pytest.approx(
        np.mean([float(right[parts[1][1] == label].float().mean()) for label in range(3)])
    )


def test_a_tie_is_no_hit():
    assert top1(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda features, labels: (features.index_fill(0, torch.tensor([3]), torch.nan), labels), "1 of 400 rows"),
        (lambda features, labels: (features, labels + 1), "from 0 to 2; these are from 1 to 3"),
        (lambda features, labels: (features, labels * 0), "two classes"),
        (lambda features, labels: (features[:0], labels[:0]), r"\[0, 12\]"),
        (lambda features, labels: (features, labels[:7]), r"\[7\]"),
    ],
)
def test_what_no_classifier_fits_is_refused(change, words):
    features, labels = change(*noisy())
    with pytest.raises(UserError, match=words):
        LogisticRegression(features, labels, 3)


def test_strength_and_validation_rows_are_looked_at():
    with pytest.raises(UserError, match="above 0"):
        LogisticRegression(*noisy(), 3).fit(0.0)
    train, (features, labels) = halves()
    with pytest.raises(UserError, match="not finite"):
        linear_probe(train, (features / 0, labels), 3)


# The features


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "timm/resnet10t"])
def test_what_is_pooled_is_what_the_projection_is_applied_to(name):
    torch.manual_seed(0)
    tower = create_model(name, image_size=64).eval().visual
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = tower.pool(images)
        project = tower.attnpool.c_proj if hasattr(tower, "attnpool") else tower.proj
        projected = project(pooled) if isinstance(project, torch.nn.Module) else pooled @ project
        assert torch.equal(projected, tower(images)) and pooled.shape == (2, tower.pooled_dim)
