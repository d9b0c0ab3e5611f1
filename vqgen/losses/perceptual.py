"""The perceptual loss: LPIPS distance through a frozen backbone that is always in eval mode."""

import logging
import warnings
from functools import cache
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn

from vqgen.losses.backbone import BACKBONES, find_weights, missing_message, random_weights
from vqgen.losses.choices import choose

MISSING = {"error": False, "random": True}  # go on without pretrained weights?


class PerceptualDistance(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018), per image, on images in [-1, 1].

    net        "vgg", "alex" or "squeeze"
    weights    file of the backbone in torchvision's format (.pth, read with weights_only, or
               .safetensors); None: the torch hub cache, else a download
    missing    what to do if there are none: "error", or "random" for a seeded random backbone

    All weights are in the state dict, and so is the flag `random`. Raises ValueError for unknown
    names, files that do not fit, and weights that cannot be had under missing="error"."""

    is_random: Tensor

    def __init__(
        self, *, net: str = "vgg", missing: str = "error", weights: str | None = None
    ) -> None:
        super().__init__()
        self.backbone = choose(BACKBONES, net, "loss.perceptual.net")
        may_be_random = choose(MISSING, missing, "loss.perceptual.missing")
        self.net = net
        self.distance = _empty_lpips(net)
        found = find_weights(net, weights)
        if found is None and not may_be_random:
            raise ValueError(missing_message(net))
        if found is None:
            _warn_once(net)
        self._fill(found)
        self.register_buffer("is_random", torch.tensor(found is None))
        self.requires_grad_(False)
        self.train(False)

    @property
    def random(self) -> bool:
        """True if the backbone is a random one; restored with the state dict."""
        return bool(self.is_random)

    def check_size(self, size: tuple[int, int]) -> None:
        """size (height, width). Raises ValueError if the backbone cannot take such images."""
        needed = self.backbone.smallest_size
        if min(size) < needed:
            raise ValueError(
                f"LPIPS with net={self.net} needs images of at least {needed} pixels per side; got "
                f"{size[0]}x{size[1]}. Try a larger data.size or loss.perceptual=none"
            )

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode whatever `mode` says: LPIPS has dropout, and a measure must not."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Both [batch, 3, H, W] in [-1, 1] -> distances [batch], in float32 whatever autocast says.

        The gradient flows to the reconstruction only."""
        with torch.autocast(images.device.type, enabled=False):
            return self.distance(reconstruction.float(), images.detach().float()).flatten()

    def _fill(self, found: dict[str, Tensor] | None) -> None:
        """Fill the empty net: backbone, linear heads (the lpips package's own), input scaling."""
        shapes = {name: value.shape for name, value in self.distance.state_dict().items()}
        published = {name: _published_name(name) for name in shapes if name.startswith("net.")}
        if found is None:
            state = random_weights({name: shapes[name] for name in published})
        else:
            _check(found, {published[name]: shapes[name] for name in published}, self.net)
            state = {name: found[published[name]].float() for name in published}
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{self.net}.pth"
        state |= torch.load(heads, map_location="cpu", weights_only=True)
        for name, value in lpips.ScalingLayer().state_dict().items():
            state[f"scaling_layer.{name}"] = value
        for name in shapes:
            if name.startswith("lins."):  # the package lists its heads a second time
                state[name] = state[name.replace("lins.", "lin", 1)]
        self.distance.load_state_dict(state, strict=True, assign=True)


def _empty_lpips(net: str) -> nn.Module:
    """The lpips package's network without storage: no time and no random numbers are spent."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # lpips calls torchvision in the old way
        return lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)


def _published_name(name: str) -> str:
    """lpips: net.slice3.10.weight, torchvision: features.10.weight"""
    return "features." + name.split(".", 2)[2]


def _check(found: dict[str, Tensor], shapes: dict[str, torch.Size], net: str) -> None:
    for name, shape in shapes.items():
        got = found.get(name)
        if not isinstance(got, Tensor) or got.shape != shape:
            came = "nothing" if not isinstance(got, Tensor) else f"shape {list(got.shape)}"
            raise ValueError(
                f"these backbone weights do not fit LPIPS net={net}: {name} has to have shape "
                f"{list(shape)}, got {came}. Give torchvision's file {BACKBONES[net].file_name} "
                "in loss.perceptual.weights, or the loss.perceptual.net that they are for"
            )


@cache
def _warn_once(net: str) -> None:
    logging.getLogger(__name__).warning(
        f"NO PRETRAINED WEIGHTS FOR LPIPS ({net.upper()}): GOING ON WITH A SEEDED RANDOM BACKBONE. "
        "ITS DISTANCES ARE NOT COMPARABLE WITH PUBLISHED LPIPS."
    )
