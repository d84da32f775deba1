"""The order of an epoch: each row as often as it should come, blocks together, a function of (seed, epoch)."""

import numpy as np
import pytest

from datamodules import ordering
from datamodules.ordering import EpochOrder, Part
from workbench.errors import UserError


def test_each_row_once_an_epoch_and_another_order_each_time():
    order = EpochOrder([Part("a", 7), Part("b", 5)], seed=3)
    epochs = [order.epoch(epoch) for epoch in range(3)]
    for epoch, (rows, visits) in enumerate(epochs):
        assert sorted(rows) == list(range(12)) and set(visits) == {epoch}
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    assert np.array_equal(order.epoch(1)[0], EpochOrder([Part("a", 7), Part("b", 5)], seed=3).epoch(1)[0])
    assert not np.array_equal(order.epoch(0)[0], EpochOrder([Part("a", 7), Part("b", 5)], seed=4).epoch(0)[0])


def test_sources_are_mixed_not_one_after_the_other():
    rows, _ = EpochOrder([Part("a", 500), Part("b", 500)], seed=0).epoch(0)
    first_half = (rows[:500] < 500).mean()
    assert 0.4 < first_half < 0.6


def test_a_second_source_without_rows_changes_nothing():
    """The order of one source is that of before there were mixtures: numbers of old runs can be repeated."""
    alone, together = EpochOrder([Part("a", 30)], 5), EpochOrder([Part("a", 30), Part("b", 0)], 5)
    assert np.array_equal(alone.epoch(2)[0], together.epoch(2)[0])


def test_weights_share_an_epoch_out_and_visit_all_rows_equally_over_the_epochs():
    order = EpochOrder([Part("large", 90, 1.0), Part("small", 10, 3.0)], seed=1)
    assert order.samples == [25, 75] and len(order) == 100
    times, seen = np.zeros(100, int), []
    for epoch in range(18):
        rows, visits = order.epoch(epoch)
        assert (order.part_of(rows) == 0).sum() == 25
        np.add.at(times, rows, 1)
        seen += zip(visits.tolist(), rows.tolist(), strict=True)
    assert set(times[:90]) == {5} and set(times[90:]) == {135}
    assert len(set(seen)) == len(seen), "no row is asked for with the same draw twice"


def test_shares_add_up_to_the_epoch():
    parts = [Part(str(n), rows, weight) for n, (rows, weight) in enumerate([(10, 1.0), (11, 1.0), (13, 1.0)])]
    samples = EpochOrder(parts, 0).samples
    assert sum(samples) == 34 and max(samples) - min(samples) <= 1


def test_blocks_stay_near_each_other(monkeypatch):
    monkeypatch.setattr(ordering, "_BLOCKS_AT_ONCE", 4)
    starts = np.arange(0, 300, 10)
    order = EpochOrder([Part("shards", 300, None, starts)], seed=2)
    rows, _ = order.epoch(0)
    assert sorted(rows) == list(range(300))
    blocks = rows // 10
    at_once = [len(set(blocks[i : i + 20])) for i in range(0, 280, 20)]
    assert max(at_once) <= 8, "twenty rows in a row come from at most two windows of four blocks"
    spans = [np.flatnonzero(blocks == block) for block in range(30)]
    assert max(span[-1] - span[0] for span in spans) < 40
    windows = [set(blocks[i : i + 40]) for i in range(0, 280, 40)]
    again = [set(order.epoch(1)[0][i : i + 40] // 10) for i in range(0, 280, 40)]
    assert windows != again


def test_few_blocks_are_shuffled_as_a_whole():
    starts = np.array([0, 5, 9])
    plain, blocks = EpochOrder([Part("a", 20)], 3), EpochOrder([Part("a", 20, None, starts)], 3)
    assert np.array_equal(plain.epoch(0)[0], blocks.epoch(0)[0])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([Part("a.csv", 5, 1.0), Part("b.csv", 5)], ["all sources", "b.csv: None"]),
        ([Part("a.csv", 5, 0.0), Part("b.csv", 5, 1.0)], ["above 0", "a.csv: 0.0"]),
        ([Part("a.csv", 5, float("nan")), Part("b.csv", 5, 1.0)], ["above 0", "nan"]),
        ([Part("a.csv", 0, 1.0), Part("b.csv", 5, 1.0)], ["a.csv", "without rows"]),
    ],
)
def test_impossible_weights(parts, words):
    with pytest.raises(UserError) as error:
        EpochOrder(parts, 0)
    for word in words:
        assert word in str(error.value)
