"""A fixture through the importer that users call: weights and the peer's settings in, ours out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.golden import Fixture
from vqgen.importing import layout, settings
from vqgen.importing.convert import Latents, Match, model, recognize
from vqgen.importing.family import Hints


@dataclass(frozen=True)
class Imported:
    """Our module with a fixture's weights, in eval mode, and what goes where."""

    module: Any
    match: Match

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of our parameters under the peer's names."""
        ours = {
            name: parameter.grad
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None
        }
        links = [link for link in self.match.links if all(name in ours for name in link.ours)]
        return layout.to_theirs(links, ours)


def load(
    fixture: Fixture,
    config: dict[str, Any] | None = None,
    *,
    name: str = "weights",
    latents: Latents | None = None,
    size: tuple[int, int] | None = None,
) -> Imported:
    """`config` is more of the peer's settings than the fixture's own."""
    known = settings.flattened(fixture.config) | (config or {})
    hints, path = Hints(config=known, size=size), fixture.folder / f"{name}.safetensors"
    published = recognize(path)
    match = Match(published.family, published.describe(hints), latents)
    return Imported(model(path, hints=hints, latents=latents), match)


def assert_round_trip(imported: Imported, weights: dict[str, Tensor]) -> None:
    """The export gives back the peer's file: every name, shape and value that it has and, but for
    what is loose, nothing else."""
    back = imported.match.to_theirs(imported.module.state_dict())
    loose = imported.match.description.loose
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        assert back[name].shape == value.shape, name
        if name not in loose:
            assert torch.equal(back[name], value.to(back[name].dtype)), name


def parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters())
