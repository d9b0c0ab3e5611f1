"""Every released model from its manifest: strict import, the peer's keys back; two of them really,
with files, memory and images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.importing.published import Manifest, manifests
from vqgen import pipeline
from vqgen.importing.convert import Latents, Match
from vqgen.importing.export import canonical, to_theirs
from vqgen.importing.family import Hints
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi

CHECKOUT = Path(__file__).resolve().parents[2]
FOUND = {manifest.name: manifest for manifest in manifests()}
NONE = [pytest.param(None, marks=pytest.mark.skip(reason="no manifest"), id="none")]


def latents_of(manifest: Manifest, spec) -> Latents:
    """What the tokenizer beside a prior would tell it."""
    if manifest.family.name != "var":
        return Latents(spec)
    channels = manifest.shapes["word_embed.weight"][1]
    codes = torch.zeros(1, spec.vocab_size, channels)
    return Latents(spec, FrozenPyramid(scales=spec.scales, codes=codes, phi=Phi(channels, count=4)))


@pytest.mark.parametrize("manifest", [pytest.param(m, id=n) for n, m in FOUND.items()] or NONE)
def test_every_key_has_its_place_and_comes_back(manifest: Manifest) -> None:
    family, hints = manifest.family, Hints(name=manifest.name)  # nothing but keys and shapes
    description = family.describe(manifest.shapes, hints)
    latents = None
    if description.spec is not None:
        latents = latents_of(manifest, description.spec)
        patches = manifest.config.get("patch_nums")
        assert patches is None or [h for h, _ in description.spec.scales] == patches
    match = Match(family, description, latents)
    ours = match.to_ours(manifest.random("meta"), manifest.name)
    assert ours.keys() == match.module.state_dict().keys()
    learned = [p for n, p in match.module.named_parameters() if not n.startswith("pyramid.")]
    assert sum(p.numel() for p in learned) == manifest.numbers
    spec = match.module.spec
    back, _ = to_theirs(family, canonical(description.architecture, spec), spec, ours)
    wanted = {n: s for n, s in manifest.shapes.items() if not n.startswith("loss.")}
    assert {name: tuple(value.shape) for name, value in back.items()} == wanted


PAIRS = [
    ("llamagen_vq16", "llamagen_gpt_c2i_B_256", ".pt", 256),
    ("vae_ch160v4096z32", "var_d16", ".safetensors", 680),
]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer, prior, suffix, length", PAIRS)
def test_released_sizes_really(
    tokenizer: str, prior: str, suffix: str, length: int, tmp_path: Path
) -> None:
    if tokenizer not in FOUND or prior not in FOUND:
        pytest.skip("no manifest")
    files = [write(FOUND[name], tmp_path, suffix) for name in (tokenizer, prior)]
    sizes = [path.stat().st_size for path in files]
    out = tmp_path / "pair"
    command = ["scripts/import_weights.py", *map(str, files), "--out", str(out)]
    base, peak = peak_of("scripts/import_weights.py", "--help"), peak_of(*command)
    # never both a file and its copy: the model is written from the mapped file
    assert peak - base <= 1.3 * sum(sizes), (peak - base, sizes)
    loaded = pipeline.load(out)
    assert "golden retriever" in loaded.class_names and len(set(loaded.class_names)) == 1000
    tokens = loaded.sample_latents(["golden retriever"], seeds=[0], top_k=1)
    assert tokens.shape == (1, length) and int(tokens.min()) >= 0
    assert loaded.decode(tokens).shape == (1, 3, 256, 256)


def write(manifest: Manifest, folder: Path, suffix: str) -> Path:
    """The random file of a manifest, as the peer would store it."""
    path, tensors = folder / f"{manifest.name}{suffix}", manifest.random("cpu")
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        place = manifest.family.places[0]
        torch.save({place: tensors} if place else tensors, path)
    return path


def peak_of(*words: str) -> int:
    """Largest resident memory of a Python program, in bytes."""
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout.splitlines()[-1]) * unit
