"""OpenAI's files are TorchScript archives; ours are made by torch itself from small modules and from our own CLIP."""

import copy
import os
import pickle
import sys
import types
import warnings
import zipfile

import open_clip
import pytest
import torch
from torch import nn

from workbench.errors import UserError
from workbench.models import create_model
from workbench.weights.openai_archive import NOT_WEIGHTS, is_torchscript, read_torchscript


@pytest.fixture(autouse=True)
def without_torchscripts_deprecation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).half())
        self.register_buffer("strided", torch.randn(4, 6).T[::2])
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.inner(x))


def equal(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        # As bytes: a zero has two signs, and no NaN equals another.
        ours, theirs = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (found[key], value))
        assert torch.equal(ours, theirs), key


def test_a_scripted_module_is_read_bit_for_bit(tmp_path):
    module = Outer()
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    assert is_torchscript(tmp_path / "m.pt")
    found = read_torchscript(tmp_path / "m.pt")
    expected = module.state_dict()
    for name in ("input_resolution", "context_length", "vocab_size"):
        del expected[name]
    equal(found, expected)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_our_own_clip_traced_in_half_precision(tmp_path, name):
    model = create_model(name).eval()
    inputs = torch.randn(1, 3, 32, 32), torch.tensor([[49406, 5, 49407]])
    traced = torch.jit.trace(model, inputs, check_trace=False).half()
    traced.save(str(tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:  # what a bomb's check must let pass
        assert any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
    expected = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    equal(read_torchscript(tmp_path / "m.pt"), expected)


FULL = {"RN50": "RN50-quickgelu", "ViT-B/32": "ViT-B-32-quickgelu"}


def as_released(name):
    """Our model at full size in the types of OpenAI's files, which OpenCLIP's conversion tells, with their numbers."""
    config = open_clip.get_model_config(FULL[name])
    with torch.device("meta"):
        peer = open_clip.model.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})
    open_clip.model.convert_weights_to_fp16(peer)
    torch.manual_seed(0)
    model = create_model(name).eval()
    types = {key: value.dtype for key, value in peer.named_parameters()}
    for key, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[key])
    for key, number in zip(NOT_WEIGHTS, (model.architecture.image_size, 77, 49408), strict=True):
        # OpenAI's modules have them as buffers; ours has a plain number under one of these names.
        model.__dict__.pop(key, None)
        model.register_buffer(key, torch.tensor(number))
    return model


class Holder(nn.Module):
    """The same tree of the same parameters and buffers, which computes nothing."""

    def __init__(self, module):
        super().__init__()
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in module.named_children():
            self.add_module(name, Holder(child))


def traced(model):
    side = model.architecture.image_size
    return torch.jit.trace(model, (torch.randn(1, 3, side, side), torch.tensor([[49406, 5, 49407]])), check_trace=False)


def scripted(model):
    # Our own `forward`s cannot be scripted, as TorchScript knows no super(), and need not be: their code is not read.
    return torch.jit.script(Holder(model))


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("archived", [traced, scripted])
def test_full_size_in_the_types_of_openais_files(tmp_path, name, archived):
    model = as_released(name)
    archived(model).save(str(tmp_path / "m.pt"))
    expected = model.state_dict()
    assert all(key in expected for key in NOT_WEIGHTS)
    expected = {key: value for key, value in expected.items() if key not in NOT_WEIGHTS}
    kinds = {"visual.conv1.weight", "text_projection", "transformer.resblocks.0.attn.in_proj_bias"}
    kept = {"logit_scale", "positional_embedding", "token_embedding.weight", "ln_final.bias"}
    assert {key for key in kinds | kept if expected[key].dtype == torch.float16} == kinds
    equal(read_torchscript(tmp_path / "m.pt"), expected)


