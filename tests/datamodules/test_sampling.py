"""Global batches are a function of (seed, epoch, step), however many processes load them."""

import pytest

from datamodules.ordering import EpochOrder, Part
from datamodules.sampling import EvaluationRows, TrainingBatches
from workbench.errors import UserError


def sampler(rows=50, batch_size=8, seed=3, trained=0, per_epoch=None, **where):
    per_epoch = per_epoch or rows // max(1, batch_size)
    order = EpochOrder([Part("rows", rows)], seed)
    return TrainingBatches(order, batch_size, lambda: trained, lambda: per_epoch, **where)


def test_an_epoch_is_a_permutation_without_what_is_left_over():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 6
    rows = [row for batch in batches for _, row in batch]
    assert len(set(rows)) == 48 and set(rows) < set(range(50))
    assert {epoch for batch in batches for epoch, _ in batch} == {0}
    assert rows != sorted(rows)


def test_seed_and_epoch_change_the_permutation_and_nothing_else_does():
    first = list(sampler())
    assert first == list(sampler())
    assert first != list(sampler(seed=4))
    second = list(sampler(trained=6))
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [[row for _, row in batch] for batch in second] != [[row for _, row in batch] for batch in first]
    # (seed, epoch) is hashed, so that epoch 1 of seed 3 is not epoch 0 of seed 4.
    assert [[row for _, row in batch] for batch in second] != [[row for _, row in b] for b in sampler(seed=4)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_take_consecutive_parts_of_the_same_batches(processes):
    whole = list(sampler(trained=8))
    parts = [list(sampler(trained=8, rank=rank, world_size=processes)) for rank in range(processes)]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == whole
    assert all(len(batch) == 8 // processes for part in parts for batch in part)


def test_a_resumed_epoch_goes_on_with_its_next_batch_and_keeps_its_length():
    whole = list(sampler(trained=6))
    resumed = sampler(trained=8)
    assert list(resumed) == whole[2:]
    assert len(resumed) == 6


def test_position_is_read_when_an_epoch_starts():
    trained = 2
    batches = TrainingBatches(EpochOrder([Part("rows", 50)], 3), 8, lambda: trained, lambda: 6)
    assert list(batches) == list(sampler())[2:]
    trained = 6
    assert list(batches) == list(sampler(trained=6))


def test_a_shortened_epoch_counts_as_one():
    """With limit_train_batches 4 of 6, batch 4 is the first of epoch 1."""
    assert list(sampler(trained=4, per_epoch=4))[:4] == list(sampler(trained=6))[:4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 1}, ["batch_size is 1", "at least 2"]),
        ({"batch_size": 0}, ["batch_size is 0", "at least 2"]),
        ({"batch_size": 51}, ["51", "50 pairs"]),
        ({"batch_size": 9, "world_size": 4}, ["9", "4", "try 8"]),
    ],
)
def test_impossible_batches(options, words):
    with pytest.raises(UserError) as error:
        sampler(**options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
def test_evaluation_visits_each_row_once_over_all_processes(rows):
    parts = [EvaluationRows(list(range(rows)), rank, 3) for rank in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert [len(part) for part in parts] == [len(list(part)) for part in parts]
