"""How far one set of images is from another: every distance, with its interval."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from vqgen import checkpoint
from vqgen.evaluation.card import Number
from vqgen.evaluation.protocol import Protocol, titled
from vqgen.evaluation.sets import Images
from vqgen.metrics.distances import Moments, frechet, inception_score, kernel_distance
from vqgen.metrics.estimate import Estimate
from vqgen.metrics.features import CHUNK, Extracted, Features
from vqgen.metrics.manifold import manifold


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
        path = self.cache / f"{self.fingerprint}_{images.sha256[:16]}_{len(images)}.safetensors"
        if path.is_file():
            tensors = load_file(path)
        else:
            made = self.features.extract(images.images)
            named = {"pooled": made.pooled, "spatial": made.spatial}
            tensors = {name: value for name, value in named.items() if value is not None}
            with checkpoint.atomic(path) as temporary:
                save_file(tensors, temporary)
        return Extracted(tensors["pooled"], tensors.get("spatial"), None)

    def stated(self) -> dict:
        """For the card."""
        return {
            "name": self.features.name,
            "weights": self.fingerprint,
            "images per pass": CHUNK,
            **self.features.preprocessing,
        }


def distances(
    samples: Extracted,
    reference: Extracted,
    stored: dict[str, Moments],
    extractor: Extractor,
    protocol: Protocol,
) -> dict[str, Number]:
    """Every distance by name: FD (FID for Inception only), sFD, KID, Inception Score, precision,
    recall, density, coverage.

    stored  moments of the whole reference set, where its file has them (ADM): they take the place
            of those of the reference images"""
    features = extractor.features
    n, tag = len(samples.pooled), "" if features.is_fid else f"-{features.name}"
    frechet_name = "FID" if features.is_fid else f"FD{tag}"
    found: dict[str, Estimate] = {}
    whole = stored if features.is_fid else {}
    pooled = whole.get("pooled") or Moments.of(reference.pooled)
    found[frechet_name] = frechet(samples.pooled, pooled)
    if samples.spatial is not None and reference.spatial is not None:
        spatial = whole.get("spatial") or Moments.of(reference.spatial)
        found["s" + frechet_name] = frechet(samples.spatial, spatial)
    found[f"KID{tag}"] = kernel_distance(samples.pooled, reference.pooled)
    if samples.probabilities is not None:
        found[f"IS{tag}"] = inception_score(samples.probabilities, protocol.splits)
    shares = manifold(samples.pooled, reference.pooled, protocol.neighbors)
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
