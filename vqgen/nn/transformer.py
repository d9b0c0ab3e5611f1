"""The Llama block: normalize, attend, add; normalize, SwiGLU, add."""

import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.nn.attention import Attention
from vqgen.nn.cache import LayerCache
from vqgen.nn.drop_path import DropPath
from vqgen.nn.linear import Linear
from vqgen.nn.norm import RMSNorm


class Block(nn.Module):
    """One pre-norm transformer block without biases; what a token may see is the caller's
    business."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        hidden: int,  # of the feed-forward part, see `swiglu_width`
        norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,  # of attention weights
        residual_dropout: float = 0.0,  # of the attention part's output
        ffn_dropout: float = 0.0,  # of the feed-forward part's output
        drop_path: float = 0.0,  # chance that a sample skips a part altogether
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads=heads, kv_heads=kv_heads, dropout=attention_dropout)
        self.ffn_norm = RMSNorm(width, eps=norm_eps)
        self.ffn = SwiGLU(width, hidden=hidden)
        self.drop_attention = nn.Sequential(nn.Dropout(residual_dropout), DropPath(drop_path))
        self.drop_ffn = nn.Sequential(nn.Dropout(ffn_dropout), DropPath(drop_path))

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: LayerCache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """x [batch, length, width] -> the same shape; the other arguments go to `Attention`.

        places  Long [n], numbers of tokens in the flattened batch: only these are finished and come
                out, [n, width], as behind the attention each token is alone; None: all"""
        attended = self.attention(
            self.attention_norm(x), rotary=rotary, mask=mask, is_causal=is_causal, cache=cache
        )
        if places is not None:
            x, attended = x.flatten(0, 1)[places], attended.flatten(0, 1)[places]
        x = x + self.drop_attention(attended)
        return x + self.drop_ffn(self.ffn(self.ffn_norm(x)))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020, section 2); gate and up are one matrix, gate first:
    one product, not two."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def swiglu_width(width: int, *, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Hidden width of a SwiGLU that costs what a plain 4 x width layer costs, as Llama rounds it:
    int(2 (4 width) / 3), times the multiplier if there is one, up to a multiple of
    `multiple_of`."""
    hidden = int(2 * (4 * width) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * -(-hidden // multiple_of)
