"""A fixture through the import command's own function and the folder it makes: weights and the
peer's settings in, out of the folder what a fine-tuning would start from."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tests.importing import small
from tests.parity.golden import Fixture
from vqgen import checkpoint, finetune, pipeline
from vqgen.importing import export, layout, settings
from vqgen.importing.convert import Latents, Match, recognize
from vqgen.importing.export import canonical, to_theirs
from vqgen.importing.family import Hints
from vqgen.importing.folder import import_files
from vqgen.importing.pairs import Beside


@dataclass(frozen=True)
class Imported:
    """Our module with a fixture's weights, in eval mode, and what goes where; the tokenizer in the
    same folder (for a tokenizer: itself)."""

    module: Any
    match: Match
    tokenizer: Any

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
    size: tuple[int, int] | None = None,
    beside: Fixture | None = None,
) -> Imported:
    """Import a tokenizer, or a prior and a tokenizer.

    config  more of the peer's settings than the fixture's own
    size    of a tokenizer's images
    beside  the tokenizer of a prior; None: a random one of LlamaGen's layout with as many codes"""
    with TemporaryDirectory() as name:
        folder = Path(name)
        typed = folder / "typed.json"
        typed.write_text(json.dumps(config))
        configs = [_settings_of(fixture), *([typed] if config else [])]
        paths, kind = [_weights_of(fixture)], recognize(_weights_of(fixture)).family.kind
        if beside is not None:
            paths, configs = [_weights_of(beside), *paths], [_settings_of(beside), *configs]
        elif kind == "prior":
            codes = recognize(paths[0]).codes
            assert codes is not None
            paths = [_random_tokenizer(folder, codes), *paths]
        hints = Hints(config=settings.read(configs), size=size)
        import_files(paths, folder / "out", hints=hints)
        made = pipeline.load(folder / "out")
        image_size = made.tokenizer.image_size
        if kind == "tokenizer":
            module = finetune.tokenizer(folder / "out", image_size).model.eval()
            return Imported(module, _match(fixture, hints), module)
        count = checkpoint.read_header(folder / "out" / "prior")["facts"]["num_classes"]
        module = finetune.prior(folder / "out", made.tokenizer, count).model.eval()
        latents = Beside.of_folder(folder / "out" / "tokenizer").latents
        return Imported(module, _match(fixture, hints, latents), made.tokenizer)


def _match(fixture: Fixture, hints: Hints, latents: Latents | None = None) -> Match:
    published = recognize(_weights_of(fixture))
    return Match(published.family, published.describe(hints), latents)


def _weights_of(fixture: Fixture) -> Path:
    return fixture.folder / f"{fixture.prefix}weights.safetensors"


def _settings_of(fixture: Fixture) -> Path:
    return fixture.folder / f"{fixture.prefix}config.json"


def _random_tokenizer(folder: Path, codes: int) -> Path:
    """A small tokenizer in LlamaGen's layout."""
    codebook = {"codebook": small.codebook(normalize=True) | {"size": codes}}
    node = small.autoencoder({**small.VQ, **codebook})
    path = folder / "tokenizer.safetensors"
    export.export(small.save_tokenizer(folder / "random", node), "tokenizer", path, "llamagen-vq")
    return path


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
