"""A bidirectional transformer over noisy tokens: every place predicts its clean token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.contracts import Condition
from vqgen.nn.drop_path import rates
from vqgen.nn.linear import Linear
from vqgen.nn.norm import RMSNorm
from vqgen.nn.rope import grid_positions, rotary_table
from vqgen.nn.transformer import Block, swiglu_width
from vqgen.priors.conditioning import condition_tokens

WAVES = 64  # cosines and sines that tell a noise rate
STRETCH = 1000.0  # radians of the fastest wave over the range of the rate


class Bidirectional(nn.Module):
    """Logits of every clean token given all noisy ones: the Llama block without a causal mask, the
    condition's tokens in front, rotary positions by row and column, learned vectors of both.

    inputs, codes   numbers a noisy token may have, and a clean one: the mask is an input only
    rate_condition  also tell the network the noise rate, as a vector added to every token
    """

    rotary: Tensor  # [condition length + tokens, head width / 2, 2]

    def __init__(
        self,
        *,
        size: tuple[int, int],
        inputs: int,
        codes: int,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int | None = None,
        num_classes: int = 0,
        text_length: int = 0,
        text_dim: int = 0,
        rate_condition: bool = False,
        multiple_of: int = 256,
        ffn_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        rope_base: float = 10000.0,
        token_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.condition = condition_tokens(
            width, num_classes=num_classes, text_length=text_length, text_dim=text_dim
        )
        self.embedding = nn.Embedding(inputs, width)
        # Rotary positions tell offsets, and masks are all alike: without a vector of its row and
        # column a place among masks would know itself by one attention weight per head alone.
        self.rows, self.columns = (nn.Embedding(side, width) for side in size)
        self.rate = RateVector(width) if rate_condition else None
        self.token_dropout = nn.Dropout(token_dropout)
        hidden = swiglu_width(width, multiple_of=multiple_of, multiplier=ffn_multiplier)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads=heads,
                kv_heads=kv_heads,
                hidden=hidden,
                norm_eps=norm_eps,
                attention_dropout=attention_dropout,
                residual_dropout=dropout,
                ffn_dropout=dropout,
                drop_path=rate,
            )
            for rate in rates(drop_path, depth)
        )
        self.norm = RMSNorm(width, eps=norm_eps)
        self.head = Linear(width, codes, bias=False)
        image = rotary_table(grid_positions(*size), head_width=width // heads, base=rope_base)
        still = image[:1].expand(self.condition.length, -1, -1)  # place (0, 0): identity
        self.register_buffer("rotary", torch.cat((still, image)), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """N(0, 0.02) for every matrix and table; zero for the head, so that training starts at log
        K exactly."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        noisy: Tensor,
        rate: Tensor | None,
        front: Tensor,
        visible: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        """noisy Long [batch, length] -> logits [batch, length, codes].

        rate     Float [batch], the share of noise; read with rate_condition alone
        front    [batch, condition length, width], from `self.condition`
        visible  Bool [batch, condition length], its real tokens; None: all
        asked    Bool [batch, length], the places to predict, at least one: only theirs come out, in
                 order, [places, codes], the same bits for less work; None: all"""
        places = self.rows.weight[:, None] + self.columns.weight
        x = torch.cat((front, self.embedding(noisy) + places.flatten(0, 1)), dim=1)
        if self.rate is not None:
            assert rate is not None
            x = x + self.rate(rate.to(x))[:, None]
        x = self.token_dropout(x)
        mask = None if visible is None else _keys(visible, x.shape[1])
        *early, last = self.blocks
        for block in early:
            x = block(x, rotary=self.rotary, mask=mask)
        if asked is None:
            x = last(x, rotary=self.rotary, mask=mask)
            return self.head(self.norm(x[:, front.shape[1] :]))
        places = F.pad(asked, (front.shape[1], 0)).flatten().nonzero()[:, 0]
        return self.head(self.norm(last(x, rotary=self.rotary, mask=mask, places=places)))

    def logits(self, noisy: Tensor, rate: Tensor | None, condition: Condition) -> Tensor:
        """`forward` for a condition as it comes."""
        return self(noisy, rate, self.condition(condition), self.condition.visible(condition))


class RateVector(nn.Module):
    """A noise rate in [0, 1] as a vector: cosines and sines of 64 frequencies through two linear
    layers (as Peebles and Xie 2023 tell the time)."""

    waves: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        powers = torch.arange(WAVES) / WAVES
        self.register_buffer("waves", STRETCH * 10000**-powers, persistent=False)
        self.enter = Linear(2 * WAVES, width)
        self.leave = Linear(width, width)

    def forward(self, rate: Tensor) -> Tensor:
        """rate [batch] -> [batch, width]."""
        angles = rate[:, None] * self.waves.to(rate)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.leave(F.silu(self.enter(waves)))


def _keys(visible: Tensor, length: int) -> Tensor:
    """-> Bool [batch, 1, 1, length]: everyone looks at all image tokens and at the real tokens of
    the condition."""
    return F.pad(visible, (0, length - visible.shape[1]), value=True)[:, None, None]
