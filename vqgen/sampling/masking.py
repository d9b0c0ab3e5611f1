"""The absorbing process: tokens turn into masks and stay so; corruption, loss, bound, sampler."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgen.sampling.discrete import Clock, Kernel
from vqgen.sampling.draws import Draws
from vqgen.sampling.unmasking import OnStep, Predict, UnmaskingKnobs, unmask

# (noisy tokens [batch, length], noise rate [batch]) -> logits [batch, length, codes]
Predictor = Callable[[Tensor, Tensor], Tensor]


class Masking:
    """Absorbing discrete diffusion over `codes` codes; the mask has the number `codes`."""

    def __init__(self, codes: int, clock: Clock) -> None:
        self.codes, self.clock, self.inputs = codes, clock, codes + 1
        self.kernel = Kernel.absorbing(codes)

    def corrupt(self, tokens: Tensor, keep: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): each token stays with probability keep [batch]; noise Float [2, batch,
        length] is uniform in [0, 1)."""
        return torch.where(noise[0] < keep[:, None], tokens, self.codes)

    def counted(self, noisy: Tensor) -> Tensor:
        """-> Bool, the places whose prediction the simplified loss counts: the masked ones."""
        return noisy == self.codes

    def informed(self, logits: Tensor, noisy: Tensor, rate: Tensor | float) -> Tensor:
        """The logits as they are: a mask says nothing about what it hides."""
        return logits

    def terms(self, logits: Tensor, tokens: Tensor, noisy: Tensor, s: Tensor) -> Tensor:
        """T L_t per place, in nats, whose mean over t is the bound: T rho_t 1{x_t = m} (-log p).

        logits [batch, length, codes], s [batch] -> [batch, length]. The constant of L_t is 0, since
        the model keeps the true chance to stay masked."""
        weight = self.clock.elbo(s).to(noisy.device, torch.float32)[:, None]
        return weight * self.counted(noisy) * nats(logits, tokens)

    def bound(
        self, predict: Predictor, tokens: Tensor, draws: Draws, samples: int
    ) -> dict[str, Tensor]:
        """The negative evidence lower bound of each image by part, in nats [batch].

        The weight of t is part of how it is drawn, stratified, and every draw masks something: far
        less variance than to draw t evenly and weigh the result. Unbiased: `samples` changes the
        noise, not the mean."""
        batch, length = tokens.shape
        last = float(self.clock.now(torch.ones(1, dtype=torch.float64)))
        parts = {
            "reconstruction": torch.zeros(batch, device=tokens.device),
            "diffusion": torch.zeros(batch, device=tokens.device),
            # p(x_T) is what q(x_T) is on average: a mask, or any code for the share still clean
            "prior": torch.full((batch,), length * last * math.log(self.codes)).to(tokens.device),
        }
        for part, first, stop, count in self._spans(samples):
            noise = draws.uniform(count, length + 2).double()
            for i in range(count):
                share = (i + noise[:, i, -1]) / count
                masked, rate, weight = self._masks(noise[:, i, :-1], share, first, stop)
                masked = masked.to(tokens.device)
                noisy = tokens.masked_fill(masked, self.codes)
                mean = (nats(predict(noisy, rate), tokens) * masked).sum(1) / masked.sum(1)
                parts[part] = parts[part] + mean * weight / count
        return parts

    def _spans(self, samples: int) -> list[tuple[str, float, float, int]]:
        """(part of the bound, noise times s it lies between, samples); continuous time has no first
        step."""
        steps = self.clock.steps
        if steps is None:
            return [("diffusion", 0.0, 1.0, samples)]
        spans = [("reconstruction", 0.0, 1 / steps, 1), ("diffusion", 1 / steps, 1.0, samples)]
        return spans if steps > 1 else spans[:1]

    def _masks(
        self, noise: Tensor, share: Tensor, first: float, stop: float
    ) -> tuple[Tensor, Tensor, float]:
        """noise [batch, length + 1] uniform, share [batch] in [0, 1): the quantile of the mask rate
        to draw. -> (masked Bool [batch, length], its mask rate [batch], weight of its mean nats).

        rho_t n P(n masked at t) = length (rate_t - rate_{t-1}) P(n - 1 of length - 1 masked at t).
        So t is drawn by how much of the rate is its own, one place anyhow and the others by rate.
        """
        ends = torch.tensor([first, stop], dtype=torch.float64)
        low, high = (1 - self.clock.now(ends)).tolist()
        rate = low + share * (high - low)
        if self.clock.steps is not None:
            rate = self._step_above(rate)
        length = noise.shape[1] - 1
        anyhow = (noise[:, -1] * length).long().clamp(max=length - 1)
        masked = noise[:, :-1] < rate[:, None]
        return masked.scatter(1, anyhow[:, None], True), rate, length * (high - low)

    def _step_above(self, rate: Tensor) -> Tensor:
        """The mask rate of the first step t at which more than `rate` is masked."""
        steps = self.clock.steps
        assert steps is not None
        low, high = torch.zeros_like(rate), torch.full_like(rate, steps)
        for _ in range(steps.bit_length()):  # halve (low, high] until one step is left
            middle = ((low + high) / 2).floor()
            above = 1 - self.clock.now(middle / steps) > rate
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 1 - self.clock.now(high / steps)

    def generate(
        self,
        predict: Predict,
        tokens: Tensor,
        *,
        knobs: UnmaskingKnobs,
        draws: Draws,
        size: tuple[int, int],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """tokens Long [batch, length], -1 where nothing is given -> all decided."""
        rates = knobs.rates(self.clock.schedule)
        return unmask(
            predict, tokens, size=size, knobs=knobs, rates=rates, draws=draws, on_step=on_step
        )


def nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, Float [batch, length], in float32 at least."""
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(flat, tokens.flatten(), reduction="none").view_as(tokens)
