"""The linear layer of token-by-token sampling: the bits of the plain product, at any batch."""

import pytest
import torch
import torch.nn.functional as F

from vqgen.nn.linear import FEW_ROWS, LARGE, Linear, linear_in_parts, padded, parts


@pytest.mark.parametrize("sizes", [(512, 512), (768, 2304), (2048, 768), (128, 4096)], ids=str)
@pytest.mark.parametrize("count", [2, 4])
def test_parts_give_the_same_bits(sizes: tuple[int, int], count: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(FEW_ROWS, 1, sizes[0]), torch.randn(sizes[1], sizes[0])
    for rows in (4, 8, 12, 16):  # what a sampler's batch is padded to
        got = linear_in_parts(x[:rows], weight, count)
        assert torch.equal(got, F.linear(x[:rows], weight))
        assert torch.equal(got, F.linear(x, weight)[:rows])


def test_the_layer_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, called = Linear(512, 1024, bias=False), []

    def watched(x, weight, count):
        called.append(count)
        return linear_in_parts(x, weight, count)

    monkeypatch.setattr("vqgen.nn.linear.linear_in_parts", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert layer.weight.numel() >= LARGE and list(layer.state_dict()) == ["weight"]
    few, many = torch.randn(4, 1, 512), torch.randn(4, 5, 512)
    with torch.no_grad():
        assert torch.equal(layer(few), F.linear(few, layer.weight)) and called == [2]
        assert torch.equal(layer(many), F.linear(many, layer.weight)) and called == [2]
        assert layer(few[:0]).shape == (0, 1, 1024)
    layer(few).sum().backward()  # a gradient goes through the library's own
    assert layer.weight.grad is not None and called == [2, 2]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_among_any_others(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Linear(384, 1152, bias=bias).to(dtype)
    x = torch.randn(400, 384, dtype=dtype)
    with torch.no_grad():
        whole = layer(x)
        for rows in (1, 2, 3, 5, 9, 18, 25, 50, 170, 338):
            assert torch.equal(layer(x[:rows]), whole[:rows])
            assert torch.equal(layer(x[None, :rows]), whole[None, :rows])
    assert [padded(rows) for rows in (0, 1, 4, 5)] == [0, 4, 4, 8]


@pytest.mark.parametrize("rows, threads, want", [(768, 2, 2), (768, 8, 4), (100, 2, 1), (64, 2, 1)])
def test_parts_are_whole_tiles(rows: int, threads: int, want: int, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert parts(rows) == want
