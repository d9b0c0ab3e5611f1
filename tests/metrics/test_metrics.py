"""Metrics against closed forms: PSNR, SSIM, code usage, and the units of likelihood."""

import pytest
import torch

from vqgen.contracts import TokenSpec
from vqgen.metrics.codebook import CodeUsage, ScaleUsage
from vqgen.metrics.reconstruction import psnr, ssim
from vqgen.metrics.units import bits_per_dimension, bits_per_token, uniform_bits


def test_psnr_of_a_constant_error() -> None:
    images = torch.zeros(3, 3, 4, 5)
    errors = torch.tensor([0.2, 0.02, 0.0]).view(3, 1, 1, 1)
    # an error of 0.2 in a range of 2 is a tenth: 20 dB
    torch.testing.assert_close(psnr(images + errors, images), torch.tensor([20.0, 40.0, 100.0]))


def test_psnr_and_ssim_clamp_the_reconstruction() -> None:
    images = torch.ones(1, 3, 16, 16)
    assert psnr(images + 5, images).item() == pytest.approx(100)
    assert ssim(images + 5, images).item() == pytest.approx(1)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    """No structure: (2 a b + c) / (a^2 + b^2 + c) on [0, 1], with c = 0.01^2."""
    a, b, c = 0.25, 0.75, 0.01**2
    value = ssim(torch.full((2, 3, 16, 20), 2 * a - 1), torch.full((2, 3, 16, 20), 2 * b - 1))
    expected = torch.full((2,), (2 * a * b + c) / (a * a + b * b + c))
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)  # small variances of float32


def test_ssim_is_per_image_and_falls_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(3, 3, 16, 16, generator=generator)
    noise *= torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    values = ssim(images + noise, images)
    assert values.shape == (3,) and values[0] == pytest.approx(1) and values[1] > values[2]
    torch.testing.assert_close(ssim((images + noise)[1:2], images[1:2]), values[1:2])
    assert ssim(images[:1], images[:1]).shape == (1,)


def test_ssim_is_float32_under_autocast() -> None:
    images, made = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = ssim(made, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(made, images), expected)


def test_ssim_refuses_images_below_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels per side; got 8x16"):
        ssim(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))


def test_code_usage() -> None:
    usage = CodeUsage(8)
    assert usage.usage() == 0 and usage.perplexity() == 1
    usage.update(torch.tensor([[0, 1], [2, 3]]))
    usage.update(torch.tensor([[0, 1], [2, 3]]))
    assert usage.counts.tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
    assert usage.usage() == 0.5 and usage.perplexity() == pytest.approx(4)
    usage.update(torch.zeros(10**4, dtype=torch.long))
    assert usage.usage() == 0.5 and usage.perplexity() < 1.1
    usage.reset()
    assert usage.counts.sum() == 0


def test_usage_by_scale_and_its_bound() -> None:
    usage = ScaleUsage(8, ((1, 1), (1, 2), (2, 3)))
    tokens = torch.tensor([[3, 0, 1, 0, 1, 2, 3, 4, 5], [3, 0, 1, 2, 3, 4, 5, 6, 7]])
    usage.update(tokens[:1])
    usage.update(tokens[1:])
    assert usage.summary() == "0_1x1 1/2  1_1x2 2/4  2_2x3 8/8"
    assert list(usage.shares().values()) == pytest.approx([1 / 2, 2 / 4, 1])
    numbers = usage.numbers()
    assert [numbers[f"codebook/usage/{name}"] for name in usage.names] == [1 / 8, 2 / 8, 1]
    assert [numbers[f"codebook/usage_bound/{name}"] for name in usage.names] == [2 / 8, 4 / 8, 1]
    assert numbers["codebook/perplexity/0_1x1"] == pytest.approx(1)
    assert numbers["codebook/perplexity/1_1x2"] == pytest.approx(2)
    usage.reset()
    assert set(usage.shares().values()) == {0.0}


def test_code_usage_refuses_foreign_tokens() -> None:
    with pytest.raises(ValueError, match="below vocab_size=4; got 7"):
        CodeUsage(4).update(torch.tensor([1, 7]))


def test_units_of_the_uniform_prior() -> None:
    """Lines of two published tokenizers at 256 x 256: 16 x 16 of 16,384 codes; 680 of 4,096."""
    raster = TokenSpec(16384, ((16, 16),))
    pyramid = TokenSpec(4096, tuple((n, n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    for spec, line in ((raster, 0.018229), (pyramid, 0.041504)):
        bits = uniform_bits(spec)
        assert bits_per_dimension(bits, (256, 256)) == pytest.approx(line, abs=5e-7)
        assert 2 ** bits_per_token(bits, spec.length) == pytest.approx(spec.vocab_size)
    assert bits_per_dimension(torch.tensor([6.0]), (1, 2)).tolist() == [1.0]
