"""Laws of the data order: a function of (seed, samples seen), the same at any number of ranks."""

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest

from vqgen.data.order import GlobalBatches, chances, epoch_order, index_at, micro_batch_size

SIZE = 23  # no multiple of the batch, so that batches straddle epochs


def batches(steps: int, **options) -> list:
    options = {"size": SIZE, "global_batch": 8, "seed": 5, **options}
    return list(islice(GlobalBatches(**options), steps * options.get("accumulate", 1)))


def joined(pieces: list[list]) -> list:
    return list(chain.from_iterable(pieces))


def test_every_epoch_shows_every_image_once() -> None:
    keys = joined(batches(3 * SIZE))
    assert [position for _, position in keys] == list(range(len(keys)))
    for epoch in range(len(keys) // SIZE):
        shown = [index for index, _ in keys[epoch * SIZE : (epoch + 1) * SIZE]]
        assert sorted(shown) == list(range(SIZE))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, SIZE)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("steps_done", [0, 1, 2, 3, 11])
def test_resumed_order_is_the_uninterrupted_one(steps_done: int) -> None:
    whole = batches(20)
    assert batches(20 - steps_done, samples_seen=8 * steps_done) == whole[steps_done:]


def test_resume_at_another_batch_size_goes_on_at_the_same_image() -> None:
    first = joined(batches(3, global_batch=8))
    then = joined(batches(4, global_batch=6, samples_seen=24))
    assert first + then == [(index_at(5, p, SIZE), p) for p in range(48)]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (4, 2), (2, 2), (8, 1)])
def test_union_over_ranks_and_micro_batches_is_the_global_batch(
    world: int, accumulate: int
) -> None:
    ranks = [
        batches(5, rank=rank, world=world, accumulate=accumulate, samples_seen=16)
        for rank in range(world)
    ]
    for step, alone in enumerate(batches(5, samples_seen=16)):
        pieces = [ranks[r][step * accumulate + j] for j in range(accumulate) for r in range(world)]
        assert joined(pieces) == alone
        assert {len(piece) for piece in pieces} == {8 // world // accumulate}


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(10, 2, 4), (7, 2, 1), (0, 1, 1)])
def test_batch_that_does_not_divide(batch: int, accumulate: int, world: int) -> None:
    with pytest.raises(
        ValueError, match=r"wanted train\.global_batch .* type train\.global_batch="
    ):
        micro_batch_size(batch, accumulate, world)


def test_chances_belong_to_seed_and_position() -> None:
    together = chances(3, range(1000, 1100))  # over a block's border
    assert np.array_equal(together, np.concatenate([chances(3, [p]) for p in range(1000, 1100)]))
    assert not np.array_equal(together, chances(4, range(1000, 1100)))


def test_chances_are_uniform() -> None:
    drawn = chances(0, range(20_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:
        counts = Counter((column * 10).astype(int).tolist())
        assert all(abs(counts[tenth] - 2000) < 200 for tenth in range(10))  # 4.7 sigma
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.03
