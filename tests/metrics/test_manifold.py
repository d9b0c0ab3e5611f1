"""Precision, recall, density, coverage: sets with known answers, and a version by plain loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgen.metrics.manifold import manifold, nearest


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def values(samples: Tensor, reference: Tensor, **options: Any) -> dict[str, float]:
    return {name: found.value for name, found in manifold(samples, reference, **options).items()}


def by_loops(samples: Tensor, reference: Tensor, k: int) -> dict[str, float]:
    """The definitions, word for word."""

    def radius(i: int, points: Tensor) -> float:
        others = [(points[i] - p).norm().item() for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    real = [radius(i, reference) for i in range(len(reference))]
    made = [radius(j, samples) for j in range(len(samples))]
    apart = [[(x - y).norm().item() for y in samples] for x in reference]
    rows, columns = range(len(reference)), range(len(samples))
    inside = [[apart[i][j] <= real[i] for j in columns] for i in rows]
    return {
        "precision": sum(any(inside[i][j] for i in rows) for j in columns) / len(columns),
        "recall": sum(any(apart[i][j] <= made[j] for j in columns) for i in rows) / len(rows),
        "density": sum(sum(row) for row in inside) / k / len(columns),
        "coverage": sum(any(row) for row in inside) / len(rows),
    }


@pytest.mark.parametrize("chunk", [3, 1000])
def test_definitions(chunk: int) -> None:
    samples, reference = normal(25, 3) * 0.8 + 0.4, normal(30, 3, 1)
    expected = by_loops(samples, reference, k=2)
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1  # a case that tells
    assert values(samples, reference, neighbors=2, chunk=chunk) == pytest.approx(expected)


def test_a_set_with_itself_is_perfect() -> None:
    points = normal(60, 10)
    found = values(points, points)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] >= 1


def test_half_of_the_modes() -> None:
    """Real: two far clusters. Samples: one of them. All good, half recalled, half covered."""
    left, right = normal(40, 4), normal(40, 4, 1) + 1000
    found = values(left, torch.cat([left, right]))
    assert found["precision"] == 1 and found["recall"] == found["coverage"] == 0.5
    found = values(torch.cat([left, right]), left)
    assert found["precision"] == 0.5 and found["recall"] == 1


def test_collapse_and_far_samples() -> None:
    reference = normal(50, 4)
    collapsed = reference[:1].repeat(50, 1)
    found = values(collapsed, reference)
    assert found["precision"] == 1 and found["recall"] == pytest.approx(1 / 50)
    far = values(normal(50, 4, 1) + 1000, reference)
    assert set(far.values()) == {0.0}


def test_an_outlier_fools_precision_but_not_density() -> None:
    """Naeem et al. 2020, section 2: one real outlier owns a huge ball."""
    reference = torch.cat([normal(99, 2), torch.full((1, 2), 60.0)])
    samples = normal(100, 2, 1) * 5 + 30
    found = values(samples, reference)
    assert found["precision"] > 0.9 and found["density"] < 0.3


def test_intervals_of_a_share() -> None:
    samples, reference = normal(400, 3) * 1.5, normal(300, 3, 1)
    found = manifold(samples, reference)["precision"]
    share = found.value
    low, high = found.interval()
    expected = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert 0.3 < share < 0.98 and (high - low) / 2 == pytest.approx(expected, rel=0.15)


def test_nearest() -> None:
    reference = normal(40, 6)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:10]
    distance, index = nearest(reference[order] + 1e-3, reference, chunk=4)
    assert index.tolist() == order.tolist()
    assert distance.tolist() == pytest.approx([1e-3 * 6**0.5] * 10, rel=1e-3)


def test_a_copy_is_at_no_distance() -> None:
    """Far from 0, where |x|^2 + |y|^2 - 2 x.y loses what is left."""
    reference = normal(200, 16) + 1e4
    distance, index = nearest(reference[5:9], reference)
    assert index.tolist() == [5, 6, 7, 8] and distance.tolist() == [0, 0, 0, 0]
    one, _ = nearest(reference[:2], reference[3:4])  # fewer images than candidates
    assert one.tolist() == pytest.approx((reference[:2] - reference[3]).norm(dim=1).tolist())


def test_too_few_for_the_neighbours() -> None:
    with pytest.raises(ValueError, match="need more than 5 samples, got 5"):
        manifold(normal(5, 2), normal(9, 2))
    with pytest.raises(ValueError, match="need more than 5 reference images, got 4"):
        manifold(normal(9, 2), normal(4, 2))
