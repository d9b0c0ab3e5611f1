"""Distances between two sets of feature vectors: Frechet, kernel (KID), and the Inception Score.

Features are [n, d]; which network made them is the caller's business (features.py). The reference
set counts as fixed: intervals are about the samples."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vqgen.metrics.estimate import Estimate

CHUNK = 1024  # rows of a kernel matrix held at a time


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] (over n - 1) of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """features [n, d], n at least 2. Raises ValueError below."""
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")
        features = features.double()
        centered = features - features.mean(dim=0)
        return cls(features.mean(dim=0), centered.T @ centered / (len(features) - 1))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet(samples: Tensor, reference: Moments) -> Estimate:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), features [n, d] (Heusel et al. 2017, eq. 6).

    The trace of the root is taken over the eigenvalues of C2^1/2 C1 C2^1/2, which are real; those
    below rounding count as 0. Biased upwards at finite n: compare equal n only."""
    made = Moments.of(samples)
    if made.mean.shape != reference.mean.shape:
        raise ValueError(
            f"samples have {made.mean.numel()} features, the reference {reference.mean.numel()}: "
            "they come from different networks"
        )
    root = reference.root
    values, vectors = torch.linalg.eigh(root @ made.covariance @ root)
    rounding = values.max().clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > rounding
    roots = values[kept].sqrt()
    shift = made.mean - reference.mean
    trace = made.covariance.trace() + reference.covariance.trace() - 2 * roots.sum()
    value = (shift.square().sum() + trace).clamp_min(0)
    # the derivative of the formula in the weight of each image: d tr(M^1/2) = tr(M^-1/2 dM) / 2
    centered = samples.double() - made.mean
    along = centered @ (root @ (vectors[:, kept] / roots.sqrt()))
    spread = (centered.square().sum(1) - along.square().sum(1)) * len(samples) / (len(samples) - 1)
    influence = 2 * centered @ shift + spread
    return Estimate(value.item(), influence)


def kernel_distance(samples: Tensor, reference: Tensor, chunk: int = CHUNK) -> Estimate:
    """KID: the squared maximum mean discrepancy under (x.y / d + 1)^3 (Binkowski et al. 2018).

    features [n, d] and [m, d]. The unbiased U-statistic over ALL pairs, not the mean over random
    subsets, which estimates the same number with more noise; it can be slightly negative. Memory
    is chunk * (n + m)."""
    n, m = len(samples), len(reference)
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least 2 images on each side, got {n} and {m}")
    within = _kernel_rows(samples, samples, chunk)
    across = _kernel_rows(samples, reference, chunk)
    others = _kernel_rows(reference, reference, chunk)
    own, real = _diagonal(samples), _diagonal(reference)
    within = (within - own) / (n - 1)
    value = within.mean() + ((others - real) / (m - 1)).mean() - 2 * (across / m).mean()
    return Estimate(value.item(), 2 * (within - across / m))


def _kernel_rows(left: Tensor, right: Tensor, chunk: int) -> Tensor:
    """The sum of each row of the kernel matrix, Double [n]."""
    d = left.shape[1]
    rows = [((part @ right.T / d + 1) ** 3).double().sum(1) for part in left.split(chunk)]
    return torch.cat(rows)


def _diagonal(features: Tensor) -> Tensor:
    return ((features.square().sum(1) / features.shape[1] + 1) ** 3).double()


def inception_score(probabilities: Tensor, splits: int = 1) -> Estimate:
    """exp of the mean KL(p(class | image) || p(class)), probabilities [n, classes] (Salimans 2016).

    With `splits`, the mean of the scores of so many equal consecutive parts, as papers print it (10
    at 50,000 images). Raises ValueError for fewer images than splits."""
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"wanted 1 to {len(probabilities)} splits, got {splits}")
    scores, influences = [], []
    for part in probabilities.double().tensor_split(splits):
        marginal = part.mean(dim=0)
        divergences = torch.special.xlogy(part, part).sum(1) - torch.special.xlogy(
            part, marginal.expand_as(part)
        ).sum(1)
        score = divergences.mean().exp()
        scores.append(score)
        influences.append(score * (divergences - divergences.mean()))
    return Estimate(torch.stack(scores).mean().item(), torch.cat(influences))
