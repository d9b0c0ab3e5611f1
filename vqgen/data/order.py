"""Which image comes when: a function of (seed, samples seen), so a resumed run needs no state of
the loader.

A position counts samples since the start of training. Epoch e = position // size shows every image
once, in the order `epoch_order(seed, e, size)`; a global step takes the next `global_batch`
positions, whatever the number of ranks.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (index of the image, position in training)

_BLOCK = 1024  # positions whose chances are drawn together; another number changes every run


class GlobalBatches(Sampler[list[Key]]):
    """Endless micro-batches of one rank: lists of (index, position).

    A global step takes the positions [p, p + global_batch). They are cut into accumulate x world
    equal slices: micro-batch j of rank r is slice j * world + r, so the union over ranks and
    micro-batches is the same at any world size and any accumulation.

    Raises ValueError if global_batch is not a multiple of accumulate x world.
    """

    def __init__(
        self,
        *,
        size: int,  # images in the set
        global_batch: int,  # images per optimizer step, over all ranks and micro-batches
        accumulate: int = 1,  # micro-batches per optimizer step
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        samples_seen: int = 0,  # the position to go on from
    ) -> None:
        self.micro_batch = micro_batch_size(global_batch, accumulate, world)
        self.size = size
        self.global_batch = global_batch
        self.accumulate = accumulate
        self.rank = rank
        self.world = world
        self.seed = seed
        self.samples_seen = samples_seen

    def __iter__(self) -> Iterator[list[Key]]:
        for first in count(self.samples_seen, self.global_batch):
            for micro in range(self.accumulate):
                start = first + (micro * self.world + self.rank) * self.micro_batch
                positions = range(start, start + self.micro_batch)
                yield [(index_at(self.seed, p, self.size), p) for p in positions]


def micro_batch_size(global_batch: int, accumulate: int, world: int) -> int:
    """Images per rank and micro-batch. Raises ValueError where the global batch does not divide."""
    if accumulate < 1:
        raise ValueError(f"wanted an accumulation of at least 1, got {accumulate}; type 1")
    parts = accumulate * world
    if global_batch < 1 or global_batch % parts:
        nearest = max(1, -(-global_batch // parts)) * parts
        raise ValueError(
            "wanted train.global_batch to be a positive multiple of accumulation x ranks = "
            f"{accumulate} x {world}, got {global_batch}; type train.global_batch={nearest}"
        )
    return global_batch // parts


def in_order(count: int, micro: int, rank: int, world: int) -> list[list[int]]:
    """Every index under `count` once over all ranks, in batches of at most `micro`.

    Every rank gets the same number of batches, so that no rank waits for another; sizes differ by
    at most one. (Ranks without any are left only where there are fewer images than ranks.)"""
    rounds = -(-count // (micro * world))
    pieces = np.array_split(np.arange(count), rounds * world)[rank::world]
    return [piece.tolist() for piece in pieces if len(piece)]


def index_at(seed: int, position: int, size: int) -> int:
    """The image shown at this position."""
    epoch, place = divmod(position, size)
    return int(epoch_order(seed, epoch, size)[place])


@lru_cache(
    maxsize=4
)  # a batch can straddle two epochs; permutations of millions are not worth redoing per sample
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size), int64 [size], drawn from (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def chances(seed: int, positions: Sequence[int]) -> np.ndarray:
    """Float64 [len(positions), 3] in [0, 1), drawn from (seed, position) alone: crop top, crop
    left, flip."""
    return np.stack([_block_of_chances(seed, p // _BLOCK)[p % _BLOCK] for p in positions])


@lru_cache(maxsize=8)
def _block_of_chances(seed: int, block: int) -> np.ndarray:
    key = np.array([seed, block], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((_BLOCK, 3))
