"""Transformer parts whose norms are scaled and shifted by a condition: adaptive layer norm.

The same block serves next-scale prediction (VAR, Tian et al. 2024) and diffusion transformers (DiT,
Peebles and Xie 2023); how it is initialized is the prior's business.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.nn.attention import Attention
from vqgen.nn.cache import LayerCache
from vqgen.nn.drop_path import DropPath
from vqgen.nn.linear import Linear, WideLinear

PARTS = 6  # gates, scales and shifts of attention and feed-forward


class ModulatedBlock(nn.Module):
    """x += g1 attention((1 + s1) LN(x) + b1); x += g2 ffn((1 + s2) LN(x) + b2), where the six
    vectors come from the condition, in the order g1, g2, s1, s2, b1, b2."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        hidden: int,  # of the feed-forward part
        condition_width: int | None,  # None: the six vectors are given, the block adds its own
        norm_eps: float = 1e-6,
        unit_qk: bool = False,  # see `Attention`, as the next one
        scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,  # of both parts' outputs
        drop_path: float = 0.0,  # chance that a sample skips a part altogether
    ) -> None:
        super().__init__()
        self.width, self.norm_eps = width, norm_eps
        self.attention = Attention(
            width, heads=heads, dropout=attention_dropout, bias=True, unit_qk=unit_qk, scale=scale
        )
        self.ffn = FeedForward(width, hidden=hidden)
        self.drop = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))
        self.shared = condition_width is None
        if condition_width is None:
            self.offset = nn.Embedding(PARTS, width)  # a table: weight decay leaves it alone
            nn.init.normal_(self.offset.weight, std=width**-0.5)
        else:
            self.modulation = Linear(condition_width, PARTS * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [batch, length, width] -> the same shape. condition [batch, condition_width], or the
        six vectors [batch, 6, width] of all blocks; the other arguments go to `Attention`. With a
        cache the condition is read once: it must not change as long as the cache is in use."""
        parts = None if cache is None else cache.modulation
        if parts is None:
            parts = self._six(condition)
        if cache is not None:
            cache.modulation = parts
        gate1, gate2, scale1, scale2, shift1, shift2 = parts[:, :, None].unbind(1)
        y = modulated_norm(x, scale1, shift1, self.norm_eps)
        y = self.attention(y, rotary=rotary, mask=mask, cache=cache)
        x = x + self.drop(y * gate1)
        y = self.ffn(modulated_norm(x, scale2, shift2, self.norm_eps))
        return x + self.drop(y * gate2)

    def _six(self, condition: Tensor) -> Tensor:
        """-> [batch, 6, width]."""
        if self.shared:
            return condition + self.offset.weight
        return self.modulation(F.silu(condition)).unflatten(-1, (PARTS, self.width))


class ModulatedHead(nn.Module):
    """head((1 + scale) LN(x) + shift), with scale and shift from the condition, in this order."""

    def __init__(
        self, width: int, out: int, *, condition_width: int, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.modulation = Linear(condition_width, 2 * width)
        self.out = WideLinear(width, out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [batch, length, width], condition [batch, condition_width] -> [batch, length, out], in
        at least float32, as half of it would make ties among thousands of logits."""
        modulation = self.modulation(F.silu(condition))[:, None].to(x.dtype)
        scale, shift = modulation.chunk(2, dim=-1)
        return self.out(modulated_norm(x, scale, shift, self.norm_eps))


class FeedForward(nn.Module):
    """Linear, GELU (its tanh form), Linear."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """(1 + scale) LN(x) + shift over the last axis, computed in x's precision, in that of the
    scale; the norm has no weights of its own."""
    y = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (y * (1 + scale.to(y.dtype)) + shift.to(y.dtype)).to(scale.dtype)
