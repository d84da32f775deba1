"""The share of pairs that meet their like, against drawing batches."""

import numpy as np
import pytest

from datamodules import collisions
from datamodules.ordering import EpochOrder, Part
from workbench.data.false_negatives import expected_share, linked, partners, share_in_first_epoch

ROWS = 60


@pytest.fixture(scope="module")
def links():
    """Captions and pictures that come again, and some rows with several captions."""
    random = np.random.default_rng(0)
    rows = np.concatenate([np.arange(ROWS), [0, 0, 7, 9]])
    captions = np.concatenate([random.integers(0, 30, ROWS), [3, 4, 3, 29]])
    return linked((rows, captions), (np.arange(ROWS), random.integers(0, 50, ROWS)))


@pytest.fixture(scope="module")
def meets(links):
    """Which rows have something in common, bool [ROWS, ROWS]."""
    keys = [set(links[links[:, 0] == row, 1].tolist()) for row in range(ROWS)]
    return np.array([[one != other and bool(keys[one] & keys[other]) for other in range(ROWS)] for one in range(ROWS)])


def test_partners(links, meets):
    assert partners(ROWS, links).tolist() == meets.sum(axis=1).tolist()
    assert max(partners(ROWS, links)) > 4


def test_rows_of_nothing():
    nothing = linked((np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert partners(3, nothing).tolist() == [0, 0, 0] and expected_share(np.zeros(3, np.int64), 2) == 0


@pytest.mark.parametrize("batch_size", [2, 9, 30])
def test_expected_share_against_simulation(links, meets, batch_size):
    random, shares = np.random.default_rng(1), []
    for _ in range(4000):
        batch = random.permutation(ROWS)[:batch_size]
        shares.append(meets[np.ix_(batch, batch)].any(axis=1).mean())
    error = np.std(shares) / len(shares) ** 0.5
    assert abs(expected_share(partners(ROWS, links), batch_size) - np.mean(shares)) < 4 * error


def test_a_batch_of_all_rows(links, meets):
    assert expected_share(partners(ROWS, links), ROWS) == pytest.approx(meets.any(axis=1).mean(), abs=1e-12)


def test_the_first_epoch(links, meets):
    parts = [Part("one", 25), Part("other", ROWS - 25)]
    order = EpochOrder(parts, seed=3).epoch(0)[0][: ROWS // 8 * 8]

    def counted(rows):
        return np.mean([meets[np.ix_(batch, batch)].any(axis=1).mean() for batch in rows.reshape(-1, 8)])

    assert share_in_first_epoch(parts, links, 8, 3, None) == pytest.approx(counted(order))
    apart = np.arange(ROWS) // 2
    assert share_in_first_epoch(parts, links, 8, 3, apart) != share_in_first_epoch(parts, links, 8, 3, None)


def test_keeping_apart_helps():
    classes = np.arange(400) // 4
    links, parts = linked((np.arange(400), classes)), [Part("all", 400)]
    assert share_in_first_epoch(parts, links, 40, 0, None) == pytest.approx(
        expected_share(partners(400, links), 40), abs=0.08
    )
    assert share_in_first_epoch(parts, links, 40, 0, classes) == 0
    assert collisions.count(classes, 40) > 0
