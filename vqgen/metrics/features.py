"""Networks that turn images into feature vectors, for distances between sets of images.

`load("efficientnet_lite0")` needs PyPI only, `"inception"` is the network of published FIDs,
`"timm:NAME"` any model of timm, `"dinov2"` the one that papers use for FD-DINOv2."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

CHUNK = 32  # images per pass: always the same, so that features do not depend on any batch size


@dataclass(frozen=True)
class Extracted:
    """What a network says about n images, on the CPU in float32."""

    pooled: Tensor  # [n, d]
    spatial: Tensor | None  # [n, s]: part of an inner map, for sFD; None if the network has none
    probabilities: Tensor | None  # [n, classes]; None without a classifier


@dataclass(frozen=True)
class Resize:
    """How images are brought to the network: written into every card."""

    size: tuple[int, int]  # (height, width)
    filter: str  # bilinear or bicubic, by Pillow: antialiased when shrinking, rounded to uint8
    mean: tuple[float, ...]  # of the range 0..255
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float [n, 3, *size], normalized."""
        method = Image.Resampling[self.filter.upper()]
        rows = rearrange(images.cpu(), "n c h w -> n h w c").numpy()
        height, width = self.size
        resized = [Image.fromarray(row).resize((width, height), method) for row in rows]
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in resized]))
        images = rearrange(pixels, "n h w c -> n c h w").to(images.device)
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (images.float() - mean) / std


class Features(nn.Module, ABC):
    """A frozen network. `name` is part of the name of every number made with it."""

    name: str
    is_fid: bool = False  # only the Inception network's Frechet distance may be called FID
    preprocessing: dict[str, Any]  # as the card states it

    @abstractmethod
    def forward(self, images: Tensor) -> Extracted:
        """One pass: uint8 [n, 3, H, W] on the network's device."""

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Extracted:
        """uint8 [n, 3, H, W] -> features of all, in passes of a fixed size."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"wanted uint8 images [n, 3, H, W], got {images.dtype} {list(images.shape)}"
            )
        device = next(self.parameters()).device
        done = [self(part.to(device)) for part in images.contiguous().split(CHUNK)]

        def joined(name: str) -> Tensor | None:
            parts = [getattr(one, name) for one in done]
            return None if parts[0] is None else torch.cat([part.float().cpu() for part in parts])

        pooled = torch.cat([one.pooled.float().cpu() for one in done])
        return Extracted(pooled, joined("spatial"), joined("probabilities"))


def load(name: str, weights: str | None = None, device: str = "cpu") -> Features:
    """The network of this name, frozen, on `device`.

    weights  a file to read instead of the usual place (inception and timm: only)
    Raises ValueError for a name that is not known or weights that cannot be had, with the cure."""
    from vqgen.metrics.inception import Inception  # each imports an optional library
    from vqgen.metrics.timm_features import DINOV2, EfficientNetLite0, Timm

    if name == "efficientnet_lite0":
        if weights is not None:
            raise ValueError(
                f"features=efficientnet_lite0 has its package's weights, got weights={weights}; "
                "leave weights out"
            )
        made: Features = EfficientNetLite0()
    elif name == "inception":
        made = Inception(weights)
    elif name == "dinov2":
        made = Timm(DINOV2, name="dinov2", weights=weights)
    elif name.startswith("timm:"):
        made = Timm(name.removeprefix("timm:"), name=name, weights=weights)
    else:
        raise ValueError(
            f"features={name} is not known; there are efficientnet_lite0, inception, dinov2 and "
            "timm:NAME, for instance timm:resnet50"
        )
    return made.eval().requires_grad_(False).to(device)
