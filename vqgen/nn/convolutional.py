"""The convolutional blocks of the VQGAN line: residual block, attention block, resampling.

After Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (2021). What these
blocks compute is fixed by published weights; only the parameter names are ours.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm; published weights fix both numbers
EPSILON = 1e-6


class ResidualBlock(nn.Module):
    """[batch, in_channels, h, w] -> [batch, out_channels, h, w]: two convolutions, a skip path.

    kernel  side of the two convolutions, odd; 3 in published weights
    """

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, kernel: int = 3
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=padding)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=padding)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """[batch, channels, h, w] -> the same shape: one head over all channels, all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            rearrange(part(h), "b c h w -> b 1 (h w) c")
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2]).contiguous()
        return x + self.out(mixed)  # contiguous: else x would follow into channels_last


class Downsample(nn.Module):
    """[batch, channels, h, w] -> [batch, channels, h / 2, w / 2]: a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(
            F.pad(x, (0, 1, 0, 1))
        )  # right and bottom only, as in the published weights


class Upsample(nn.Module):
    """[batch, channels, h, w] -> [batch, channels, 2 h, 2 w]: nearest neighbor, 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as published. Raises ValueError unless channels is a multiple of 32."""
    if channels % GROUPS:
        below = max(GROUPS, channels // GROUPS * GROUPS)
        raise ValueError(
            f"every width must be a multiple of {GROUPS}, the number of GroupNorm groups, "
            f"got {channels}; change channels or multipliers so that it becomes "
            f"{below} or {below + GROUPS}"
        )
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)
