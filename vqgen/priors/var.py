"""VAR: a transformer that predicts all tokens of a scale at once, scale after scale (Tian et al.
2024)."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.contracts import (
    Condition,
    FeatureSpec,
    Guidance,
    Known,
    LatentSpec,
    Losses,
    OnStep,
    Prior,
    Pyramid,
    TokenSpec,
    scale_name,
)
from vqgen.nn.linear import padded
from vqgen.priors.conditioning import condition_tokens
from vqgen.priors.requests import check_at_least, check_guidance, check_request, check_shares
from vqgen.priors.var_passes import CachedPasses
from vqgen.priors.var_transformer import ScaleTransformer, weight_std
from vqgen.sampling.branches import Branches
from vqgen.sampling.draws import Draws
from vqgen.sampling.logits import LogitKnobs

HEAD_WIDTH = 64  # of the published sizes
# (guided logits [batch, h_k w_k, vocab], scale number) -> tokens [batch, h_k w_k]
Choose = Callable[[Tensor, int], Tensor]


class VAR(Prior):
    """p(tokens | condition) = prod_k p(tokens of scale k | all smaller scales, condition); the
    tokens of one scale are drawn independently of each other.

    pyramid            of the tokenizer; a frozen copy is kept, and saved with the prior
    depth              blocks; width 64 depth and width / 64 heads unless given
    shared_modulation  one adaptive-norm layer for all blocks, each with an offset of its own (the
                       published 512 px model), instead of a layer per block
    unit_qk            attention by cosine, as in all published models: bounded scores, whatever the
                       width
    attention_scale    of the scores without unit_qk; None: head width^-0.5. The published code has
                       0.25 of that, which is good for its own weights only
    progressive_steps  so many calls of `loss` bring the scales in, coarse to fine, evenly: before
                       its turn a scale is neither read nor scored; 0: all from the start
    gate_init          the gates of the blocks start at this share of the usual weights (1e-3 in the
                       published depths 16 and 20, 1e-4 in 24, 1e-5 in 30, 5e-6 in 36)
    """

    likelihood: ClassVar[Literal["exact"]] = "exact"
    Knobs: ClassVar[type] = LogitKnobs
    spec: TokenSpec
    calls: Tensor  # of `loss`, for progressive_steps

    def __init__(
        self,
        spec: LatentSpec,
        *,
        pyramid: Pyramid,
        depth: int,
        width: int | None = None,
        heads: int | None = None,
        num_classes: int = 0,
        mlp_ratio: float = 4.0,
        shared_modulation: bool = False,
        unit_qk: bool = True,
        attention_scale: float | None = None,
        norm_eps: float = 1e-6,
        label_dropout: float = 0.1,  # how often training withholds the condition, for guidance
        label_smoothing: float = 0.0,
        drop_path: float | None = None,  # of the last block, rising from 0; None: 0.1 depth / 24
        progressive_steps: int = 0,
        gate_init: float = 1e-3,
    ) -> None:
        super().__init__()
        self.check(spec)
        assert isinstance(spec, TokenSpec)
        check_at_least(1, depth=depth)
        check_at_least(0, progressive_steps=progressive_steps, num_classes=num_classes)
        drop_path = 0.1 * depth / 24 if drop_path is None else drop_path
        check_shares(label_dropout=label_dropout, label_smoothing=label_smoothing)
        self.spec, self.num_classes = spec, num_classes
        self.label_dropout, self.label_smoothing = label_dropout, label_smoothing
        self.progressive_steps = progressive_steps
        self.ends = list(accumulate(height * w for height, w in spec.scales))
        width = width or HEAD_WIDTH * depth
        self.pyramid = copy.deepcopy(pyramid).requires_grad_(False)
        self.condition = condition_tokens(width, num_classes=num_classes)
        self.transformer = ScaleTransformer(
            spec.scales,
            channels=pyramid.channels,
            vocab_size=spec.vocab_size,
            width=width,
            depth=depth,
            heads=heads or max(1, width // HEAD_WIDTH),
            hidden=round(mlp_ratio * width),
            shared_modulation=shared_modulation,
            unit_qk=unit_qk,
            attention_scale=attention_scale,
            norm_eps=norm_eps,
            drop_path=drop_path,
            gate_init=gate_init,
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        for table in self.condition.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=weight_std(width))

    @classmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError unless the latents are tokens of several scales."""
        cure = "train a multi-scale tokenizer: python train_stage1.py tokenizer=var"
        if isinstance(spec, FeatureSpec):
            raise ValueError(
                "prior=var needs tokens of several scales, got continuous features of "
                f"{spec.channels} x {spec.height} x {spec.width}; type prior=flow, or {cure}"
            )
        if len(spec.scales) < 2:
            raise ValueError(
                f"prior=var needs tokens of several scales, got one scale of {spec.grids}; "
                f"type prior=llamagen, or {cure}"
            )

    # ---- loss and likelihood

    def logits(self, tokens: Tensor, condition: Condition, scales: int | None = None) -> Tensor:
        """Teacher forcing: tokens Long [batch, length] -> [batch, length, vocab]; row i predicts
        token i. With `scales` only that many leading ones, read and predicted; the tokens of the
        last scale are never read."""
        return self.transformer(self.condition(condition)[:, 0], self.teacher_maps(tokens, scales))

    @torch.no_grad()
    def teacher_maps(self, tokens: Tensor, scales: int | None = None) -> list[Tensor]:
        """tokens Long [batch, length] -> what each scale but the first reads, [batch, h_k w_k,
        channels]: the canvas of all scales before."""
        canvas, maps = self.pyramid.blank(len(tokens)), []
        for scale in range((scales or len(self.ends)) - 1):
            canvas = self.pyramid.advance(canvas, tokens[:, self.places(scale)], scale)
            maps.append(self.pyramid.next_input(canvas, scale + 1))
        return maps

    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """Cross-entropy in nats, the mean over all tokens, or over those of the scales that have
        come in; conditions are withheld with `label_dropout`."""
        scales = self._scales_in()
        self.calls += 1
        tokens = latents[:, : self.ends[scales - 1]]
        logits = self.logits(tokens, condition.drop(self.label_dropout), scales)
        total = F.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=self.label_smoothing
        )
        parts = {"cross_entropy": total.detach()}
        if self.progressive_steps:
            parts["scales"] = total.new_tensor(float(scales))
        return Losses(total, parts)

    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """-log2 p of each image's tokens, one part per size of scale ("scale_2x3"); put the module
        in eval() first."""
        with torch.autocast(latents.device.type, enabled=False):
            logits = self.logits(latents, condition).flatten(0, 1).float()
        nats = F.cross_entropy(logits, latents.flatten(), reduction="none").view_as(latents)
        parts: dict[str, Tensor] = {}
        for scale, size in enumerate(self.spec.scales):
            bits = nats[:, self.places(scale)].sum(dim=1) / math.log(2)
            name = scale_name(size)
            parts[name] = parts[name] + bits if name in parts else bits
        return parts

    def _scales_in(self) -> int:
        """How many leading scales the next call of `loss` trains."""
        count = len(self.ends)
        if not self.progressive_steps:  # the count of calls is read only where it matters
            return count
        return min(count, 1 + int(self.calls) * count // self.progressive_steps)

    def places(self, scale: int) -> slice:
        """Where the tokens of a scale stand in the sequence."""
        return slice(self.ends[scale - 1] if scale else 0, self.ends[scale])

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
        """-> tokens Long [batch, length], scale by scale, in the weights' own precision; put the
        module in eval() first. Progress of guidance is k / (K - 1) at scale k of K.

        Raises ValueError if an argument does not suit this model or the batch."""
        self.condition.check(condition)
        check_request(self.spec, condition.batch, seeds, known)
        draws = Draws(seeds)

        def choose(logits: Tensor, scale: int) -> Tensor:
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
        """`sample` with any way to choose the tokens of a scale."""
        total, device = len(self.ends), self.calls.device
        branches = Branches(
            condition.batch, total, guidance, has_null=self.condition.can_drop, late=True
        )
        check_guidance(branches, self.label_dropout)
        conditions = [condition, condition.null()] if branches.guided else [condition]
        tokens = torch.full((condition.batch, self.spec.length), -1, device=device)
        with torch.autocast(device.type, enabled=False):
            vectors = [self.condition(part)[:, 0] for part in conditions]
            passes = CachedPasses(self.transformer, branches, vectors)
            # a convolution over one image rounds otherwise than over many
            images = torch.arange(padded(condition.batch), device=device) % condition.batch
            canvas = before = self.pyramid.blank(len(images))  # before: with the known tokens alone
            for scale in range(total):
                places = self.places(scale)
                if scale:
                    passes.hear(self.pyramid.next_input(canvas, scale))
                chosen = choose(branches.guide(passes.logits(scale), scale), scale)
                if known is not None:
                    given = known.latents[:, places][images]
                    fitting = given
                    if known.whole:
                        fitting = self.pyramid.refit(canvas, given, before, scale)
                        before = self.pyramid.advance(before, given, scale)
                    kept = known.keep[:, places]
                    chosen = torch.where(kept, fitting[: len(chosen)], chosen)
                tokens[:, places] = chosen
                canvas = self.pyramid.advance(canvas, chosen[images], scale)
                if on_step is not None:
                    on_step(scale + 1, total, tokens.clone())
        return tokens
