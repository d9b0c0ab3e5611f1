"""Mean and deviation of a tokenizer's continuous latents over training images: what standardizes
them at export, and what stage 2 looks at before it starts."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from vqgen.contracts import FeatureSpec, Tokenizer, TokenSpec
from vqgen.metrics.latents import LatentStatistics

IMAGES = 2048  # measured on so many training images, evenly spaced, or on all if there are fewer
CHECKED = 512  # images of the check
LARGEST_MEAN, LARGEST_FACTOR = 0.5, 2.0  # beyond: not the latents that priors are made for


@torch.no_grad()
def measure(
    tokenizer: Tokenizer, data: Any, device: torch.device | str = "cpu", images: int = IMAGES
) -> LatentStatistics:
    """Statistics of what `encode` gives for training images (center crop, unflipped) in float32.

    data    has train, in_order(set) and on_after_batch_transfer, as data.images.ImageData has
    images  at most so many of the training set
    device  where to encode; the tokenizer goes back to where it was
    The same on every rank."""
    spec = tokenizer.spec
    assert isinstance(spec, FeatureSpec), "tokens have no mean"
    statistics, home = LatentStatistics(spec.channels), next(tokenizer.parameters()).device
    tokenizer.to(device)
    chosen = np.linspace(0, len(data.train) - 1, min(images, len(data.train))).round().astype(int)
    for batch in data.in_order(Subset(data.train, chosen.tolist())):
        batch = {name: value.to(device) for name, value in batch.items()}
        pixels = data.on_after_batch_transfer(batch, 0)["images"]
        with torch.autocast(pixels.device.type, enabled=False):
            statistics.update(tokenizer.encode(pixels))
    tokenizer.to(home)
    return statistics


def standardize_(
    tokenizer: Tokenizer, data: Any, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Measure continuous latents and let the tokenizer standardize them from now on.

    Returns gauges of the latents as they were; tokens: nothing is done, no gauges."""
    standardizer = tokenizer.standardizer
    if standardizer is None:
        return {}
    standardizer.reset_()
    found = measure(tokenizer, data, device)
    standardizer.refine_(found.mean, found.deviation)
    return gauges(found)


def gauges(found: LatentStatistics) -> dict[str, float]:
    """The channel with the largest mean, and the smallest and largest deviation of a channel."""
    return {
        "latents/largest_mean": float(found.mean.abs().max()),
        "latents/smallest_deviation": float(found.deviation.min()),
        "latents/largest_deviation": float(found.deviation.max()),
    }


def check(tokenizer: Tokenizer, data: Any, device: torch.device | str = "cpu") -> dict[str, float]:
    """The gauges of continuous latents of the training images; of tokens none.

    Raises ValueError if they are not near zero mean and unit variance: a prior's noise would be too
    weak or too strong for them."""
    if tokenizer.standardizer is None:
        return {}
    return _near_standard(measure(tokenizer, data, device, CHECKED))


def check_cached(data: Any) -> dict[str, float]:
    """`check` of what a cache holds: data has spec and stored(images) -> batches of latents, as
    data.cache.CachedLatents has."""
    if isinstance(data.spec, TokenSpec):
        return {}
    statistics = LatentStatistics(data.spec.channels)
    for latents in data.stored(CHECKED):
        statistics.update(latents)
    return _near_standard(statistics)


def _near_standard(statistics: LatentStatistics) -> dict[str, float]:
    found = gauges(statistics)
    mean, low, high = found.values()
    if not (mean <= LARGEST_MEAN and low >= 1 / LARGEST_FACTOR and high <= LARGEST_FACTOR):
        raise ValueError(
            "wanted latents near zero mean and unit variance, got channels with a mean of up to "
            f"{mean:.2f} and deviations from {low:.2f} to {high:.2f} on these training images: the "
            "tokenizer was standardized on other data, or never. Train it on this data: "
            "python train_stage1.py tokenizer=kl, with the same data= settings"
        )
    return found
