"""The Llama block and its parts."""

import pytest
import torch
from torch.nn import functional as F

from vqgen.nn.norm import RMSNorm
from vqgen.nn.transformer import Block, SwiGLU, swiglu_width


@pytest.mark.parametrize(
    ("width", "hidden"), [(768, 2048), (1024, 2816), (1280, 3584), (1536, 4096), (3200, 8704)]
)
def test_hidden_widths_of_the_published_sizes(width: int, hidden: int) -> None:
    assert swiglu_width(width) == hidden


def test_hidden_width_with_a_multiplier() -> None:
    assert (
        swiglu_width(64, multiple_of=32, multiplier=1.3) == 224
    )  # int(1.3 * 170) = 221, rounded up
    assert swiglu_width(96, multiple_of=64) == 256  # a multiple stays


def test_swiglu_is_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = SwiGLU(8, hidden=12), torch.randn(3, 8)
    gate, up = layer.gate_up.weight[:12], layer.gate_up.weight[12:]
    wanted = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), wanted)


def test_norm_is_its_formula_and_eps_counts() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(8, eps=0.1), torch.randn(3, 8) * 0.1
    torch.nn.init.normal_(norm.weight)
    wanted = x / (x.pow(2).mean(dim=-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), wanted)


def test_norm_rounds_before_the_weight() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(64).bfloat16(), torch.randn(5, 64, dtype=torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    exact = x.float() / (x.float().pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(norm(x), exact.bfloat16() * norm.weight)


def test_a_block_has_no_biases() -> None:
    assert all("bias" not in name for name, _ in Block(8, heads=2, hidden=16).named_parameters())


def test_drop_path_skips_both_parts_of_whole_samples_in_training_alone() -> None:
    torch.manual_seed(0)
    block, x = Block(8, heads=2, hidden=16, drop_path=0.5), torch.randn(64, 3, 8)
    skipped = (block(x) == x).all(dim=(1, 2))
    assert 4 < skipped.sum() < 28  # a quarter of 64, give or take
    assert not (block.eval()(x) == x).all(dim=(1, 2)).any()
