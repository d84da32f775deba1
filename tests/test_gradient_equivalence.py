"""1 process == chunked == 2 processes == 2 processes chunked: both towers' gradients and the temperature's."""

import pytest
import torch

from workbench import distributed, gradient_equivalence, losses
from workbench.gradient_equivalence import LOSSES, PARTS, relative_errors


@pytest.mark.parametrize("architecture, loss", [*(("tiny-vit", loss) for loss in LOSSES), ("tiny-rn", "contrastive")])
def test_every_way_gives_the_same_gradient(architecture, loss):
    errors = relative_errors(architecture, pairs=16, processes=2, loss=loss)
    assert list(errors) == ["chunked", "2 processes", "2 processes, chunked"]
    for way, parts in errors.items():
        assert set(parts) == set(PARTS)
        for part, error in parts.items():
            assert error <= 1e-5, (way, part, error)


def test_a_loss_counted_once_per_chunk_is_noticed(monkeypatch):
    """The accident that the proof is for: every chunk has a loss of its own, so the temperature's gradient grows."""
    plain = gradient_equivalence.gradients("tiny-vit", 16, None)

    def forward(self, images, tokens, groups, patches):
        features = [
            (self.clip.encode_image(i, p), self.clip.encode_text(t))
            for i, p, t in zip(images.split(4), patches.split(4), tokens.split(4), strict=True)
        ]
        image, text = (torch.cat(part) for part in zip(*features, strict=True))
        scale = self.clip.logit_scale.exp()
        return sum(losses.contrastive(image, text, scale) for _ in range(4))

    monkeypatch.setattr(gradient_equivalence.ContrastiveStep, "forward", forward)
    wrong = gradient_equivalence.gradients("tiny-vit", 16, 4)
    ratio = float(wrong["logit_scale"] / plain["logit_scale"])
    assert ratio == pytest.approx(4.0, rel=1e-4)


def test_statistics_of_the_chunk_are_noticed(monkeypatch):
    """A ResNet whose statistics are not frozen has another gradient in chunks."""
    monkeypatch.setattr(gradient_equivalence, "freeze_statistics", lambda module: None)
    plain, chunked = (gradient_equivalence.gradients("tiny-rn", 16, chunk)["image tower"] for chunk in (None, 4))
    assert float((chunked - plain).norm() / plain.norm()) > 0.1


def test_one_process_needs_no_group():
    values = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_features(values) is values
    assert torch.equal(distributed.gather_ragged(values), values)
    assert not distributed.gather_ragged(values).requires_grad
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.sum_over_processes(values), values)
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
