"""The linear layer of token-by-token sampling: the bits of the plain product, at any batch."""

import pytest
import torch
import torch.nn.functional as F

from vqgen.nn.linear import FEW_ROWS, LARGE, Linear, linear_in_parts, parts


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
    layer, called = Linear(512, 1024), []

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


@pytest.mark.parametrize("rows, threads, want", [(768, 2, 2), (768, 8, 4), (100, 2, 1), (64, 2, 1)])
def test_parts_are_whole_tiles(rows: int, threads: int, want: int, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert parts(rows) == want
