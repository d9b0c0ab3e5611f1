"""What is painted anew and what is kept: from pixels to latents.

`paint` is Bool [batch, H, W] over the pixels of the images, True where new content is wanted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.data.decode import UnreadableImage, decode, open_image

Edit = tuple[Tensor, Tensor]  # the image, uint8 [3, H, W], and what to paint of it, Bool [H, W]
# Share of a coarse cell that has to be painted before its token is given up: a coarse token that is
# kept tells the new part the colors of the old one.
MOSTLY = 0.7
OUTSIDE = "what is outside of the box, or black in the mask, is new: type a smaller box"


def asked(settings: dict[str, Any], size: Size) -> Edit | None:
    """The settings edit, image, mask and box -> the edit, if there is to be one.

    edit=inpaint paints inside the mask's white or the box, edit=outpaint everywhere else. Raises
    ValueError where they do not say one thing."""
    mode = settings["edit"]
    if mode is None:
        for name in ("image", "mask", "box"):
            if settings[name] is not None:
                raise ValueError(
                    f"{name}= is for edits: type edit=inpaint or edit=outpaint with it"
                )
        if not settings["paste"]:
            raise ValueError("paste=false is for edits: type edit=inpaint or edit=outpaint with it")
        return None
    if mode not in ("inpaint", "outpaint"):
        raise ValueError(f"wanted edit=inpaint or edit=outpaint, got edit={mode}")
    if settings["image"] is None or (settings["mask"] is None) == (settings["box"] is None):
        raise ValueError(
            f"edit={mode} needs image=PATH and exactly one of mask=PATH and "
            "box=[top,left,bottom,right], "
            f"got image={settings['image']}, mask={settings['mask']}, box={settings['box']}"
        )
    image = read_image(settings["image"], size)
    if settings["mask"] is not None:
        paint = read_mask(settings["mask"], size, image=settings["image"])
    else:
        paint = box_mask(settings["box"], size)
    return image, _something(~paint, "edit=outpaint", OUTSIDE) if mode == "outpaint" else paint


def keep_mask(spec: LatentSpec, paint: Tensor) -> Tensor:
    """paint Bool [batch, H, W] -> Bool of the latents' shape, True = keep.

    A cell of the finest grid is given up as soon as one of its pixels is painted. A token of a
    coarser scale speaks for much more than the painted part, and the kept finer tokens are
    corrections to it, so it is given up only if MOSTLY of its cell is painted."""
    share = paint.float()[:, None]
    if not isinstance(spec, TokenSpec):
        touched = F.adaptive_max_pool2d(share, (spec.height, spec.width)) > 0
        return ~touched.expand(-1, spec.channels, -1, -1)
    *coarse, finest = spec.scales
    lost = [F.adaptive_avg_pool2d(share, size).flatten(1) >= MOSTLY for size in coarse]
    lost.append(F.adaptive_max_pool2d(share, finest).flatten(1) > 0)
    return ~torch.cat(lost, dim=1)


def read_image(path: str | Path, size: Size) -> Tensor:
    """An image file -> uint8 [3, H, W], resized to cover `size` and cut out at the center.

    Raises ValueError for a file that is missing, damaged or no image."""
    try:
        with open_image(str(path)) as image:
            pixels = decode(image, size=size, min_size=1, crop=True)
    except UnreadableImage as error:
        raise _refused("image", path, error) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path, size: Size, *, image: str | Path) -> Tensor:
    """A picture of the mask for the picture `image` -> Bool [H, W], True where it is white; resized
    and cut like that picture.

    Raises ValueError as `read_image`, for a mask of another size than its picture, and for one that
    is all black."""
    try:
        with open_image(str(path)) as mask, open_image(str(image)) as picture:
            if mask.size != picture.size:
                raise ValueError(
                    f"wanted a mask of the picture's {picture.size[0]} x {picture.size[1]} pixels "
                    f"(width x height), got {mask.size[0]} x {mask.size[1]}; make mask={path} on a "
                    "copy of the picture"
                )
            grey = decode(mask, size=size, min_size=1, crop=True).mean(axis=-1)
    except UnreadableImage as error:
        raise _refused("mask", path, error) from None
    return _something(torch.from_numpy(grey > 127), f"mask={path}", "make white what is to be new")


def box_mask(box: Sequence[float], size: Size) -> Tensor:
    """(top, left, bottom, right) as fractions of height and width -> Bool [H, W], True inside.

    Raises ValueError unless 0 <= top < bottom <= 1, and the same for left and right."""
    cure = "type box=[top,left,bottom,right] in fractions of the image, say box=[0.25,0,0.75,1]"
    numbers = isinstance(box, Sequence) and all(isinstance(side, int | float) for side in box)
    if not numbers or isinstance(box, str) or len(box) != 4:
        raise ValueError(f"wanted a box of four numbers, got {box}; {cure}")
    top, left, bottom, right = box
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(f"wanted a box with 0 <= top < bottom <= 1, got {list(box)}; {cure}")
    height, width = size
    inside = torch.zeros(size, dtype=torch.bool)
    rows = slice(round(top * height), round(bottom * height))
    inside[rows, round(left * width) : round(right * width)] = True
    return _something(inside, f"box={list(box)}", "type a larger box, of a pixel at least")


def _something(paint: Tensor, source: str, cure: str) -> Tensor:
    if not paint.any():
        raise ValueError(
            f"{source} leaves nothing to paint at {paint.shape[0]} x {paint.shape[1]} pixels; "
            f"{cure}"
        )
    return paint


def _refused(role: str, path: str | Path, reason: Exception) -> ValueError:
    if not Path(path).exists():
        return ValueError(f"{role}={path} does not exist; type {role}=PATH of a picture")
    return ValueError(f"{role}={path} {reason}; type {role}=PATH of a PNG or JPEG")
