"""The weights of an LPIPS backbone: from a file, the torch hub cache, a download, or a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

PATIENCE = 10.0  # seconds for the server's first answer: without a network the error comes by then
SEED = 20180111  # of random backbones: always the same one


@dataclass(frozen=True)
class Backbone:
    """A network that LPIPS can read: the address of its weights, the fewest pixels per side."""

    url: str
    smallest_size: int  # below it a pooling layer has nothing left

    @property
    def file_name(self) -> str:
        """Torchvision's name of the file."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def cached(self) -> Path:
        """Where torch hub keeps the file."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file_name


BACKBONES = {
    "vgg": Backbone(VGG16_Weights.IMAGENET1K_V1.url, smallest_size=16),
    "alex": Backbone(AlexNet_Weights.IMAGENET1K_V1.url, smallest_size=31),
    "squeeze": Backbone(SqueezeNet1_1_Weights.IMAGENET1K_V1.url, smallest_size=17),
}


def find_weights(net: str, path: str | None) -> dict[str, Tensor] | None:
    """The state dict of torchvision's `net`: from `path` if given, else the cache, else a download.

    None if there is neither file nor network. Raises ValueError if a file cannot be read."""
    backbone = BACKBONES[net]
    if path is not None:
        return _read(Path(path).expanduser(), "Check the path in loss.perceptual.weights")
    if backbone.cached.is_file():
        return _read(backbone.cached, "Delete it to have it downloaded again")
    if not _answers(backbone.url):
        return None
    try:
        return torch.hub.load_state_dict_from_url(
            backbone.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, HTTPException, RuntimeError):  # connection lost, disk full, damaged file
        return None


def random_weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Names and shapes of a convolutional net's parameters -> He-normal weights, small biases.

    Seeded: the same at every call; torch's global random state is neither read nor changed."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(shape: torch.Size) -> Tensor:
        spread = (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.05
        return spread * torch.randn(shape, generator=generator)

    return {name: draw(shape) for name, shape in shapes.items()}


def missing_message(net: str) -> str:
    """What to tell a user whose backbone weights cannot be had."""
    backbone = BACKBONES[net]
    return (
        f"the perceptual loss (LPIPS, net={net}) needs the file {backbone.file_name}: it is not in "
        f"{backbone.cached.parent}, and {backbone.url} cannot be reached. Try one of\n"
        f"  loss.perceptual.weights=PATH     that file, copied from a machine with a network\n"
        f"  loss.perceptual.net={_others(net):<13}another, smaller backbone, if you have its file\n"
        f"  loss.perceptual.missing=random   a seeded random backbone: works, but is no LPIPS\n"
        f"  loss.perceptual=none             no perceptual loss"
    )


def _others(net: str) -> str:
    return "|".join(name for name in BACKBONES if name not in (net, "vgg"))


def _read(path: Path, cure: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"there is no file {path} of LPIPS backbone weights. {cure}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file does to the reader
        raise ValueError(f"{path} cannot be read as LPIPS backbone weights. {cure}") from error


def _answers(url: str) -> bool:
    """Does the server answer in time? In a thread: looking up a name knows no time limit."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=PATIENCE):
                answered.append(True)
        except (OSError, HTTPException):
            pass

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answered)
