"""Distances between sets against closed forms, small independent versions, and torchmetrics."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from vqgen.metrics.distances import Moments, frechet, inception_score, kernel_distance
from vqgen.metrics.estimate import Estimate, mean


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, d: int, seed: int = 0) -> Tensor:
    """Points whose sample mean is exactly 0 and sample covariance exactly the identity."""
    points = normal(n, d, seed)
    return torch.linalg.qr(points - points.mean(dim=0))[0] * math.sqrt(n - 1)


def test_frechet_of_known_gaussians() -> None:
    """Commuting covariances: |shift|^2 + sum (s1 - s2)^2, with moments that are exact."""
    points = whitened(200, 4)
    scales, shift = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([1.0, 0, -2, 0])
    left, right = points * scales + shift, points * 1.5
    expected = shift.square().sum() + (scales - 1.5).square().sum()
    assert frechet(left, Moments.of(right)).value == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """2 x 2: tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)), for any two positive matrices."""
    points = whitened(300, 2, seed=1)
    left, right = torch.tensor([[2.0, 1], [0, 1]]), torch.tensor([[1.0, 0], [0.7, 0.4]])
    a, b = left.T @ left, right.T @ right
    root = torch.sqrt(torch.trace(a @ b) + 2 * torch.sqrt(torch.det(a @ b)))
    expected = (torch.trace(a) + torch.trace(b) - 2 * root).item()
    got = frechet(points @ left.double(), Moments.of(points @ right.double())).value
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [40, 300])  # fewer and more images than features
def test_frechet_equals_the_general_matrix_root(n: int) -> None:
    left, right = normal(n, 64, 1) @ normal(64, 64, 2) / 8, normal(n, 64, 3) + 0.3
    one, two = Moments.of(left), Moments.of(right)
    root = scipy.linalg.sqrtm((one.covariance @ two.covariance).numpy()).real
    expected = (one.mean - two.mean).square().sum() + torch.trace(one.covariance + two.covariance)
    expected = expected.item() - 2 * np.trace(root)
    assert frechet(left, two).value == pytest.approx(expected, rel=1e-4)


class Flat(torch.nn.Module):
    """Twelve numbers per picture, for torchmetrics to take as features."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def test_frechet_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(0, 200, (80, 3, 2, 2), dtype=torch.uint8, generator=generator)
    right = torch.randint(0, 256, (90, 3, 2, 2), dtype=torch.uint8, generator=generator)
    peer = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    peer.update(right, real=True)
    peer.update(left, real=False)
    ours = frechet(Flat()(left), Moments.of(Flat()(right))).value
    assert ours == pytest.approx(peer.compute().item(), rel=1e-6)


def test_sets_are_perfect_against_themselves() -> None:
    points = normal(50, 80)  # rank-deficient on purpose
    assert frechet(points, Moments.of(points)).value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(90, 60), (90, 200), (30, 200), (30, 20)])
def test_frechet_is_the_same_over_images_and_over_features(n: int, m: int) -> None:
    """Value and influence on either side of n = d = 40, and with a covariance without an inverse,
    against the symmetric root, every eigenvalue of [d, d]."""
    mix = normal(40, 40, 7) / 6
    points, other = normal(n, 40, 1) @ mix, normal(m, 40, 2) @ mix + 0.1
    reference, made = Moments.of(other), Moments.of(points)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ made.covariance @ root)
    kept = values > values.max() * 1e-12
    trace = (made.covariance + reference.covariance).trace() - 2 * values[kept].sqrt().sum()
    found = frechet(points, reference)
    shift = made.mean - reference.mean
    assert found.value == pytest.approx((shift.square().sum() + trace).item(), rel=1e-6)
    centered = points - made.mean
    along = (centered @ root @ vectors[:, kept]).square() @ values[kept].rsqrt()
    spread = (centered.square().sum(1) - along) * n / (n - 1)
    expected = 2 * centered @ shift + spread
    torch.testing.assert_close(found.contributions, expected, rtol=1e-4, atol=1e-5)


def test_frechet_influence_is_the_derivative() -> None:
    """Moving one image's weight by h moves the distance by h times its influence."""
    points, reference = normal(30, 3) * 1.3 + 0.2, Moments.of(normal(50, 3, 5))
    influence = frechet(points, reference).contributions

    def weighted(h: float, i: int) -> float:
        weights = torch.full((30,), (1 - h) / 30, dtype=torch.float64)
        weights[i] += h
        average = weights @ points
        centered = points - average
        covariance = (centered * weights[:, None]).T @ centered * 30 / 29
        root = scipy.linalg.sqrtm((covariance @ reference.covariance).numpy()).real
        trace = torch.trace(covariance + reference.covariance).item() - 2 * np.trace(root)
        return (average - reference.mean).square().sum().item() + trace

    slopes = [(weighted(1e-5, i) - weighted(-1e-5, i)) / 2e-5 for i in range(30)]
    centered = (influence - influence.mean()).numpy()
    assert centered == pytest.approx(np.array(slopes) - np.mean(slopes), rel=1e-3, abs=1e-3)


