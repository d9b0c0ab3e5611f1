"""Pixel losses: how far a reconstruction is from its image, pixel by pixel, as one number."""

import math
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from vqgen.losses.choices import choose

PixelLoss = Callable[[Tensor, Tensor], Tensor]

HUBER_WIDTH = (
    0.1  # of the range [-1, 1]: about 13 of 255 grey levels; closer than this is quadratic
)


def pixel_loss(choice: str | Mapping[str, float]) -> PixelLoss:
    """The loss of that name, or the weighted sum of several: {"l1": 1.0, "l2": 0.2}.

    Raises ValueError for a name that does not exist; it says the nearest."""
    if isinstance(choice, str):
        return choose(PIXEL_LOSSES, choice, "loss.pixel")
    terms = [(choose(PIXEL_LOSSES, name, "loss.pixel"), weight) for name, weight in choice.items()]
    for name, weight in choice.items():
        if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
            raise ValueError(
                f"wanted loss.pixel.{name} (a weight) of at least 0, got {weight}; type "
                f"loss.pixel={name}, or weights like loss.pixel={{l1:1.0,l2:0.2}}"
            )
    if not terms:
        raise ValueError(
            "loss.pixel is empty; try loss.pixel=l1 (and loss.pixel_weight=0 for none)"
        )

    def weighted_sum(reconstruction: Tensor, images: Tensor) -> Tensor:
        values = [weight * term(reconstruction, images) for term, weight in terms]
        return sum(values[1:], start=values[0])

    return weighted_sum


def l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Two tensors of one shape -> mean absolute error, a scalar."""
    return F.l1_loss(reconstruction, images)


def l2(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Two tensors of one shape -> mean squared error, a scalar."""
    return F.mse_loss(reconstruction, images)


def huber(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Two tensors of one shape -> mean Huber loss, a scalar.

    Divided by its width: it has the slope of `l1`, and the weights need no change."""
    return F.smooth_l1_loss(reconstruction, images, beta=HUBER_WIDTH)


def mixed(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Two tensors of one shape -> half `l1` and half `l2`, a scalar (a mapping: other weights)."""
    return 0.5 * l1(reconstruction, images) + 0.5 * l2(reconstruction, images)


PIXEL_LOSSES: dict[str, PixelLoss] = {"l1": l1, "l2": l2, "huber": huber, "mixed": mixed}
