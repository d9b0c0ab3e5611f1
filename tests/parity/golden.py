"""Find and load golden fixtures: outputs of the published systems, recorded as data.

The folder is VQGEN_GOLDEN, else tests/golden, else ../shared/golden beside the checkout. Every
folder below it that holds a config.json with a `family` is a fixture; a test asks for its families
and gets one case per fixture found.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4  # times max(1, largest absolute reference value), in float32 (FACTS)


def root() -> Path:
    """The golden folder in use (it may not exist: then no fixture is found)."""
    if given := os.environ.get("VQGEN_GOLDEN"):
        return Path(given)
    local = CHECKOUT / "tests" / "golden"
    return local if local.is_dir() else CHECKOUT.parent / "shared" / "golden"


class Fixture:
    """One fixture folder: `config` (dict), `tensors(name)` (safetensors file as dict)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of `name`.safetensors."""
        return load_file(self.folder / f"{name}.safetensors")


def fixtures(*families: str) -> list:
    """All fixtures of these families as pytest parameters whose ids are the folder names."""
    found = [Fixture(path.parent) for path in sorted(root().glob("*/*/config.json"))]
    wanted = [fixture for fixture in found if fixture.config.get("family") in families]
    if not wanted:
        reason = f"no fixture of {families} under the golden folder"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(fixture, id=fixture.folder.name) for fixture in wanted]


def assert_matches(got: Tensor, reference: Tensor, what: str = "") -> None:
    """Integers exactly, floats within TOLERANCE x max(1, |reference|max)."""
    if not reference.is_floating_point():
        assert torch.equal(got.to(reference.dtype), reference), what
        return
    bound = TOLERANCE * max(1.0, float(reference.abs().max()))
    worst = float((got.detach().float() - reference).abs().max())
    assert got.shape == reference.shape and worst <= bound, (
        f"{what}: off by {worst}, may be {bound}"
    )
