"""Groups of equal keys and of pictures that look alike, against comparing each with each."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from workbench.data import duplicates
from workbench.data.duplicates import NEAR_BITS, NEAR_LEVELS, NEAR_SHAPE, alike, equal, near_pairs
from workbench.data.pictures import examine


def hashes(count, seed):
    """Return hashes, most of them a few bits from another."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 2**64, count, dtype=np.uint64)[random.integers(0, -(-count // 4), count)]
    for bit in random.integers(0, 64, (3, count)):
        found ^= np.where(random.random(count) < 0.5, np.uint64(1) << bit.astype(np.uint64), np.uint64(0))
    return found


def bits_apart(one, other):
    return (int(one) ^ int(other)).bit_count()


@pytest.mark.parametrize("bits", [0, 1, 2])
def test_near_pairs_against_brute_force(bits):
    different = np.unique(hashes(400, seed=bits))
    expected = [
        (one, other)
        for one in range(len(different))
        for other in range(one + 1, len(different))
        if bits_apart(different[one], different[other]) <= bits
    ]
    assert (len(expected) > 10) == (bits > 0)
    assert near_pairs(different, bits).tolist() == [list(pair) for pair in expected]


def test_alike_against_brute_force():
    random, count = np.random.default_rng(0), 300
    looks = hashes(12, seed=5)[random.integers(0, 12, count)]
    looks ^= np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
    colours = random.integers(0, 40, (count, 3)).astype(np.uint8)
    logs = random.integers(0, 15, count)
    among = random.random(count) < 0.9
    near = np.array([[bits_apart(one, other) <= NEAR_BITS for other in looks] for one in looks])
    near &= np.abs(colours[:, None].astype(int) - colours).max(-1) <= NEAR_LEVELS
    near &= np.abs(logs[:, None] - logs) <= NEAR_SHAPE
    near &= among[:, None] & among
    labels = np.arange(count)
    for _ in range(count):
        labels = np.array([min([labels[row], *labels[near[row]]]) for row in range(count)])
    expected = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels) if (labels == label).sum() > 1]
    assert len(expected) > 10 and max(map(len, expected)) > 2
    assert [group.tolist() for group in alike(looks, colours, np.exp(logs / 100), among)] == expected


def test_many_of_one_look(monkeypatch):
    """Of equal looks one is compared; of many that are nearly equal, each with its neighbours."""
    monkeypatch.setattr(duplicates, "_MOST_ALIKE", 10)
    colours = np.repeat(np.arange(100, dtype=np.uint8), 50)[:, None] * np.ones(3, np.uint8)
    (group,) = alike(np.full(5000, 7, np.uint64), colours, np.ones(5000), np.ones(5000, bool))
    assert len(group) == 5000


def test_equal():
    groups = equal(np.array([5, 3, 5, 9, 3, 5, 1]), np.array([1, 1, 1, 1, 1, 1, 0], bool))
    assert [group.tolist() for group in groups] == [[0, 2, 5], [1, 4]]
    assert groups.repeats.tolist() == [2, 4, 5] and groups.sizes.tolist() == [3, 2]
    assert groups.mixed(np.array([0, 1, 0, 0, 2, 0, 0])).tolist() == [False, True]
    assert [group.tolist() for group in groups.where(np.array([False, True]))] == [[1, 4]]
    assert len(equal(np.zeros(0, np.uint64))) == 0


@pytest.mark.parametrize("change", ["quality", "smaller"])
def test_a_picture_saved_again_looks_alike(drawn, change):

    def look(content):
        return examine(lambda: content)[0]["look"]

    far = near = 0
    for number in range(20):
        picture, file = drawn(number), io.BytesIO()
        again = picture.resize((190, 178)) if change == "smaller" else picture
        again.save(file, "JPEG", quality=35 if change == "quality" else 85)
        near += bits_apart(look(picture), look(file.getvalue())) <= NEAR_BITS
        far += bits_apart(look(picture), look(drawn(number + 50))) <= NEAR_BITS
    assert near >= 19 and far == 0


def test_a_drawing_saved_again_looks_alike():
    """Most of its frequencies are nothing: their signs are noise."""
    for number in range(12):
        picture, file = Image.new("RGB", (256, 256), "white"), io.BytesIO()
        width, height = 30 + 7 * number, 110 - 6 * number  # in the middle, so that it is symmetrical
        ImageDraw.Draw(picture).ellipse((128 - width, 128 - height, 128 + width, 128 + height), "black")
        picture.save(file, "JPEG", quality=50)
        before, after = (examine(lambda content=content: content)[0]["look"] for content in (picture, file.getvalue()))
        assert bits_apart(before, after) <= NEAR_BITS


def test_a_hash_is_of_the_upright_picture(drawn):
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    drawn(1).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned, upright = examine(lambda: file.getvalue())[0], examine(lambda: drawn(1))[0]
    assert turned["pixels"] == upright["pixels"] and turned["look"] == upright["look"]
