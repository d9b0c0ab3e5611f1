"""Random numbers for sampling: one generator per image, so image i depends on seed i alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Draws:
    """A stream of draws for each image of a batch, on the CPU: the same on every device and at
    every batch size."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """-> Float [batch, *shape] in [0, 1)."""
        return self._stack(lambda generator: torch.rand(shape, generator=generator))

    def normal(self, *shape: int) -> Tensor:
        """-> Float [batch, *shape], standard normal."""
        return self._stack(lambda generator: torch.randn(shape, generator=generator))

    def categorical(self, logits: Tensor) -> Tensor:
        """logits [batch, ..., vocab], -inf = never -> Long [batch, ...] on the logits' device.

        The Gumbel-max trick: add noise, take the largest. Rounding differences between batch sizes
        or devices change the result only if the two best are that close, about once in a million
        tokens in float32; an inverse cumulative sum has `vocab` edges to fall off instead of one.
        The noise comes from 53-bit uniforms: at 24 bits the smallest uniform alone would let every
        one of 16,384 unlikely codes win too often."""
        noise = self._stack(lambda generator: _gumbel(logits.shape[1:], generator))
        return (logits.float() + noise.to(logits.device)).argmax(dim=-1)

    def gumbel(self, where: Tensor, *shape: int) -> Tensor:
        """Gumbel noise for the True places of `where` Bool [batch, length], in order: -> Float
        [places, *shape]. An image without any draws nothing, so its stream does not depend on what
        the others need."""
        counts = where.sum(dim=1).tolist()
        pairs = zip(self.generators, counts, strict=True)
        noise = [_gumbel((count, *shape), generator) for generator, count in pairs if count]
        return torch.cat(noise).to(where.device) if noise else where.new_zeros(0, *shape).float()

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators])


def _gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return -(-torch.log1p(-uniform)).log().float()
