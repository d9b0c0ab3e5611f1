"""Stochastic depth (Huang et al. 2016): a training sample skips a part of the network."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """x [batch, ...] -> 0 for a sample with chance `rate`, else x / (1 - rate); x in eval mode.

    torchvision has the same, but its import takes a second and 160 MB, which sampling need not."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, ...] -> the same shape."""
        if not (self.training and self.rate):
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


def rates(drop_path: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks: from 0 at the first, linearly, to `drop_path`.

    Raises ValueError for one that is not from 0 to below 1: nothing would be left at 1."""
    if not 0 <= drop_path < 1:
        raise ValueError(
            f"wanted prior.drop_path from 0 to below 1, got {drop_path:g}; type prior.drop_path=0.1"
        )
    return [drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
