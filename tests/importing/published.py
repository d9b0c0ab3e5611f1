"""Random weights with exactly the keys and shapes of the released files, out of their manifests."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity import golden
from vqgen.importing import settings
from vqgen.importing.convert import FAMILIES
from vqgen.importing.family import Family, Hints

FAMILY_OF = {  # the beginning of a manifest's name
    "llamagen_gpt": "llamagen-gpt",
    "llamagen_vq": "llamagen-vq",
    "taming_vqgan": "taming-vqgan",
    "vae_": "var-vae",
    "var_": "var",
}


class Manifest:
    """Keys and shapes of one released file."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.content = json.loads(path.read_text())
        self.config = settings.flattened(self.content)
        start = next(start for start in FAMILY_OF if self.name.startswith(start))
        self.family: Family = FAMILIES[FAMILY_OF[start]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the peer's names."""
        keys = self.content["keys"].items()
        return {n: tuple(e["shape"] if isinstance(e, dict) else e) for n, e in keys}

    @property
    def numbers(self) -> int:
        """Parameters, without those of the training loss."""
        content: dict[str, Any] = self.content
        names = ("n_parameters_without_loss", "n_parameters", "num_parameters")
        return next(content[name] for name in names if name in content)

    def random(self, device: str) -> dict[str, Tensor]:
        """Small random numbers; what follows from the sizes has its values."""
        generator = None if device == "meta" else torch.Generator().manual_seed(0)
        tensors = {
            name: torch.empty(shape, device=device).normal_(0, 0.02, generator=generator)
            for name, shape in self.shapes.items()
        }
        description = self.family.describe(self.shapes, Hints(self.config, name=self.name))
        if device != "meta" and description.spec is not None:
            derived = description.peers_own(description.spec)
            tensors |= {name: value for name, value in derived.items() if name in tensors}
        return tensors


def manifests() -> list[Manifest]:
    """All released models of which there is a manifest."""
    paths = sorted(golden.root().glob("*/manifests/*.json"))
    return [Manifest(path) for path in paths if path.stem.startswith(tuple(FAMILY_OF))]
