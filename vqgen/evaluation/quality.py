"""How far one set of images is from another: every distance, with its interval."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqgen import checkpoint
from vqgen.evaluation.card import Number
from vqgen.evaluation.protocol import Protocol, titled
from vqgen.evaluation.sets import Images
from vqgen.metrics.distances import (
    Moments,
    frechet,
    inception_score,
    kernel_distance,
    own_kernel,
)
from vqgen.metrics.estimate import Estimate
from vqgen.metrics.features import CHUNK, Extracted, Features
from vqgen.metrics.manifold import manifold, radii


@dataclass(frozen=True)
class Reference:
    """Features of a reference set, and what the distances need to know about it alone."""

    features: Extracted
    moments: dict[str, Moments]  # of its pooled and, if there are any, spatial features
    kernel: float  # distances.own_kernel
    radii: Tensor  # manifold.radii


@dataclass(frozen=True)
class Extractor:
    """A feature network that remembers, on disk, what it made of reference sets.

    cache  folder of the files; their names are hashes of the images and of the network"""

    features: Features
    cache: Path

    @cached_property
    def fingerprint(self) -> str:
        """Of the network's weights."""
        return checkpoint.fingerprint(self.features.state_dict(), {"name": self.features.name})

    def remembered(self, images: Images) -> Extracted:
        """Features of a reference set, from the cache if it is there."""

        def make() -> dict[str, Tensor]:
            made = self.features.extract(images.images)
            named = {"pooled": made.pooled, "spatial": made.spatial}
            return {name: value for name, value in named.items() if value is not None}

        tensors = self._kept(images, "", make)
        return Extracted(tensors["pooled"], tensors.get("spatial"), None)

    def reference(self, images: Images, neighbors: int) -> Reference:
        """A reference set with its statistics, from the cache if they are there. Moments that its
        file states (ADM's, of all images) take the place of those of its images."""
        found = self.remembered(images)
        tensors = self._kept(images, f"_k{neighbors}", lambda: _statistics(found, neighbors))
        moments = {
            name: Moments(tensors[f"{name} mean"], tensors[f"{name} covariance"])
            for name in ("pooled", "spatial")
            if f"{name} mean" in tensors
        }
        if self.features.is_fid:
            moments |= images.moments or {}
        return Reference(found, moments, tensors["kernel"].item(), tensors["radii"])

    def _kept(
        self, images: Images, what: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        mark = f"{self.fingerprint}_{images.sha256[:16]}_{len(images)}{what}"
        path = self.cache / f"{mark}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}); delete it") from error
        tensors = make()
        with checkpoint.atomic(path) as temporary:
            save_file(tensors, temporary)
        return tensors

    def stated(self) -> dict:
        """For the card."""
        return {
            "name": self.features.name,
            "weights": self.fingerprint,
            "images per pass": CHUNK,
            **self.features.preprocessing,
        }


def _statistics(features: Extracted, neighbors: int) -> dict[str, Tensor]:
    tensors = {
        "kernel": torch.tensor(own_kernel(features.pooled), dtype=torch.float64),
        "radii": radii(features.pooled, neighbors),
    }
    for name, values in (("pooled", features.pooled), ("spatial", features.spatial)):
        if values is not None:
            moments = Moments.of(values)
            tensors |= {f"{name} mean": moments.mean, f"{name} covariance": moments.covariance}
    return tensors


def distances(
    samples: Extracted, reference: Reference, extractor: Extractor, protocol: Protocol
) -> dict[str, Number]:
    """Every distance by name: FD (FID for Inception only), sFD, KID, Inception Score, precision,
    recall, density, coverage. `reference` was made with the protocol's neighbors."""
    features, real = extractor.features, reference.features
    n, tag = len(samples.pooled), "" if features.is_fid else f"-{features.name}"
    frechet_name = "FID" if features.is_fid else f"FD{tag}"
    found: dict[str, Estimate] = {
        frechet_name: frechet(samples.pooled, reference.moments["pooled"])
    }
    if samples.spatial is not None and "spatial" in reference.moments:
        found["s" + frechet_name] = frechet(samples.spatial, reference.moments["spatial"])
    found[f"KID{tag}"] = kernel_distance(samples.pooled, real.pooled, others=reference.kernel)
    if samples.probabilities is not None:
        found[f"IS{tag}"] = inception_score(samples.probabilities, protocol.splits)
    shares = manifold(samples.pooled, real.pooled, protocol.neighbors, real_radii=reference.radii)
    found |= {f"{name}{tag}": value for name, value in shares.items()}
    return {titled(name, n): numbered(estimate, n) for name, estimate in found.items()}


def reconstruction_distance(
    made: Extracted, real: Extracted, extractor: Extractor
) -> dict[str, Number]:
    """The Frechet distance between reconstructions and their own originals: rFID or rFD."""
    features, n = extractor.features, len(made.pooled)
    name = "rFID" if features.is_fid else f"rFD-{features.name}"
    found = frechet(made.pooled, Moments.of(real.pooled))
    return {titled(name, n): numbered(found, n)}


def check_sizes(samples: Tensor, reference: Tensor, source: str) -> None:
    """Raise ValueError for a reference of another image size than the samples."""
    if samples.shape[-2:] != reference.shape[-2:]:
        ours, theirs = (list(images.shape[-2:]) for images in (samples, reference))
        raise ValueError(
            f"the samples are images of {ours}, but {source} holds images of {theirs}; take a "
            "reference of the same size"
        )


def numbered(estimate: Estimate, n: int, unit: str = "") -> Number:
    """An estimate as a number of the card."""
    low, high = estimate.interval()
    return Number(estimate.value, low, high, n, unit)