def test_the_mask_that_openclips_archives_carry_is_no_weight(tmp_path):
    vision = open_clip.model.CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=32)
    peer = open_clip.model.CLIP(32, vision, open_clip.model.CLIPTextCfg(width=64, heads=1, layers=1)).eval()
    example = torch.randn(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.trace(peer, example, check_trace=False).save(str(tmp_path / "m.pt"))
    equal(read_torchscript(tmp_path / "m.pt"), peer.state_dict())


def test_shared_storages_are_read_once(tmp_path):
    module = nn.Linear(4, 4)
    module.register_buffer("view", module.weight.detach()[1:3])
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    found = read_torchscript(tmp_path / "m.pt")
    assert torch.equal(found["view"], found["weight"][1:3])
    assert found["view"].untyped_storage().data_ptr() == found["weight"].untyped_storage().data_ptr()


def rewritten(source, target, changes, compress=zipfile.ZIP_STORED):
    """Copy an archive with some parts, named without their folder, replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compress) as new:
        root = old.namelist()[0].split("/")[0]
        parts = {name: old.read(name) for name in old.namelist()} | {f"{root}/{n}": d for n, d in changes.items()}
        for name, data in parts.items():
            new.writestr(name, data)
    return target


@pytest.fixture
def archive(tmp_path):
    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "good.pt"))
    return tmp_path / "good.pt"


class Attack:
    """Pickles as a call of `function`, which a plain unpickler would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function, argument", [(os.system, "touch broken_in"), (eval, "open('broken_in', 'w')")])
def test_code_is_refused_not_run(archive, tmp_path, function, argument):
    bad = rewritten(archive, tmp_path / "bad.pt", {"data.pkl": pickle.dumps(Attack(function, argument), protocol=2)})
    with pytest.raises(UserError, match=rf"bad\.pt cannot be read.*{function.__name__}.*refused"):
        read_torchscript(bad)
    assert not (tmp_path / "broken_in").exists()


def test_names_that_lead_out_are_never_followed(archive, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    text = archive.read_bytes().replace(b"good/data/0", b"good/../sec")
    (tmp_path / "slip.pt").write_bytes(text)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="lacks good/data/0"):
        read_torchscript(tmp_path / "slip.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


class Tensorlike:
    """Pickles as OpenAI's archives write a tensor."""

    def __init__(self, storage, size, stride):
        self.parts = storage, 0, size, stride, False, {}

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.parts


class Stored:
    def __init__(self, *identity):
        self.identity = identity


def written_by_hand(path, tensor, parts):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identity if isinstance(value, Stored) else None

    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("m/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(tensor)
        for name, data in {"constants.pkl": b"", **parts}.items():
            archive.writestr(f"m/{name}", data)
    return path


@pytest.mark.parametrize("key", ["../../secret", "/secret", "0/../../../secret", "x/code/y"])
def test_storages_outside_their_folder_are_refused(tmp_path, key):
    """`x/code/y` leads where parts may be compressed, as source code is: a quarter of a megabyte would become 256."""
    (tmp_path / "secret").write_bytes(bytes(16))
    storage = Stored("storage", torch.FloatStorage, key, "cpu", 4)
    slip = written_by_hand(tmp_path / "slip.pt", Tensorlike(storage, (4,), (1,)), {f"data/{key}": bytes(16)})
    with pytest.raises(UserError, match="names a storage .*refused"):
        read_torchscript(slip)


def test_parts_that_would_be_unpacked_outside_are_not_unpacked(archive, tmp_path):
    slip = rewritten(archive, tmp_path / "slip.pt", {"../../outside": b"x", "/outside": b"x"})
    before = sorted(tmp_path.rglob("*")) + sorted(tmp_path.parent.iterdir())
    equal(read_torchscript(slip), read_torchscript(archive))
    assert sorted(tmp_path.rglob("*")) + sorted(tmp_path.parent.iterdir()) == before


def test_an_archive_in_the_folder_of_code_is_not_taken_for_one(tmp_path):
    storage = Stored("storage", torch.FloatStorage, "0", "cpu", 1 << 20)
    good = written_by_hand(tmp_path / "a.pt", Tensorlike(storage, (1 << 20,), (1,)), {"data/0": bytes(4 << 20)})
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name.replace("m/", "m/code/"), old.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 16
    with pytest.raises(UserError, match=r"lacks its data\.pkl"):
        read_torchscript(tmp_path / "bomb.pt")


class Modulelike:
    """Pickles as an archive's module."""

    def __init__(self, **attributes):
        self.__dict__ |= attributes


Modulelike.__module__, Modulelike.__qualname__ = "__torch__", "Modulelike"


@pytest.fixture
def torchscripts_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "__torch__", types.SimpleNamespace(Modulelike=Modulelike))


def test_modules_without_end_are_refused(tmp_path, torchscripts_module):
    within_itself = Modulelike()
    within_itself.again = within_itself
    doubled = Modulelike()
    for _ in range(20):  # a few hundred bytes with a million names; ten more would be a thousand million
        doubled = Modulelike(left=doubled, right=doubled)
    for bad in (within_itself, doubled):
        with pytest.raises(UserError, match="modules without end"):
            read_torchscript(written_by_hand(tmp_path / "bad.pt", bad, {}))


def test_parts_that_share_their_bytes_are_refused(tmp_path):
    """A small file with many parts that all point to the same bytes would be read again and again."""
    storage = Stored("storage", torch.FloatStorage, "0", "cpu", 4)
    good = written_by_hand(tmp_path / "a.pt", Tensorlike(storage, (4,), (1,)), {"data/0": bytes(1 << 16)})
    with zipfile.ZipFile(good, "a") as archive:
        [part] = [part for part in archive.infolist() if part.filename == "m/data/0"]
        for number in range(1, 100):
            twin = copy.copy(part)
            twin.filename = f"m/data/{number}"
            archive.filelist.append(twin)
        archive._didModify = True
    with pytest.raises(UserError, match="claim .* bytes, more than the file's"):
        read_torchscript(good)


def test_a_few_bytes_that_claim_to_be_terabytes_are_refused(tmp_path):
    storage = Stored("storage", torch.FloatStorage, "0", "cpu", 1)
    repeated = written_by_hand(tmp_path / "a.pt", Tensorlike(storage, (1 << 40,), (0,)), {"data/0": bytes(4)})
    with pytest.raises(UserError, match="repeats 1 numbers as 1099511627776"):
        read_torchscript(repeated)
    beyond = written_by_hand(tmp_path / "b.pt", Tensorlike(storage, (4,), (1,)), {"data/0": bytes(4)})
    with pytest.raises(UserError, match="damaged"):
        read_torchscript(beyond)
    storage = Stored("storage", torch.FloatStorage, "0", "cpu", 1 << 40)
    short = written_by_hand(tmp_path / "c.pt", Tensorlike(storage, (4,), (1,)), {"data/0": bytes(4)})
    with pytest.raises(UserError, match="has 4 bytes, not those of its 1099511627776 numbers"):
        read_torchscript(short)


def test_a_compressed_part_is_refused(archive, tmp_path):
    bad = rewritten(archive, tmp_path / "bomb.pt", {"data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    assert bad.stat().st_size < 1 << 16
    with pytest.raises(UserError, match="compressed"):
        read_torchscript(bad)


def test_a_flipped_bit_is_noticed(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        weights = opened.read("good/data/0")
    data[data.index(weights) + 5] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(UserError, match="damaged TorchScript archive.*CRC"):
        read_torchscript(tmp_path / "flipped.pt")


def test_what_is_no_archive(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({}, tmp_path / "plain.pt")
    for name in ("text.pt", "plain.pt", "absent.pt"):
        assert not is_torchscript(tmp_path / name)
