"""The published sizes of LlamaGen, as yaml, against the published parameter counts."""

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from vqgen.contracts import TokenSpec

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "stage2"
IMAGENET = TokenSpec(16384, ((16, 16),))
PUBLISHED = {
    "llamagen": 110_888_448,
    "llamagen_b": 110_888_448,
    "llamagen_l": 342_910_976,
    "llamagen_xl": 774_699_520,
    "llamagen_xxl": 1_410_972_672,
    "llamagen_3b": 3_096_659_200,
}


def parameters(name: str, spec: TokenSpec, **condition: Any) -> int:
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = hydra.compose(f"prior/{name}")
    with torch.device("meta"):
        model = hydra.utils.instantiate(config.prior)(spec, **condition)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    assert parameters(name, IMAGENET, num_classes=1000) == PUBLISHED[name]


def test_published_text_size() -> None:
    """The null caption, a buffer, is counted apart."""
    assert parameters("llamagen_xl", IMAGENET, text_length=120, text_dim=2048) == 777_678_080


def test_the_tiny_size_is_tiny() -> None:
    spec = TokenSpec(1024, ((8, 8),))
    assert 3e6 < parameters("llamagen_tiny", spec, num_classes=9) < 8e6
