"""What is connected by captions and pictures, against the plain way of finding it."""

import numpy as np
import pytest

from datamodules.grouping import by_caption_and_picture, connected
from datamodules.sources.source import CAPTIONS, Column, PictureFiles, Places, Source


def source(rows, root="/pictures", name="table"):
    return Source(
        name,
        PictureFiles(Column([path for path, _ in rows]), root),
        Column([captions for _, captions in rows], CAPTIONS),
        Places(name),
    )


def plainly(rows):
    """Merge sets until nothing changes."""
    groups = [{n} for n in range(len(rows))]
    keys = [{path, *(" ".join(text.lower().split()) for text in captions)} for path, captions in rows]
    changed = True
    while changed:
        changed = False
        for one in range(len(groups)):
            for other in range(one):
                if groups[one] and groups[other] and keys[one] & keys[other]:
                    groups[other] |= groups[one]
                    keys[other] |= keys[one]
                    groups[one], keys[one], changed = set(), set(), True
    return sorted(map(sorted, filter(None, groups)))


def as_sets(labels):
    return sorted(np.flatnonzero(labels == label).tolist() for label in np.unique(labels))


@pytest.mark.parametrize("seed", range(8))
def test_against_the_plain_way(seed):
    random = np.random.default_rng(seed)
    rows = [
        (f"{random.integers(25)}.png", [f"Word {w}" for w in random.integers(0, 60, random.integers(1, 4))])
        for _ in range(40)
    ]
    labels = by_caption_and_picture([source(rows)])
    assert as_sets(labels) == plainly(rows)
    assert all(labels[label] == label for label in labels), "a group is called by its first row"


def test_spelling_and_chains():
    rows = [("a", ["A  dog\tran"]), ("b", ["a dog ran "]), ("b", ["x"]), ("c", ["x", "y"]), ("d", ["z"])]
    assert by_caption_and_picture([source(rows)]).tolist() == [0, 0, 0, 0, 4]
    chain = np.arange(1000)
    links = (np.concatenate([chain, chain[1:]]), np.concatenate([chain, chain[:-1]]))
    assert not connected(1000, [links]).any()


def test_over_several_sources():
    one, two = source([("a", ["x"]), ("b", ["y"])]), source([("a", ["z"]), ("q", ["y"])])
    assert by_caption_and_picture([one, two]).tolist() == [0, 1, 0, 1]
    elsewhere = source([("a", ["z"]), ("q", ["y"])], root="/others")
    assert by_caption_and_picture([one, elsewhere]).tolist() == [0, 1, 2, 1], "the same path, another root"
