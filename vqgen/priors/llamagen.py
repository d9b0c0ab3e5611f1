"""LlamaGen: a Llama-style transformer over tokens in raster order (Sun et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.contracts import (
    Condition,
    Guidance,
    Known,
    LatentSpec,
    Losses,
    OnStep,
    Prior,
    TokenSpec,
)
from vqgen.nn.cache import KVCache
from vqgen.nn.drop_path import rates
from vqgen.nn.linear import Linear, packed_weights
from vqgen.nn.norm import RMSNorm
from vqgen.nn.rope import grid_positions, rotary_table
from vqgen.nn.transformer import Block, swiglu_width
from vqgen.priors.conditioning import causal_mask, condition_tokens
from vqgen.priors.requests import (
    check_at_least,
    check_guidance,
    check_request,
    check_shares,
    check_single_scale,
)
from vqgen.sampling.branches import Branches
from vqgen.sampling.draws import Draws
from vqgen.sampling.logits import LogitKnobs

Choose = Callable[[Tensor, int], Tensor]  # (guided logits [batch, vocab], step) -> tokens [batch]


class LlamaGen(Prior):
    """p(tokens | condition) = prod_i p(token_i | tokens before it, condition).

    The sequence is the condition's tokens (one for a class, `text_length` for a text, a learned
    start without either), then the image's; every position predicts the next. An image token turns
    by the row and column it stands on. Condition tokens do not turn: identity, like place (0, 0),
    so that attention to them is learned. The published weights were trained with a table of zeros
    there, which makes every score against a condition token 0 and its own attention uniform, so
    that only its values count; `zero_condition_rope=True` reproduces that.
    """

    likelihood: ClassVar[Literal["exact"]] = "exact"
    Knobs: ClassVar[type] = LogitKnobs
    spec: TokenSpec
    rotary: Tensor  # [condition length + tokens, head width / 2, 2]

    def __init__(
        self,
        spec: LatentSpec,
        *,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int | None = None,  # fewer than heads: grouped-query attention, a smaller cache
        num_classes: int = 0,
        text_length: int = 0,  # tokens of a text condition
        text_dim: int = 0,  # width of its embeddings
        multiple_of: int = 256,  # the hidden width of the feed-forward part is rounded up to it
        ffn_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        rope_base: float = 10000.0,
        zero_condition_rope: bool = False,  # True for the published weights
        label_dropout: float = 0.1,  # how often training withholds the condition, for guidance
        token_dropout: float = 0.1,  # of the embedded sequence
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        drop_path: float = 0.0,  # of the last block; it grows linearly from 0 at the first
    ) -> None:
        super().__init__()
        self.check(spec)
        assert isinstance(spec, TokenSpec)
        check_at_least(1, width=width, depth=depth, heads=heads)
        check_at_least(0, num_classes=num_classes)
        check_shares(label_dropout=label_dropout, token_dropout=token_dropout)
        self.spec, self.num_classes, self.label_dropout = spec, num_classes, label_dropout
        self.text_size = (text_length, text_dim) if text_length else None
        self.condition = condition_tokens(
            width, num_classes=num_classes, text_length=text_length, text_dim=text_dim
        )
        self.embedding = nn.Embedding(spec.vocab_size, width)
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
                residual_dropout=residual_dropout,
                ffn_dropout=ffn_dropout,
                drop_path=rate,
            )
            for rate in rates(drop_path, depth)
        )
        self.norm = RMSNorm(width, eps=norm_eps)
        self.head = Linear(width, spec.vocab_size, bias=False)
        image = rotary_table(
            grid_positions(*spec.scales[0]), head_width=width // heads, base=rope_base
        )
        still = torch.zeros_like(image[:1]) if zero_condition_rope else image[:1]
        still = still.expand(self.condition.length, -1, -1)
        self.register_buffer("rotary", torch.cat((still, image)), persistent=False)
        self._empty_cache = partial(
            KVCache.empty,
            layers=depth,
            heads=kv_heads or heads,
            length=len(self.rotary) - 1,  # the last token is never fed
            head_width=width // heads,
        )
        self._initialize()

    def _initialize(self) -> None:
        """N(0, 0.02) for every matrix and table; zero for the head, so that training starts at log
        K exactly."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    @classmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError unless the latents are tokens of a single scale."""
        check_single_scale(spec, "llamagen")

    # ---- loss and likelihood

    def logits(self, tokens: Tensor, condition: Condition) -> Tensor:
        """Teacher forcing: tokens Long [batch, length] -> [batch, length, vocab]; row i predicts
        token i.

        The last token is not read: nothing follows it."""
        start = self.condition.length - 1
        x = torch.cat((self.condition(condition), self.embedding(tokens[:, :-1])), dim=1)
        x = self.token_dropout(x)
        mask = self._mask(condition)
        for block in self.blocks:
            x = block(x, rotary=self.rotary[: x.shape[1]], mask=mask, is_causal=mask is None)
        return self.head(self.norm(x[:, start:]))

    def _mask(self, condition: Condition) -> Tensor | None:
        visible = self.condition.visible(condition)
        return None if visible is None else causal_mask(visible, len(self.rotary) - 1)

    def _nats(self, tokens: Tensor, condition: Condition) -> Tensor:
        """-log p of each token, Float [batch, length], in float32 whatever the logits' type."""
        logits = self.logits(tokens, condition).flatten(0, 1).float()
        return F.cross_entropy(logits, tokens.flatten(), reduction="none").view_as(tokens)

    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """Cross-entropy in nats, the mean over all tokens; conditions are withheld with
        `label_dropout`."""
        total = self._nats(latents, condition.drop(self.label_dropout)).mean()
        return Losses(total, {"cross_entropy": total.detach()})

    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """-log2 p of each image's tokens, in one part; put the module in eval() first."""
        with torch.autocast(latents.device.type, enabled=False):
            return {"tokens": self._nats(latents, condition).sum(dim=1) / math.log(2)}

    # ---- sampling

    def sample(
        self,
        condition: Condition,
        knobs: LogitKnobs,
        guidance: Guidance,
        seeds: Sequence[int],
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """-> tokens Long [batch, length], token by token, in the weights' own precision; put
        the module in eval() first.

        Raises ValueError if an argument does not suit this model or the batch."""
        self.condition.check(condition)
        check_request(self.spec, condition.batch, seeds, known)
        draws = Draws(seeds)

        def choose(logits: Tensor, step: int) -> Tensor:
            return draws.categorical(knobs.filter(logits))

        return self.generate(condition, choose, guidance, known, on_step)

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        choose: Choose,
        guidance: Guidance,
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """`sample` with any way to choose: choose(guided logits [batch, vocab], step) -> tokens
        [batch]."""
        total, device = self.spec.length, self.rotary.device
        branches = Branches(condition.batch, total, guidance, has_null=self.condition.can_drop)
        conditions = [condition, condition.null()] if branches.guided else [condition]
        check_guidance(branches, self.label_dropout)
        tokens = torch.full((condition.batch, total), -1, device=device)
        with torch.autocast(device.type, enabled=False), packed_weights(self):
            x = branches.stack([self.condition(part) for part in conditions])
            mask = self._mask(condition)
            cache = self._empty_cache(batch=len(x), dtype=x.dtype, device=device)
            for step in range(total):
                if branches.rows(step) < len(x):  # the null branch has done its work
                    x, cache = x[: branches.rows(step)], cache.first(branches.rows(step))
                images = branches.images(step, device)
                logits = self._next_logits(x, cache, mask, images)
                chosen = choose(branches.guide(logits, step), step)
                if known is not None:
                    chosen = torch.where(known.keep[:, step], known.latents[:, step], chosen)
                tokens[:, step] = chosen
                x = self.embedding(chosen[images])[:, None]  # both branches hear the same token
                if on_step is not None:
                    on_step(step + 1, total, tokens.clone())
        return tokens

    def _next_logits(
        self, x: Tensor, cache: KVCache, mask: Tensor | None, images: Tensor
    ) -> Tensor:
        """New embeddings [rows, new, width] behind what the cache holds -> logits [rows, vocab]
        after the last of them. `mask` is that of the images, `images` the image of each row."""
        start, stop = cache.filled, cache.filled + x.shape[1]
        mask = None if mask is None else mask[:, :, start:stop, :stop][images]
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, rotary=self.rotary[start:stop], mask=mask, cache=layer)
        return self.head(self.norm(x[:, -1]))
