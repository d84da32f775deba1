"""Batches without equal groups, where that is possible, and the rest counted."""

import numpy as np
import pytest

from datamodules.collisions import count, spread
from datamodules.ordering import EpochOrder, Part
from datamodules.sampling import TrainingBatches


def counted_plainly(groups, batch_size):
    batches = [groups[i : i + batch_size] for i in range(0, len(groups) // batch_size * batch_size, batch_size)]
    return sum(len(batch) - len(set(batch.tolist())) for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_counting(seed):
    random = np.random.default_rng(seed)
    groups = random.integers(0, random.integers(2, 40), 103)
    for batch_size in (2, 7, 16, 103):
        assert count(groups, batch_size) == counted_plainly(groups, batch_size)


@pytest.mark.parametrize("seed", range(5))
def test_captions_that_come_twice_are_parted(seed):
    random = np.random.default_rng(seed)
    groups = random.permutation(np.concatenate([np.arange(700), np.arange(300)]))
    before = count(groups, 32)
    order = spread(groups, 32, seed)
    assert sorted(order) == list(range(1000))
    assert before > 5 and count(groups[order], 32) == counted_plainly(groups[order], 32) == 0
    moved = (order != np.arange(1000)).sum()
    assert moved <= 2 * before, "only what collides changes places"
    assert np.array_equal(order, spread(groups, 32, seed))


def test_many_classes():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 50))
    left = count(groups[spread(groups, 32, 0)], 32)
    assert count(groups, 32) > 600 and left < 10


def test_more_than_there_are_classes_is_done_as_well_as_possible():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 64))
    left = count(groups[spread(groups, 32, 0)], 32)
    assert 20 * 22 <= left <= count(groups, 32), "22 of 32 cannot but collide in each of 20 batches"


def test_nothing_to_do_and_what_is_left_over():
    assert spread(np.arange(50), 8, 0).tolist() == list(range(50))
    # The two equal ones of the only batch part by the rows that are left over.
    groups = np.array([1, 1, 2, 3, 4])
    assert count(groups[spread(groups, 4, 0)], 4) == 0


def test_the_sampler_keeps_apart_over_all_processes_and_reports_the_rest():
    apart = np.random.default_rng(1).integers(0, 60, 200)

    def sampler(rank=0, world_size=1, apart=apart):
        return TrainingBatches(EpochOrder([Part("a", 200)], 7), 16, lambda: 0, lambda: 12, rank, world_size, apart)

    plain = [row for batch in sampler(apart=None) for _, row in batch]
    whole = [[row for _, row in batch] for batch in sampler()]
    left = counted_plainly(apart[np.concatenate(whole)], 16)
    assert left == sampler().collisions(0) < counted_plainly(apart[plain], 16) / 5
    parts = zip(*(sampler(rank, 2) for rank in (0, 1)), strict=True)
    assert [[row for part in batch for _, row in part] for batch in parts] == whole
    assert sampler().batch(3).tolist() == whole[3]
    assert sampler().batch(12 + 2).tolist() == [row for _, row in list(sampler().batches(1))[2]]
