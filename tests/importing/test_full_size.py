"""Every released model from its manifest: strict import, the peer's keys back; two of them really,
with files, memory and images."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.importing import small
from tests.importing.published import Manifest, manifests
from vqgen import pipeline
from vqgen.contracts import Condition
from vqgen.importing.convert import Latents, Match
from vqgen.importing.export import canonical, export, to_theirs
from vqgen.importing.family import Hints
from vqgen.importing.folder import imagenet_classes
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


# manifest -> side in tokens, guidance, top-k and top-p of the demo, guidance for FID (FACTS)
RECOMMENDED = {
    "llamagen_gpt_c2i_B_256": (16, "4.0", 2000, None, "2.0"),
    "llamagen_gpt_c2i_L_256": (16, "4.0", 2000, None, "2.0"),
    "llamagen_gpt_c2i_XL": (24, "4.0", 2000, None, "1.75"),
    "llamagen_gpt_c2i_XXL": (24, "4.0", 2000, None, "1.75"),
    "llamagen_gpt_c2i_3B": (24, "4.0", 2000, None, "1.65"),
    "llamagen_gpt_t2i_XL_256": (16, "7.5", 1000, None, None),
    "var_d16": (16, "linear:5.0", 900, 0.95, "linear:2.5"),
    "var_d30": (16, "linear:5.0", 900, 0.95, "linear:2.5"),
    "var_d36_s_512": (32, "linear:5.0", 900, 0.95, "linear:2.5"),
}


@pytest.mark.parametrize("name", RECOMMENDED)
def test_the_settings_of_the_authors_are_the_defaults(name: str) -> None:
    if name not in FOUND:
        pytest.skip("no manifest")
    manifest, (side, guidance, top_k, top_p, fid) = FOUND[name], RECOMMENDED[name]
    described = manifest.family.describe(manifest.shapes, Hints(name=name))
    assert described.spec is not None and described.spec.scales[-1] == (side, side)
    facts = described.facts
    assert facts["guidance"] == guidance and facts["knobs_source"]
    assert facts["knobs"] == {"temperature": 1.0, "top_k": top_k, "top_p": top_p}
    assert facts["knobs_for_fid"].get("guidance") == fid


def test_the_names_of_imagenet() -> None:
    names = imagenet_classes()
    assert len({name.lower() for name in names}) == 1000
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known


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
    del loaded
    for part, file in (("tokenizer", files[0]), ("prior", files[1])):
        back = tmp_path / f"back_{part}{suffix}"
        export(out, part, back)
        given, got = tensors_of(file), tensors_of(back)
        assert got.keys() == given.keys()
        for name, value in given.items():
            loose = "codebook_used" in name or "ema_vocab_hit" in name
            assert got[name].shape == value.shape, name
            assert loose or torch.equal(got[name].to(value.dtype), value), name
        back.unlink()


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a peer's file, on disk."""
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, mmap=True, weights_only=True)
    return content.get("model", content)


LARGEST = [
    ("vae_ch160v4096z32", "var_d36_s_512", 512, 2240),
]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer, prior, size, length", LARGEST)
def test_the_largest_sample_on_the_meta_device(
    tokenizer: str, prior: str, size: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation of sampling and decoding runs in its full shape, with no memory behind it."""
    if tokenizer not in FOUND or prior not in FOUND:
        pytest.skip("no manifest")
    # the samplers switch autocast off, and autocast does not know this device
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    description = FOUND[prior].family.describe(FOUND[prior].shapes, Hints(name=prior))
    assert description.spec is not None
    scales = description.spec.scales
    model = on_meta(FOUND[prior], Hints(name=prior), latents_of(FOUND[prior], description.spec))
    encoder = on_meta(FOUND[tokenizer], Hints(name=tokenizer, size=(size, size), scales=scales))
    steps = []
    tokens = model.generate(
        Condition.of_labels(torch.zeros(1, dtype=torch.long, device="meta")),
        lambda logits, step: logits.argmax(dim=-1),
        lambda progress: 2.0,
        on_step=lambda done, total, latents: steps.append(done == total),
    )
    assert tokens.is_meta and tokens.shape == (1, length) and steps[-1]
    with torch.no_grad():
        image = encoder.decode(tokens)
    assert image.is_meta and image.shape == (1, 3, size, size)


def on_meta(manifest: Manifest, hints: Hints, latents: Latents | None = None) -> Any:
    """The imported model of a manifest without its values."""
    match = Match(manifest.family, manifest.family.describe(manifest.shapes, hints), latents)
    ours = match.to_ours(manifest.random("meta"), manifest.name)
    match.module.load_state_dict(ours, assign=True)
    return match.module.to("meta").eval()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_memory_of_an_import(suffix: str, tmp_path: Path) -> None:
    """A file of some 210 MB: at most 1.3 times its size beyond the program and its imports."""
    codes, dim = 6_500_000, 8  # a codebook is all that a model needs to be large
    saved = small.save(tmp_path / "ours", *small.PAIRS["llamagen-vq", "llamagen-gpt"])
    file = tmp_path / f"tokenizer{suffix}"
    export(saved, "tokenizer", file, "llamagen-vq")
    tensors = load_file(file) if suffix == ".safetensors" else torch.load(file)["model"]
    tensors["quantize.embedding.weight"] = torch.rand(codes, dim) + 0.1
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"model": tensors}, file)
    del tensors
    size = file.stat().st_size
    assert size > 200e6
    script, out = "scripts/import_weights.py", tmp_path / "out"
    base = peak_of(script, str(tmp_path / "none.pt"), "--out", str(out), code=2)  # all is imported
    peak = peak_of(script, str(file), "--out", str(out), "--size", "16")
    assert (out / "tokenizer" / "model.safetensors").stat().st_size > 200e6
    assert peak - base <= 1.3 * size, ((peak - base) / size, base)


def write(manifest: Manifest, folder: Path, suffix: str) -> Path:
    """The random file of a manifest, as the peer would store it."""
    path, tensors = folder / f"{manifest.name}{suffix}", manifest.random("cpu")
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        place = manifest.family.places[0]
        torch.save({place: tensors} if place else tensors, path)
    return path


def peak_of(*words: str, code: int = 0) -> int:
    """Largest resident memory of a Python program that ends with this code, in bytes."""
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"except SystemExit as left: assert (left.code or 0) == {code}, left.code\n"
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
