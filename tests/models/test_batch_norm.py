"""Whose statistics batch normalisation uses: frozen ones never change, synchronised ones are those of one process."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from workbench.chunking import encode_in_chunks
from workbench.errors import UserError
from workbench.models import create_model
from workbench.models.batch_norm import _Normalise, apply_policy, freeze_statistics, synchronise

ROWS = (5, 3)
"""Of the two processes."""


def tower():
    """Layers of every kind, in float64; the second has no gains, the third has timm's activation."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False)
    )
    layers.extend([BatchNormAct2d(4, momentum=None), nn.Flatten(), nn.Linear(4 * 16, 2), nn.BatchNorm1d(2)])
    for parameter in layers.parameters():
        nn.init.normal_(parameter, 0.5, 1.0)
    return layers.double()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = 10 + torch.randn(sum(ROWS), 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randn(sum(ROWS), 2, generator=generator, dtype=torch.float64)


def learnt(model, images, weights, chunk=None):
    """Return everything that a step leaves: outputs, gradients, running statistics."""
    images = images.clone().requires_grad_()
    out = encode_in_chunks(model, images, chunk=chunk, module=model)
    (out * weights).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"out": out.detach(), "pixels": images.grad, **gradients, **dict(model.named_buffers())}


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, weights = (side.split(ROWS)[rank] for side in batch())
    found = {}
    for name, chunk, rows in (("whole", None, ROWS[rank]), ("chunked", 2, 4)):
        model = tower()
        synchronise(model)
        own = (images, weights) if name == "whole" else (side[4 * rank :][:rows] for side in batch())
        found[name] = learnt(model, *own, chunk)
    model = tower()
    synchronise(model)
    found["evaluation"] = {"out": model.eval()(images).detach()}
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.barrier()  # with some releases, who leaves first lets the last wait for ever
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort the interpreter's end (pytorch #179291)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_equal_to_one(expected, found):
    """Rows one below the other, gradients of parameters summed, running statistics the same on each process."""
    one, other = found
    assert set(one) == set(other) == set(expected)
    for name, value in expected.items():
        if name in ("out", "pixels"):
            ours = torch.cat([one[name], other[name]])
        else:
            ours = one[name] + other[name] if name.startswith("gradient") else one[name]
            assert name.startswith("gradient") or torch.equal(one[name], other[name]), name
        torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_equal_one_with_the_whole_batch(processes):
    model = tower()
    expected = learnt(model, *batch())
    assert sum(name.endswith("running_var") for name in expected) == 4
    assert_equal_to_one(expected, [found["whole"] for found in processes])


def test_chunks_of_two_processes_count_once(processes):
    """Two chunks of two on each process have the statistics of two batches of four, and not those of eight."""
    images, weights = batch()
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    model = tower()
    expected = learnt(model, images[order], weights[order], chunk=4)
    back = torch.tensor(order).argsort()
    expected |= {name: expected[name][back] for name in ("out", "pixels")}
    assert int(expected["1.num_batches_tracked"]) == 2
    assert_equal_to_one(expected, [found["chunked"] for found in processes])


def test_evaluation_asks_no_other_process(processes):
    model = tower().eval()
    with torch.no_grad():
        expected = model(batch()[0])
    assert torch.equal(torch.cat([found["evaluation"]["out"] for found in processes]), expected)


def test_one_process_is_plain_to_the_last_bit():
    plain, ours = tower(), tower()
    synchronise(ours)
    expected, found = learnt(plain, *batch()), learnt(ours, *batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_torchs_own(dtype):
    """Mixed precision and NHWC, as on a GPU: half pictures, fp32 gains."""
    generator = torch.Generator().manual_seed(0)
    x = (3 + torch.randn(8, 5, 6, 6, generator=generator)).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias, gradient = (torch.randn(n, generator=generator) for n in (5, 5, 1))

    def run(normalise):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, weight, bias)]
        out = normalise(*leaves)
        (out * torch.sin(out.detach()) * gradient).sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    count = torch.tensor([8.0 * 36])
    ours = run(lambda x, weight, bias: _Normalise.apply(x, weight, bias, mean, var, count, 1e-5))
    plain = run(lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5))
    for found, expected in zip(ours, plain, strict=True):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
        torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("architecture", ["tiny-rn", "timm/test_efficientnet"])
def test_frozen_statistics_survive_train(architecture):
    torch.manual_seed(0)
    model = create_model(architecture, init="pytorch")
    before = copy.deepcopy(dict(model.visual.named_buffers()))
    keys = list(model.state_dict())
    images = 5 + torch.randn(4, 3, model.architecture.image_size, model.architecture.image_size)
    with torch.no_grad():
        expected = model.eval().encode_image(images)
    freeze_statistics(model)
    model.eval().train().visual.train()
    features = model.encode_image(images)
    torch.testing.assert_close(features, expected)
    features.sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.visual.named_buffers())
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(layer.weight.grad is not None and layer.weight.requires_grad for layer in norms)
    assert not any(layer.training for layer in norms) and model.training and model.visual.training
    assert list(model.state_dict()) == keys
    assert type(copy.deepcopy(norms[0])) is type(norms[0])


def test_state_dict_keys_stay():
    plain, changed = create_model("tiny-rn"), create_model("tiny-rn")
    synchronise(changed)
    assert list(changed.state_dict()) == list(plain.state_dict())
    changed.load_state_dict(plain.state_dict())


def test_policies():
    def policy(given, default="frozen", architecture="tiny-rn"):
        model = create_model(architecture)
        chosen = apply_policy(model, given, default)
        return chosen, type(model.visual.bn1).__name__ if chosen else None

    assert policy(None) == policy("frozen", "synchronised") == ("frozen", "FrozenStatisticsBatchNorm2d")
    assert policy("synchronised") == ("synchronised", "SynchronisedBatchNorm2d")
    assert policy("batch") == ("batch", "BatchNorm2d")
    assert policy(None, architecture="tiny-vit") == (None, None)
    with pytest.raises(UserError, match="'frozen', and the model has no batch normalisation"):
        policy("frozen", architecture="tiny-vit")
    with pytest.raises(UserError, match="'sync'; there are frozen, batch, synchronised"):
        policy("sync")
