"""A fixture through the importer that users call: weights and the peer's settings in, ours out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.golden import Fixture
from vqgen.importing import layout, settings
from vqgen.importing.convert import Latents, Match, model, recognize
from vqgen.importing.export import canonical, to_theirs
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

    def replace_weights(self, theirs: dict[str, Tensor]) -> None:
        """Other values under the peer's names."""
        self.module.load_state_dict(self.match.to_ours(theirs, "these weights"))


def load(
    fixture: Fixture,
    config: dict[str, Any] | None = None,
    *,
    latents: Latents | None = None,
    size: tuple[int, int] | None = None,
) -> Imported:
    """`config` is more of the peer's settings than the fixture's own."""
    known = settings.flattened(fixture.config) | (config or {})
    path = fixture.folder / f"{fixture.prefix}weights.safetensors"
    hints = Hints(config=known, size=size)
    published = recognize(path)
    match = Match(published.family, published.describe(hints), latents)
    return Imported(model(path, hints=hints, latents=latents), match)


def assert_round_trip(imported: Imported, weights: dict[str, Tensor]) -> None:
    """The export gives back the peer's file: every name, shape and value that it has and, but for
    what is loose, nothing else."""
    description, spec = imported.match.description, imported.module.spec
    node = canonical(description.architecture, spec)
    back, loose = to_theirs(imported.match.family, node, spec, imported.module.state_dict())
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        assert back[name].shape == value.shape, name
        if name not in loose:
            assert torch.equal(back[name], value.to(back[name].dtype)), name
