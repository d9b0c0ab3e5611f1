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
        _enough(features)
        features = features.double()
        centered = features - features.mean(dim=0)
        return cls(features.mean(dim=0), centered.T @ centered / (len(features) - 1))

    @cached_property
    def factor(self) -> Tensor:
        """F [d, d] with F F^T = covariance: Cholesky's, or, where the covariance has no inverse
        (fewer images than features), out of its eigenvectors."""
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return lower
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp_min(0).sqrt()


def frechet(samples: Tensor, reference: Moments) -> Estimate:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2), features [n, d] (Heusel et al. 2017, eq. 6).

    The trace of the root is taken over the eigenvalues of F^T C1 F with F F^T = C2, which are real
    and those of C1 C2; as C1 is X^T X, they are also those of the [n, n] matrix X F F^T X^T, and
    the smaller of the two is taken. Eigenvalues below rounding count as 0. Biased upwards at finite
    n: compare equal n only."""
    n, d = len(samples), samples.shape[1]
    _enough(samples)
    if d != reference.mean.numel():
        raise ValueError(
            f"samples have {d} features, the reference {reference.mean.numel()}: "
            "they come from different networks"
        )
    samples = samples.double()
    mean = samples.mean(dim=0)
    centered = samples - mean
    turned = centered @ reference.factor / (n - 1) ** 0.5  # X F
    values, vectors = torch.linalg.eigh(turned @ turned.T if n < d else turned.T @ turned)
    kept = values > values.max().clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    squares = centered.square().sum(dim=1)
    shift = mean - reference.mean
    trace = squares.sum() / (n - 1) + reference.covariance.trace() - 2 * roots.sum()
    value = (shift.square().sum() + trace).clamp_min(0)
    # the derivative of the formula in the weight of each image: d tr(M^1/2) = tr(M^-1/2 dM) / 2
    along = vectors.square() @ roots if n < d else (turned @ vectors).square() @ (1 / roots)
    influence = 2 * centered @ shift + (squares - (n - 1) * along) * n / (n - 1)
    return Estimate(value.item(), influence)


def _enough(features: Tensor) -> None:
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")


def kernel_distance(
    samples: Tensor, reference: Tensor, chunk: int = CHUNK, others: float | None = None
) -> Estimate:
    """KID: the squared maximum mean discrepancy under (x.y / d + 1)^3 (Binkowski et al. 2018).

    features [n, d] and [m, d]. The unbiased U-statistic over ALL pairs, not the mean over random
    subsets, which estimates the same number with more noise; it can be slightly negative. Memory
    is chunk * (n + m).

    others  own_kernel(reference), where it is known already"""
    n, m = len(samples), len(reference)
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least 2 images on each side, got {n} and {m}")
    within = (_kernel_rows(samples, samples, chunk) - _diagonal(samples)) / (n - 1)
    across = _kernel_rows(samples, reference, chunk) / m
    others = own_kernel(reference, chunk) if others is None else others
    value = within.mean() + others - 2 * across.mean()
    return Estimate(value.item(), 2 * (within - across))


def own_kernel(features: Tensor, chunk: int = CHUNK) -> float:
    """The mean kernel of two different images of one set, [m, d] with m at least 2."""
    rows = _kernel_rows(features, features, chunk) - _diagonal(features)
    return (rows / (len(features) - 1)).mean().item()


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
