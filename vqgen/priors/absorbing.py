"""Absorbing diffusion: corrupt by masking, predict the masked tokens, reveal step by step."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

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
from vqgen.priors.bidirectional import Bidirectional
from vqgen.priors.requests import (
    check_at_least,
    check_guidance,
    check_request,
    check_shares,
    check_single_scale,
)
from vqgen.sampling.branches import Branches
from vqgen.sampling.counts import whole
from vqgen.sampling.discrete import Clock, Weight
from vqgen.sampling.draws import Draws
from vqgen.sampling.guidance import guide
from vqgen.sampling.masking import Masking, nats
from vqgen.sampling.replacement import Replacement
from vqgen.sampling.schedules import Schedule, parse
from vqgen.sampling.unmasking import UnmaskingKnobs
from vqgen.words import cure

KERNELS: dict[str, type[Masking] | type[Replacement]] = {
    "absorbing": Masking,
    "uniform": Replacement,
}
HASH = 1_000_003  # a prime: images of other tokens get other noise in their bounds


class Absorbing(Prior):
    """Discrete diffusion over the tokens of one scale (Austin et al. 2021): a bidirectional
    transformer predicts all clean tokens from the noisy ones.

    kernel       absorbing: noise is the mask; uniform: noise is any other code, and what a noisy
                 token says of its clean one is added to the network's logits (a checkpoint of a
                 version that did not add it has to be trained again)
    noise_steps  T; None: a continuous mask rate (Sahoo et al. 2024)
    weight       w_t of the cross-entropy on masked tokens: elbo (w_t = T rho_t: the bound itself;
                 for the uniform kernel T times its divergence), uniform (1), maskgit (what MaskGIT
                 trains, under any schedule), or a function of s = t / T
    """

    likelihood: ClassVar[Literal["bound"]] = "bound"
    Knobs: ClassVar[type] = UnmaskingKnobs
    spec: TokenSpec

    def __init__(
        self,
        spec: LatentSpec,
        *,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int | None = None,  # fewer than heads: grouped-query attention
        num_classes: int = 0,
        text_length: int = 0,  # tokens of a text condition
        text_dim: int = 0,  # width of its embeddings
        kernel: str = "absorbing",
        schedule: str | Sequence[float] | Schedule = "linear",  # a list: alpha-bars, 1 to 0
        noise_steps: int | None = 1000,
        weight: str | Weight = "elbo",
        rate_condition: bool = False,  # tell the network the noise rate (time conditioning)
        bound_samples: int = 4,  # network calls per image and validation, and one for t = 1
        label_dropout: float = 0.1,  # how often training withholds the condition, for guidance
        multiple_of: int = 256,  # the hidden width of the feed-forward part is rounded up to it
        ffn_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        rope_base: float = 10000.0,
        token_dropout: float = 0.0,  # of the embedded sequence
        attention_dropout: float = 0.0,
        dropout: float = 0.1,  # of both parts' outputs
        drop_path: float = 0.0,  # of the last block; it grows linearly from 0 at the first
    ) -> None:
        super().__init__()
        self.check(spec)
        assert isinstance(spec, TokenSpec)
        if kernel not in list(KERNELS):  # a list has no hash
            raise ValueError(
                f"wanted prior.kernel as one of {', '.join(KERNELS)}, got {kernel}"
                f"{cure(kernel, KERNELS, 'prior.kernel=absorbing')}"
            )
        check_at_least(1, width=width, depth=depth, heads=heads)
        check_at_least(0, num_classes=num_classes)
        check_shares(label_dropout=label_dropout)
        self.spec, self.num_classes, self.label_dropout = spec, num_classes, label_dropout
        self.text_size = (text_length, text_dim) if text_length else None
        self.clock = Clock(parse(schedule), noise_steps)
        self.process = KERNELS[kernel](spec.vocab_size, self.clock)
        self.weight = self.clock.weight(weight)  # None: the bound itself
        self.bound_samples = whole("bound_samples", bound_samples, "prior.bound_samples=4")
        self.net = Bidirectional(
            size=spec.scales[0],
            inputs=self.process.inputs,
            codes=spec.vocab_size,
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            num_classes=num_classes,
            text_length=text_length,
            text_dim=text_dim,
            rate_condition=rate_condition,
            multiple_of=multiple_of,
            ffn_multiplier=ffn_multiplier,
            norm_eps=norm_eps,
            rope_base=rope_base,
            token_dropout=token_dropout,
            attention_dropout=attention_dropout,
            dropout=dropout,
            drop_path=drop_path,
        )

    @classmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError unless the latents are tokens of a single scale."""
        check_single_scale(spec, "absorbing")

    # ---- loss and likelihood

    def logits(self, noisy: Tensor, rate: Tensor, condition: Condition) -> Tensor:
        """log p(x_0 | x_t) up to a constant: noisy tokens [batch, length] and their share of noise
        [batch] -> [batch, length, codes]. What the network says, and what the noisy token does."""
        return self.process.informed(self.net.logits(noisy, rate, condition), noisy, rate[:, None])

    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """w_t-weighted cross-entropy on noisy tokens in nats per token of the image; conditions are
        withheld with `label_dropout`. With weight=elbo its mean is the bound without its prior
        term."""
        device = latents.device
        s = self.clock.draw(len(latents))
        keep = self.clock.now(s).to(device, torch.float32)
        noisy = self.process.corrupt(latents, keep, torch.rand(2, *latents.shape, device=device))
        logits = self.logits(noisy, 1 - keep, condition.drop(self.label_dropout))
        counted = self.process.counted(noisy)
        errors = counted * nats(logits, latents)
        if self.weight is None:
            terms = self.process.terms(logits, latents, noisy, s)
        else:
            terms = self.weight(s).to(errors)[:, None] * errors
        share = counted.float().mean().clamp(min=1 / latents.numel())
        parts = {
            "cross_entropy": errors.detach().mean() / share,
            "accuracy": (counted & (logits.argmax(dim=-1) == latents)).float().mean() / share,
        }
        return Losses(terms.mean(), parts)

    @torch.no_grad()
    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """The negative evidence lower bound in bits, in the lecture's three parts; put the module
        in eval() first. An unbiased estimate whose noise is a function of each image's tokens."""
        place = torch.arange(1, self.spec.length + 1, device=latents.device)
        seeds = ((latents + 1) * place * HASH).sum(dim=1) % 2**31
        device = latents.device.type

        def predict(noisy: Tensor, rate: Tensor) -> Tensor:
            with torch.autocast(device, enabled=False):
                return self.logits(noisy, rate.to(noisy.device, torch.float32), condition)

        draws = Draws(seeds.tolist())
        assert self.bound_samples is not None
        parts = self.process.bound(predict, latents, draws, self.bound_samples)
        return {name: part / math.log(2) for name, part in parts.items()}

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        knobs: UnmaskingKnobs,
        guidance: Guidance,
        seeds: Sequence[int],
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """-> tokens Long [batch, length], in knobs.steps steps, in the weights' own precision; put
        the module in eval() first.

        Raises ValueError if an argument does not suit this model or the batch."""
        self.net.condition.check(condition)
        check_request(self.spec, condition.batch, seeds, known)
        device, batch = self.net.rotary.device, condition.batch
        can_drop = self.net.condition.can_drop
        branches = Branches(batch, knobs.steps, guidance, has_null=can_drop)
        check_guidance(branches, self.label_dropout)
        conditions = [condition, condition.null()] if branches.guided else [condition]
        tokens = torch.full((batch, self.spec.length), -1, device=device)
        if known is not None:
            tokens = torch.where(known.keep, known.latents, tokens)
        with torch.autocast(device.type, enabled=False):
            front = torch.cat([self.net.condition(part) for part in conditions])
            visible = self.net.condition.visible(condition)

            def predict(now: Tensor, wanted: Tensor, rate: float, step: int) -> Tensor:
                rows, asked = branches.needed(wanted, step)
                noisy = now.masked_fill(now < 0, self.spec.vocab_size)[rows % batch]
                rates = front.new_full((len(rows),), rate)
                seen = None if visible is None else visible[rows % batch]
                logits = self.net(noisy, rates, front[rows], seen, asked)
                if branches.has_guidance(step):
                    conditional, null = logits.chunk(2)
                    logits = guide(conditional, null, branches.scales[step])
                return self.process.informed(logits, now[wanted], rate)

            return self.process.generate(
                predict,
                tokens,
                knobs=knobs,
                draws=Draws(seeds),
                size=self.spec.scales[0],
                on_step=on_step,
            )
