"""Find and load golden fixtures: outputs of the published systems, recorded as data.

The folder is VQGEN_GOLDEN, else tests/golden, else ../shared/golden beside the checkout. A fixture
is a folder with a config.json that names a `family`, or a group of files NAME.config.json (which
names a `kind`), NAME.io.safetensors ...; a test asks for its families or kinds and gets one case
per fixture found.
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
    """One fixture: `config` (dict), `tensors(name)` (safetensors file as dict)."""

    def __init__(self, config: Path) -> None:
        self.folder = config.parent
        self.prefix = config.name.removesuffix("config.json")  # of the other files' names
        self.name = self.prefix.rstrip(".") or self.folder.name
        self.config = json.loads(config.read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of `name`.safetensors."""
        return load_file(self.folder / f"{self.prefix}{name}.safetensors")

    def beside(self, name: str) -> "Fixture":
        """Another fixture of the same folder, which this one names in its config."""
        return Fixture(self.folder / f"{name}.config.json")


def fixtures(*families: str) -> list:
    """All fixtures of these families or kinds as pytest parameters whose ids are their names."""
    paths = [*root().glob("*/*/config.json"), *root().glob("*/*.config.json")]
    found = [Fixture(path) for path in sorted(paths)]
    wanted = [
        fixture
        for fixture in found
        if fixture.config.get("family", fixture.config.get("kind")) in families
    ]
    if not wanted:
        reason = f"no fixture of {families} under the golden folder"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(fixture, id=fixture.name) for fixture in wanted]


def assert_matches(
    got: Tensor, reference: Tensor, what: str = "", *, share: float | None = None
) -> None:
    """Integers exactly, floats within TOLERANCE x max(1, |reference|max); with `share`, within
    share x |reference|max."""
    if not reference.is_floating_point():
        assert torch.equal(got.to(reference.dtype), reference), what
        return
    largest = float(reference.abs().max())
    bound = TOLERANCE * max(1.0, largest) if share is None else share * largest
    worst = float((got.detach().float() - reference).abs().max())
    assert got.shape == reference.shape and worst <= bound, (
        f"{what}: off by {worst}, may be {bound}"
    )
