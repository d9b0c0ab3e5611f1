"""A small pair of each family as vqgen saves it: exported, it is what a peer's user would bring."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqgen import build, checkpoint, pipeline

SIZE = [16, 16]
HALF = {"channels": 32, "multipliers": [1, 2, 2], "attention_levels": [-1], "_partial_": True}


def autoencoder(bottleneck: dict[str, Any], quant_kernel: int = 1) -> dict[str, Any]:
    return {
        "_target_": "vqgen.tokenizers.autoencoder.Autoencoder",
        "image_size": SIZE,
        "z_channels": 16,
        "quant_kernel": quant_kernel,
        "encoder": {"_target_": "vqgen.nn.autoencoder.Encoder", **HALF, "blocks": 1},
        "decoder": {"_target_": "vqgen.nn.autoencoder.Decoder", **HALF, "blocks": 2},
        "bottleneck": bottleneck,
    }


def codebook(**more: Any) -> dict[str, Any]:
    return {"_target_": "vqgen.tokenizers.codebook.Codebook", "size": 48, "dim": 8, **more}


VQ = {
    "_target_": "vqgen.tokenizers.vq.VectorQuantizer",
    "codebook": codebook(normalize=True),
}
MULTI = {
    "_target_": "vqgen.tokenizers.multiscale.MultiScaleQuantizer",
    "codebook": codebook(),
    "scales": [1, 2, 4],
    "phi_count": 2,
}
LLAMAGEN = {
    "_target_": "vqgen.priors.llamagen.LlamaGen",
    "_partial_": True,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "kv_heads": 2,
    "multiple_of": 32,
    "zero_condition_rope": True,
}
VAR = {"_target_": "vqgen.priors.var.VAR", "_partial_": True, "depth": 2, "width": 32, "heads": 2}

# family of the tokenizer, of the prior -> their nodes
PAIRS: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("llamagen-vq", "llamagen-gpt"): (autoencoder(VQ), LLAMAGEN),
    ("var-vae", "var"): (autoencoder(MULTI, quant_kernel=3), VAR),
}


def save(folder: Path, tokenizer: dict[str, Any], prior: dict[str, Any]) -> Path:
    """A pipeline folder with random weights in every tensor; three classes."""
    save_tokenizer(folder, tokenizer)
    made, _, mark = pipeline.load_tokenizer(folder / "tokenizer")
    model = randomized(build.prior(prior, made, num_classes=3))
    facts = {"class_names": ["a", "b", "c"], "num_classes": 3, "tokenizer_fingerprint": mark}
    checkpoint.save_model(folder / "prior", model, kind="prior", architecture=prior, facts=facts)
    return folder


def save_tokenizer(folder: Path, node: dict[str, Any]) -> Path:
    """folder/tokenizer with random weights in every tensor."""
    torch.manual_seed(0)
    made, facts = randomized(build.model(node)), {"class_names": []}
    checkpoint.save_model(
        folder / "tokenizer", made, kind="tokenizer", architecture=node, facts=facts
    )
    return folder


def randomized(model: nn.Module) -> Any:
    """Every learned number drawn anew: nothing stays 0 or 1 that a file could lose unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("pyramid."):
                parameter.normal_(0, 0.1)
    return model


def exported(
    run: Callable[..., int], folder: Path, families: tuple[str, str], suffix: str = ".pt"
) -> tuple[Path, Path]:
    """A small pair in the peer's layout; the settings lie beside as .json."""
    saved = save(folder / "ours", *PAIRS[families])
    files = folder / f"tokenizer{suffix}", folder / f"prior{suffix}"
    for part, family, file in zip(("tokenizer", "prior"), families, files, strict=True):
        words = [saved, "--part", part, "--as", family, "--out", file]
        assert run("export_weights", *words) == 0
    return files


def configs(files: tuple[Path, Path]) -> list[Any]:
    """--config words for the settings beside both files."""
    return [word for file in files for word in ("--config", file.with_suffix(".json"))]