def test_the_interval_has_the_width_of_repeated_experiments() -> None:
    """The bootstrap's width against the spread over 200 fresh sets of samples."""
    reference = Moments.of(normal(4000, 4, 99))
    sets = [normal(300, 4, seed) * 1.2 + 0.3 for seed in range(200)]
    values = torch.tensor([frechet(points, reference).value for points in sets])
    low, high = frechet(sets[0], reference).interval()
    assert (high - low) / (2 * 1.96) == pytest.approx(values.std().item(), rel=0.25)


def test_kernel_distance_by_three_sums() -> None:
    """A double loop over pairs, and torchmetrics' matrices."""
    left, right = normal(7, 5), normal(6, 5, 1) + 0.5

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    within = sum(k(x, y) for i, x in enumerate(left) for j, y in enumerate(left) if i != j) / 42
    others = sum(k(x, y) for i, x in enumerate(right) for j, y in enumerate(right) if i != j) / 30
    across = sum(k(x, y) for x in left for y in right) / 42
    expected = within + others - 2 * across
    for chunk in (2, 100):
        assert kernel_distance(left, right, chunk).value == pytest.approx(expected)
    same = normal(6, 5, 2)
    peer = poly_mmd(same, right).item()
    assert kernel_distance(same, right).value == pytest.approx(peer)


def test_kernel_distance_of_a_set_with_itself_is_a_little_below_zero() -> None:
    """An image is compared with itself across the sets and not within them: 2 / n of what the
    diagonal of the kernel matrix is above the rest."""
    points = normal(40, 3, 0)
    kernel = (points.double() @ points.double().T / 3 + 1) ** 3
    own = kernel.diagonal().mean()
    others = (kernel.sum() - kernel.diagonal().sum()) / (40 * 39)
    found = kernel_distance(points, points).value
    assert found == pytest.approx(-2 / 40 * (own - others).item(), rel=1e-4) and found < 0


def test_kernel_distance_is_unbiased_and_its_interval_fits() -> None:
    values = [kernel_distance(normal(40, 3, s), normal(40, 3, s + 500)).value for s in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    reference = normal(400, 3, 9)
    sets = [normal(100, 3, seed) + 0.2 for seed in range(100)]
    spread = np.std([kernel_distance(points, reference).value for points in sets])
    edges = torch.tensor([kernel_distance(points, reference).interval() for points in sets[:30]])
    assert (edges[:, 1] - edges[:, 0]).mean() / (2 * 1.96) == pytest.approx(spread, rel=0.2)


def test_inception_score_of_certain_and_of_ignorant_answers() -> None:
    certain = torch.eye(8).repeat(5, 1)
    assert inception_score(certain).value == pytest.approx(8)
    assert inception_score(torch.full((10, 8), 1 / 8)).value == pytest.approx(1)
    assert inception_score(certain, splits=5).value == pytest.approx(8)


def test_inception_score_agrees_with_torchmetrics() -> None:
    logits = normal(60, 10).float() * 3
    peer = InceptionScore(feature=torch.nn.Identity(), splits=1)
    peer.features.append(logits)
    expected = peer.compute()[0].item()
    got = inception_score(logits.double().softmax(1)).value
    assert got == pytest.approx(expected, rel=1e-5)


def test_interval_of_a_mean() -> None:
    """Standard error s / sqrt(n); the same twice; widened by the level."""
    values = normal(400, 1).flatten() * 2 + 5
    estimate = mean(values)
    low, high = estimate.interval()
    error = values.std().item() / 20
    assert estimate.value == pytest.approx(values.mean().item())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert estimate.interval() == (low, high)
    wide = estimate.interval(level=0.99)
    assert wide[0] < low < estimate.value < high < wide[1]
    assert Estimate(1.0, torch.zeros(5)).interval() == (1.0, 1.0)
    few = torch.zeros(50)
    few[0] = 1
    assert mean(few).interval()[0] == 0  # not 4e-19


def test_refusals() -> None:
    with pytest.raises(ValueError, match="samples have 3 features, the reference 4"):
        frechet(normal(9, 3), Moments.of(normal(9, 4)))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        Moments.of(normal(1, 3))
    with pytest.raises(ValueError, match="1 to 4 splits, got 5"):
        inception_score(torch.eye(4), splits=5)
