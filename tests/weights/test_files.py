"""Checkpoints are read whole or refused in one sentence, and nothing in them is run."""

import os
import random
import zipfile

import pytest
import torch

from workbench.errors import UserError
from workbench.weights.files import read_checkpoint


class Attack:
    def __reduce__(self):
        return os.system, ("touch broken_in",)


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(100.0)}, "epoch": 3}, tmp_path / "c.ckpt")
    return tmp_path / "c.ckpt"


def test_what_was_saved_is_read(checkpoint):
    found = read_checkpoint(checkpoint)
    assert torch.equal(found["state_dict"]["a"], torch.arange(100.0)) and found["epoch"] == 3


def test_code_is_refused_not_run(tmp_path):
    torch.save(Attack(), tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad\.ckpt asks to load posix\.system, which no weights need"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "broken_in").exists()


def test_absent(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*x\.ckpt"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_short(checkpoint, share):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="damaged, cut short"):
        read_checkpoint(checkpoint)


def test_a_flipped_bit_in_the_numbers_is_noticed(checkpoint):
    data = bytearray(checkpoint.read_bytes())
    data[data.index(torch.arange(100.0).numpy().tobytes()) + 41] ^= 1
    checkpoint.write_bytes(data)
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["a"][10] != 10  # torch does not notice
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(checkpoint)


def test_a_decompression_bomb_is_refused(checkpoint, tmp_path):
    with (
        zipfile.ZipFile(checkpoint) as old,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_a_bomb_that_calls_itself_source_code_is_refused(checkpoint, tmp_path):
    """What a part is, its second folder says; anywhere else `code` is part of a storage's name."""
    with (
        zipfile.ZipFile(checkpoint) as old,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name.replace("/data/0", "/data/x/code/0"), old.read(name))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_any_damage_ends_in_one_sentence(checkpoint):
    data = checkpoint.read_bytes()
    generator = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        checkpoint.write_bytes(damaged)
        try:
            found = read_checkpoint(checkpoint)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # bytes that nothing depends on
            assert torch.equal(found["state_dict"]["a"], torch.arange(100.0))
