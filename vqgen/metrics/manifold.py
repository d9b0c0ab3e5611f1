"""Precision, recall, density and coverage: two sets compared through balls around their images.

Each image owns the ball that reaches to its k-th nearest neighbour in its own set, in feature
space. All of it runs in chunks: memory is chunk * n, never n * n."""

import torch
from torch import Tensor

from vqgen.metrics.estimate import Estimate, mean

NEIGHBORS = 5
CHUNK = 1024  # rows of a distance matrix held at a time


def manifold(
    samples: Tensor, reference: Tensor, neighbors: int = NEIGHBORS, chunk: int = CHUNK
) -> dict[str, Estimate]:
    """features [n, d] and [m, d] -> by name:

    precision  share of samples in some real image's ball (Kynkaanniemi et al. 2019)
    recall     share of real images in some sample's ball
    density    how many real balls a sample is in, over k (Naeem et al. 2020); 1 if equal in law
    coverage   share of real balls that hold a sample

    Intervals of precision and density resample the samples, of recall and coverage the real images.
    Raises ValueError if a set has no k neighbours to offer."""
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) <= neighbors:
            raise ValueError(
                f"precision and recall with neighbors={neighbors} need more than {neighbors} "
                f"{name}, got {len(features)}; type a larger n= or a smaller neighbors="
            )
    samples, reference = samples.float(), reference.float()
    center = reference.mean(dim=0)  # small numbers: little is lost in |x|^2 + |y|^2 - 2 x.y
    samples, reference = samples - center, reference - center
    sample_radii = _radii(samples, neighbors, chunk)
    real_radii = _radii(reference, neighbors, chunk)
    balls = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    recalled, covered = [], []
    for rows, radii in zip(reference.split(chunk), real_radii.split(chunk), strict=True):
        squared = squared_distances(rows, samples)
        inside = squared <= radii[:, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((squared <= sample_radii).any(dim=1))
    return {
        "precision": mean(balls > 0),
        "recall": mean(torch.cat(recalled)),
        "density": mean(balls / neighbors),
        "coverage": mean(torch.cat(covered)),
    }


def nearest(samples: Tensor, reference: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The nearest reference image of each sample: (distance [n], index Long [n])."""
    reference = reference.double()
    found = [
        squared_distances(part, reference).min(dim=1) for part in samples.double().split(chunk)
    ]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """[n, d] and [m, d] -> [n, m], never negative."""
    squared = left.square().sum(1)[:, None] + right.square().sum(1) - 2 * left @ right.T
    return squared.clamp_min(0)


def _radii(features: Tensor, neighbors: int, chunk: int) -> Tensor:
    """The squared distance to the k-th nearest other image, [n]."""
    radii, start = [], 0
    for part in features.split(chunk):
        squared = squared_distances(part, features)
        rows = torch.arange(len(part), device=features.device)
        squared[rows, start + rows] = torch.inf  # an image is not its own neighbour
        radii.append(squared.kthvalue(neighbors, dim=1).values)
        start += len(part)
    return torch.cat(radii)
