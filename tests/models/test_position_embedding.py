import pytest
import torch

from workbench.models import create_model
from workbench.models.position_embedding import fit, interpolate


def test_same_grid_is_the_same_tensor():
    embedding = torch.randn(1 + 49, 8)
    assert interpolate(embedding, 7) is embedding


def test_first_row_and_constants_stay():
    embedding = torch.cat([torch.randn(1, 8), torch.full((49, 8), 3.0)]).double()
    found = interpolate(embedding, 10)
    assert found.shape == (101, 8) and found.dtype == torch.float64
    assert torch.equal(found[:1], embedding[:1])
    torch.testing.assert_close(found[1:], torch.full((100, 8), 3.0, dtype=torch.float64), rtol=0, atol=1e-5)


def test_keeps_the_orientation():
    """A ramp along x stays one along x: rows and columns are not exchanged."""
    ramp = torch.arange(6.0).expand(6, 6).reshape(36, 1)
    grid = interpolate(torch.cat([torch.zeros(1, 1), ramp]), 12)[1:].view(12, 12)
    assert bool((grid[:, 1:] >= grid[:, :-1]).all())
    torch.testing.assert_close(grid, grid[:1].expand(12, 12))


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_weights_of_another_size_fit(name):
    small, large = create_model(name), create_model(name, image_size=64)
    state = small.state_dict()
    changed = fit(state, large)
    assert list(changed.values()) == [(4, 8) if name == "tiny-vit" else (1, 2)]
    large.load_state_dict(state)
    same = small.state_dict()
    assert fit(same, create_model(name)) == {}


def test_no_square():
    with pytest.raises(ValueError, match="no square"):
        interpolate(torch.randn(8, 4), 3)
