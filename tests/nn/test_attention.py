"""Attention, its cache and its rotary positions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgen.nn.attention import Attention, attend_grouped
from vqgen.nn.cache import KVCache
from vqgen.nn.rope import grid_positions, rotary_table, rotate

WIDTH, HEADS, LENGTH = 32, 4, 10


def attention(kv_heads: int = HEADS) -> Attention:
    torch.manual_seed(0)
    return Attention(WIDTH, heads=HEADS, kv_heads=kv_heads).double()


def inputs(batch: int = 3) -> Tensor:
    return torch.randn(batch, LENGTH, WIDTH, dtype=torch.float64)


def table(height: int = 2, width: int = 5) -> Tensor:
    return rotary_table(grid_positions(height, width), head_width=WIDTH // HEADS)


def empty_cache(kv_heads: int, batch: int = 3) -> KVCache:
    return KVCache.empty(
        layers=1,
        batch=batch,
        heads=kv_heads,
        length=LENGTH,
        head_width=WIDTH // HEADS,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("chunk", [1, 3, 10])
@torch.no_grad()
def test_cached_equals_whole_sequence(kv_heads: int, chunk: int) -> None:
    layer, x, rotary = attention(kv_heads), inputs(), table()
    whole = layer(x, rotary=rotary, is_causal=True)
    cache, causal = empty_cache(kv_heads), torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    parts = []
    for start in range(0, LENGTH, chunk):
        stop = min(start + chunk, LENGTH)
        mask = causal[None, None, start:stop, :stop]
        part = layer(x[:, start:stop], rotary=rotary[start:stop], mask=mask, cache=cache.layers[0])
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert cache.filled == LENGTH


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_grouped_heads_repeat_each_key_head(kv_heads: int) -> None:
    torch.manual_seed(1)
    q = torch.randn(2, HEADS, 3, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, LENGTH, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, 3, LENGTH) < 0.7
    mask[..., 0] = True
    repeated = [part.repeat_interleave(HEADS // kv_heads, dim=1) for part in (k, v)]
    wanted = F.scaled_dot_product_attention(q, *repeated, mask)
    torch.testing.assert_close(attend_grouped(q, k, v, mask), wanted)


def test_a_causal_token_ignores_what_follows() -> None:
    layer, x = attention(2), inputs().requires_grad_()
    layer(x, rotary=table(), is_causal=True)[:, 4].sum().backward()
    assert x.grad is not None and (x.grad[:, 5:] == 0).all() and (x.grad[:, :5] != 0).any()


def test_without_causality_every_token_counts() -> None:
    layer, x = attention(), inputs().requires_grad_()
    layer(x)[:, 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(dim=-1) > 0).all()


def test_first_rows_of_a_cache_share_its_memory() -> None:
    cache = empty_cache(2)
    keys = torch.ones(3, 2, 1, WIDTH // HEADS, dtype=torch.float64)
    cache.layers[0].append(keys, keys)
    half = cache.first(1)
    seen, _ = half.layers[0].append(2 * keys[:1], keys[:1])
    assert half.filled == 2 and cache.filled == 1
    assert seen[0, 0, :, 0].tolist() == [1, 2]
    assert cache.layers[0].keys.data_ptr() == half.layers[0].keys.data_ptr()


def test_the_cache_holds_key_value_heads_and_nothing_more() -> None:
    layer = empty_cache(kv_heads=1).layers[0]
    assert layer.keys.shape == layer.values.shape == (3, 1, LENGTH, WIDTH // HEADS)


def test_rotation_sees_offsets_only() -> None:
    """q . k of two places depends on their row and column offsets, not on where they are."""
    torch.manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def score(place: tuple[float, float], other: tuple[float, float]) -> Tensor:
        turns = [rotary_table(torch.tensor([p]), head_width=16) for p in (place, other)]
        return (rotate(q, turns[0]) * rotate(k, turns[1])).sum()

    torch.testing.assert_close(score((0, 1), (2, 5)), score((7, 3), (9, 7)), rtol=0, atol=1e-5)
    assert (score((0, 1), (2, 5)) - score((1, 0), (5, 2))).abs() > 1e-3  # rows are not columns


def test_rotation_keeps_lengths_and_origin() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, LENGTH, HEADS, WIDTH // HEADS)
    turned = rotate(x, table())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0], x[:, 0])


def test_rotation_keeps_the_type() -> None:
    x = torch.randn(2, LENGTH, HEADS, WIDTH // HEADS, dtype=torch.bfloat16)
    assert rotate(x, table()).dtype == torch.bfloat16


def test_grid_positions_are_raster_order() -> None:
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_bad_sizes_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"multiple of 4.*got 6.*prior\.heads"):
        rotary_table(grid_positions(2, 2), head_width=6)
    with pytest.raises(ValueError, match=r"heads=4, kv_heads=3.*change prior\.heads"):
        Attention(32, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match=r"width=30, heads=4"):
        Attention(30, heads=4)
