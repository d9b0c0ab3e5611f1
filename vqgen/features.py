"""as_features=true: the export of a tokenizer of tokens, wrapped so that its latents are
continuous."""

from pathlib import Path
from typing import Any

from vqgen import build, checkpoint
from vqgen.contracts import FeatureSpec, Tokenizer

TARGET = "vqgen.tokenizers.features.AsFeatures"


def check(prior: dict[str, Any]) -> None:
    """Raise ValueError if the prior of this config node cannot read continuous latents anyway."""
    try:
        build.check_pair(prior, FeatureSpec(1, 1, 1))
    except ValueError:
        family = prior["_target_"].rsplit(".", 1)[-1]
        raise ValueError(
            f"as_features=true makes tokens continuous, but {family} reads tokens; leave "
            "as_features out, or type prior=flow"
        ) from None


def wrapped(architecture: dict[str, Any]) -> dict[str, Any]:
    """The architecture of a tokenizer of tokens -> that of the wrapped one."""
    return {"_target_": TARGET, "tokenizer": architecture}


def load(export: Path) -> tuple[Tokenizer, dict[str, Any], str]:
    """(wrapped tokenizer in eval mode, not yet standardized; facts and fingerprint of `export`).

    Raises ValueError if its latents are continuous already."""
    saved = checkpoint.read_model(export, "tokenizer")
    tokenizer = build.model(wrapped(saved.architecture))
    checkpoint.load_strict(tokenizer.tokenizer, saved.tensors, str(export))
    return tokenizer.eval().requires_grad_(False), saved.facts, saved.fingerprint


def save(folder: Path, tokenizer: Tokenizer, export: Path) -> str:
    """Write the wrapped and standardized tokenizer of `export` as an export of its own; returns its
    fingerprint."""
    header = checkpoint.read_header(export)
    return checkpoint.save_model(
        folder,
        tokenizer,
        kind="tokenizer",
        architecture=wrapped(header["architecture"]),
        facts=header["facts"],
    )
