"""Self-attention with grouped key-value heads; causality, masks and cache come from the caller."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqgen.nn.cache import LayerCache
from vqgen.nn.linear import Linear
from vqgen.nn.rope import rotate

# New positions behind a cache above which the library's kernel is the better one: about twice as
# fast at 256 queries of 680 keys, without the scores in memory, and as stable in its bits there.
FEW_QUERIES = 16
MAX_LOG_SCALE = math.log(100)  # of unit queries: their scores stay within +-100


class Attention(nn.Module):
    """Multi-head self-attention; `heads` query heads share `kv_heads` key-value heads in groups
    (grouped-query attention, Ainslie et al. 2023): key-value head j serves the query heads
    j r ... j r + r - 1.

    bias      queries, values and output have one; a bias of keys would only move all scores of a
              query alike, so there is none
    unit_qk   queries and keys have length 1 and each head learns the scale of its queries, from 4
              to at most 100 (cosine attention, Liu et al. 2022)
    scale     of the scores; None: head_width^-0.5, or 1 with unit_qk
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        unit_qk: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads:
            raise ValueError(
                "attention wanted heads that divide the width, and kv_heads that divide the heads, "
                f"got width={width}, heads={heads}, kv_heads={kv_heads}; "
                "change prior.heads or prior.kv_heads"
            )
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.head_width = width // heads
        self.scale = scale or (1.0 if unit_qk else self.head_width**-0.5)
        # Rows: all query heads, then all key heads, then all value heads.
        self.qkv = Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=False)
        self.out = Linear(width, width, bias=bias)
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(kv_heads * self.head_width)) if bias else None
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(4))) if unit_qk else None

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [batch, length, width] -> the same shape.

        rotary  [length, head_width / 2, 2], the table of these positions; None: no positions
        mask    Bool, broadcast to [batch, heads, length, keys], True where a query may look; None:
                everywhere
        cache   the new keys and values are written into it and the queries look at all that it
                holds; `mask` alone says what is hidden (is_causal is for whole sequences)
        """
        assert not (is_causal and cache is not None), "with a cache, causality comes as a mask"
        # each [batch, length, heads, head_width]
        qkv = self.qkv(x, self._bias()).unflatten(-1, (-1, self.head_width))
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if rotary is not None:
            qk = rotate(qk, rotary)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        if self.log_scale is not None:
            q = _unit(q) * self.log_scale.clamp(max=MAX_LOG_SCALE).exp().to(q.dtype)[:, None]
            k = _unit(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [batch, heads, length, head_width]
        if cache is not None:
            k, v = cache.append(k, v)
        if cache is not None and q.shape[2] <= FEW_QUERIES:
            y = attend_grouped(q, k, v, mask, scale=self.scale)
        else:
            dropout = self.dropout if self.training else 0.0
            grouped = self.kv_heads < self.heads
            y = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=is_causal, scale=self.scale, enable_gqa=grouped
            )
        return self.out(y.transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor | None:
        """Of queries, keys (none: zeros) and values."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))


def attend_grouped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Attention of few queries to many keys: q [batch, heads, length, d], k and v [batch, kv_heads,
    keys, d] -> as q.

    At one query per token two plain batched products beat the library's kernel on a CPU (twice with
    grouped heads, which need no repetition here), and unlike it they give a sequence the same bits
    at any batch size and thread count. `mask` is Bool [batch or 1, 1, length, keys]."""
    repeats = q.shape[1] // k.shape[1]
    q = rearrange(q * (scale or q.shape[-1] ** -0.5), "b (g r) l d -> b g (r l) d", r=repeats)
    scores = q @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat(1, 1, repeats, 1), float("-inf"))
    y = torch.softmax(scores, dim=-1) @ v
    return rearrange(y, "b g (r l) d -> b (g r) l d", r=repeats)


def _unit(x: Tensor) -> Tensor:
    """x / its length along the last axis, computed in at least float32, in x's type."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
