"""Mean and deviation of continuous latents, per channel, over a whole pass through a data set."""

import torch
import torch.distributed as dist
from torch import Tensor


class LatentStatistics:
    """Sums over all latents [batch, channels, h, w] of all ranks together: images and positions.

    `mean` and `deviation` (not corrected for the mean) are float64 on the CPU and have to be asked
    for on every rank."""

    def __init__(self, channels: int) -> None:
        self._sums = torch.zeros(3, channels, dtype=torch.float64)  # count, x, x^2
        self._device = torch.device("cpu")

    def update(self, latents: Tensor) -> None:
        """Count latents Float [batch, channels, h, w]."""
        self._device = latents.device
        values = latents.detach().cpu().double().transpose(0, 1).flatten(1)
        count = torch.full_like(values[:, 0], values.shape[1])
        self._sums += torch.stack((count, values.sum(1), values.square().sum(1)))

    @property
    def mean(self) -> Tensor:
        """[channels]."""
        return self._moments()[0]

    @property
    def deviation(self) -> Tensor:
        """[channels], at least 0."""
        mean, square = self._moments()
        return (square - mean.square()).clamp_min(0).sqrt()

    def _moments(self) -> Tensor:
        total = self._sums.clone()
        if dist.is_available() and dist.is_initialized():
            total = total.to(self._device)  # where the ranks can talk
            dist.all_reduce(total)
        return (total[1:] / total[0].clamp_min(1)).cpu()
