"""Precision, recall, density and coverage: two sets compared through balls around their images.

Each image owns the ball that reaches to its k-th nearest neighbour in its own set, in feature
space. All of it runs in chunks: memory is chunk * n, never n * n."""

import torch
from torch import Tensor

from vqgen.metrics.estimate import Estimate, mean

NEIGHBORS = 5
CHUNK = 1024  # rows of a distance matrix held at a time
CANDIDATES = 4  # as near as float32 can tell


def manifold(
    samples: Tensor,
    reference: Tensor,
    neighbors: int = NEIGHBORS,
    chunk: int = CHUNK,
    real_radii: Tensor | None = None,
) -> dict[str, Estimate]:
    """features [n, d] and [m, d] -> by name:

    precision  share of samples in some real image's ball (Kynkaanniemi et al. 2019)
    recall     share of real images in some sample's ball
    density    how many real balls a sample is in, over k (Naeem et al. 2020); 1 if equal in law
    coverage   share of real balls that hold a sample

    Intervals of precision and density resample the samples, of recall and coverage the real images.

    real_radii  radii(reference, neighbors), where they are known already
    Raises ValueError if a set has no k neighbours to offer."""
    sample_radii = radii(samples, neighbors, chunk, "samples")
    if real_radii is None:
        real_radii = radii(reference, neighbors, chunk)
    samples, reference = samples.float(), reference.float()
    center = reference.mean(dim=0)  # small numbers: little is lost in |x|^2 + |y|^2 - 2 x.y
    samples, reference = samples - center, reference - center
    balls = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    recalled, covered = [], []
    for rows, reach in zip(reference.split(chunk), real_radii.split(chunk), strict=True):
        squared = squared_distances(rows, samples)
        inside = squared <= reach[:, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((squared <= sample_radii).any(dim=1))
    return {
        "precision": mean(balls > 0),
        "recall": mean(torch.cat(recalled)),
        "density": mean(balls / neighbors),
        "coverage": mean(torch.cat(covered)),
    }


def radii(
    features: Tensor, neighbors: int, chunk: int = CHUNK, name: str = "reference images"
) -> Tensor:
    """The squared distance to the k-th nearest other image of a set [n, d], Float [n].

    Raises ValueError if there are not so many others; `name` is what it calls the images."""
    if len(features) <= neighbors:
        raise ValueError(
            f"precision and recall with neighbors={neighbors} need more than {neighbors} "
            f"{name}, got {len(features)}; type a larger n= or a smaller neighbors="
        )
    features = features.float()
    features = features - features.mean(dim=0)
    found, start = [], 0
    for part in features.split(chunk):
        squared = squared_distances(part, features)
        rows = torch.arange(len(part), device=features.device)
        squared[rows, start + rows] = torch.inf  # an image is not its own neighbour
        found.append(squared.kthvalue(neighbors, dim=1).values)
        start += len(part)
    return torch.cat(found)


def nearest(samples: Tensor, reference: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The nearest reference image of each sample: (distance Double [n], index Long [n]).

    Few candidates are found in float32 and measured in float64: a copy is at 0 exactly."""
    samples, reference = samples.double(), reference.double()
    center = reference.mean(dim=0)
    quick, known = (samples - center).float(), (reference - center).float()
    distances, indices = [], []
    for part, rows in zip(samples.split(chunk), quick.split(chunk), strict=True):
        few = squared_distances(rows, known).topk(min(CANDIDATES, len(known)), largest=False)
        exact = (part[:, None] - reference[few.indices]).square().sum(dim=2)
        squared, place = exact.min(dim=1)
        distances.append(squared.sqrt())
        indices.append(few.indices.gather(1, place[:, None])[:, 0])
    return torch.cat(distances), torch.cat(indices)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """[n, d] and [m, d] -> [n, m], never negative."""
    squared = left.square().sum(1)[:, None] + right.square().sum(1) - 2 * left @ right.T
    return squared.clamp_min(0)
