"""A number measured on a set of images, with its bootstrap interval."""

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
DRAWS = 2**22  # random indices held at a time


@dataclass(frozen=True)
class Estimate:
    """`value`, and `contributions` Double [n]: how much each image moves it, to first order.

    A mean of per-image numbers has them as its contributions; any other smooth function of the
    set has its influence values (Efron & Tibshirani 1993, chapter 21). Resampling these instead of
    the images makes every interval as cheap as that of a mean, and it leaves out the upward shift
    that duplicates give to distances between sets."""

    value: float
    contributions: Tensor

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """(low, high) at this level: the percentile bootstrap with 1000 resamples, seeded.

        It covers the noise of drawing these images once more, not the bias that a distance between
        sets has at small n."""
        n, each = len(self.contributions), self.contributions.double().cpu()
        generator = torch.Generator().manual_seed(seed)
        rows = max(1, DRAWS // n)
        means = []
        for start in range(0, RESAMPLES, rows):
            shape = (min(rows, RESAMPLES - start), n)
            means.append(each[torch.randint(n, shape, generator=generator)].mean(dim=1))
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        shift = self.value - each.mean()  # 0 for a mean: a share of none stays 0 exactly
        low, high = (torch.quantile(torch.cat(means), edges) + shift).tolist()
        return low, high


def mean(values: Tensor) -> Estimate:
    """The mean of per-image numbers [n]."""
    values = values.double()
    return Estimate(values.mean().item(), values)
