import pytest
import torch
from torch import nn

from workbench.chunking import encode_in_chunks


def test_dropout_is_replayed():
    """The recomputed forward pass draws the masks of the first, so gradients equal those without recomputation."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 4)).double()
    inputs = torch.randn(12, 6, dtype=torch.float64)
    target = torch.randn(12, 4, dtype=torch.float64)

    def gradients(encode):
        torch.manual_seed(7)
        tower.zero_grad()
        ((encode() - target) ** 2).sum().backward()
        return [p.grad.clone() for p in tower.parameters()]

    recomputed = gradients(lambda: encode_in_chunks(tower, inputs, chunk=5))
    stored = gradients(lambda: torch.cat([tower(part) for part in inputs.split(5)]))
    for ours, plain in zip(recomputed, stored, strict=True):
        assert torch.equal(ours, plain)
    other_masks = gradients(lambda: (torch.rand(1), encode_in_chunks(tower, inputs, chunk=5))[1])
    assert not torch.equal(other_masks[0], stored[0])


def test_batch_normalisation_counts_each_chunk_once():
    torch.manual_seed(0)
    inputs = torch.randn(8, 3, 4, 4)

    def run(encode):
        torch.manual_seed(1)
        tower = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
        encode(tower).sum().backward()
        return tower[1]

    chunked = run(lambda tower: encode_in_chunks(tower, inputs, chunk=4, module=tower))
    stored = run(lambda tower: torch.cat([tower(part) for part in inputs.split(4)]))
    torch.testing.assert_close(chunked.running_mean, stored.running_mean)
    torch.testing.assert_close(chunked.running_var, stored.running_var)
    assert int(chunked.num_batches_tracked) == int(stored.num_batches_tracked) == 2
    assert chunked.momentum == stored.momentum


@pytest.mark.parametrize("chunk", [None, 8, 100])
def test_one_chunk_does_not_recompute(chunk):
    calls = []

    def encode(part):
        calls.append(len(part))
        return part * 2

    inputs = torch.randn(8, 3, requires_grad=True)
    encode_in_chunks(encode, inputs, chunk=chunk).sum().backward()
    assert calls == [8]
