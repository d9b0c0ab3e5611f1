"""The published sizes of VAR, as yaml, against the published parameter counts."""

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from vqgen.contracts import TokenSpec
from vqgen.priors.var import VAR
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "stage2"
SIDES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
PUBLISHED = {
    "var": (256, 310_283_520),
    "var_d16": (256, 310_283_520),
    "var_d20": (256, 600_917_136),
    "var_d24": (256, 1_033_399_360),
    "var_d30": (256, 2_010_020_356),
    "var_d36": (512, 2_353_893_904),
}


def made(name: str, sides: tuple[int, ...], **changes: Any) -> VAR:
    scales = tuple((side, side) for side in sides)
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = hydra.compose(f"prior/{name}")
    with torch.device("meta"):
        codes = torch.empty(1, 4096, 32)
        pyramid = FrozenPyramid(scales=scales, codes=codes, phi=Phi(32, count=4))
        partial = hydra.utils.instantiate(config.prior)
        return partial(TokenSpec(4096, scales), pyramid=pyramid, **changes)


def parameters(model: VAR) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    resolution, count = PUBLISHED[name]
    assert parameters(made(name, SIDES[resolution], num_classes=1000)) == count


def test_small_depths_are_64_wide_per_block() -> None:
    for depth in (4, 8, 12):
        net = made(f"var_d{depth}", SIDES[256], num_classes=1000).transformer
        assert len(net.blocks) == depth and net.head.out.in_features == 64 * depth
