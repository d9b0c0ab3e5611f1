"""How close reconstructions are to their images: PSNR and SSIM, one number per image."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SMALLEST_MSE = (
    1e-10  # on [0, 1]: a perfect copy counts as 100 dB instead of infinity, so that means exist
)
SSIM_WINDOW = 11  # pixels, the Gaussian window of the paper


def psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, [batch], at most 100; both [batch, 3, H, W] in [-1, 1].

    The reconstruction is clamped first, as a viewer would; the mean is over pixels and channels."""
    error = _unit_range(reconstruction) - _unit_range(images)
    mse = error.square().mean(dim=(1, 2, 3))
    return -10 * mse.clamp_min(SMALLEST_MSE).log10()


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Structural similarity, [batch], 1 for a perfect copy; both [batch, 3, H, W] in [-1, 1].

    Wang et al. 2004, Gaussian window of 11 pixels, sigma 1.5. Computed after mapping to [0, 1],
    where the index is defined: its luminance term depends on where zero is. The reconstruction is
    clamped first. Raises ValueError for images below 11 pixels per side."""
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels per side; got {height}x{width}. "
            "Use psnr alone, or a larger data.size"
        )
    with torch.autocast(images.device.type, enabled=False):  # it is made of convolutions
        value = structural_similarity_index_measure(
            _unit_range(reconstruction), _unit_range(images), data_range=1.0, reduction="none"
        )
    assert isinstance(value, Tensor)
    return value.reshape(images.shape[0])


def _unit_range(images: Tensor) -> Tensor:
    """Clamp to [-1, 1], then map to [0, 1], in float32."""
    return (images.float().clamp(-1, 1) + 1) / 2
