"""The decoder's likelihood: masses that sum to one, a width that is found, a known entropy."""

import math

import pytest
import torch

from vqgen.metrics.decoder import DiscreteLaplace


@pytest.mark.parametrize("width", [0.1, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("center", [-1.0, -0.3, 0.5, 1.0])
def test_the_masses_sum_to_one(width: float, center: float) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    bits = DiscreteLaplace(width).bits(torch.full((256, 1, 1, 1), center), values)
    assert torch.exp2(-bits).sum().item() == pytest.approx(1)
    assert bits.isfinite().all() and (bits >= 0).all()


def test_mass_by_numeric_integration() -> None:
    width, center, value = 3.0, 100.0, 108
    grid = torch.linspace(value - 0.5, value + 0.5, 20001, dtype=torch.float64)
    density = torch.exp(-(grid - center).abs() / width) / (2 * width)
    expected = -math.log2(torch.trapezoid(density, grid).item())
    decoded = torch.full((1, 1, 1, 1), center / 127.5 - 1, dtype=torch.float64)
    images = torch.full((1, 1, 1, 1), value, dtype=torch.uint8)
    assert DiscreteLaplace(width).bits(decoded, images).item() == pytest.approx(expected)


def test_fit_finds_the_width() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(8, 3, 32, 32, generator=generator, dtype=torch.float64) - 0.5
    noise = -4.0 * uniform.sign() * torch.log1p(-2 * uniform.abs())
    images = (128 + noise).round().clamp(0, 255).to(torch.uint8)
    decoded = torch.full(images.shape, 128 / 127.5 - 1)
    fitted = DiscreteLaplace.fit(decoded, images)
    assert fitted.width == pytest.approx(4.0, rel=0.1)
    per_pixel = fitted.bits(decoded, images).mean().item() / (3 * 32 * 32)
    assert per_pixel == pytest.approx(math.log2(2 * math.e * 4.0), abs=0.05)  # Laplace's entropy
