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

        Given how many tokens are masked, which ones is uniform, whatever t. So the sum over t is
        done beforehand and only the count is drawn, stratified: far less variance than to draw t
        and then masks. Unbiased: `samples` changes the noise, not the mean."""
        batch, length = tokens.shape
        last = float(self.clock.now(torch.ones(1, dtype=torch.float64)))
        parts = {
            "reconstruction": torch.zeros(batch, device=tokens.device),
            "diffusion": torch.zeros(batch, device=tokens.device),
            # p(x_T) is what q(x_T) is on average: a mask, or any code for the share still clean
            "prior": torch.full((batch,), length * last * math.log(self.codes)).to(tokens.device),
        }
        for part, first, stop, count in self._spans(samples):
            noise = draws.uniform(count, length + 1).double()
            for i in range(count):
                places, share = noise[:, i, :length], (i + noise[:, i, length]) / count
                masked, rate, weight = self._masks(places, share, first, stop)
                masked = masked.to(tokens.device)
                noisy = tokens.masked_fill(masked, self.codes)
                mean = (nats(predict(noisy, rate), tokens) * masked).sum(1) / masked.sum(1)
                parts[part] = parts[part] + mean * weight.to(mean) / count
        return parts

    def _spans(self, samples: int) -> list[tuple[str, int, int, int]]:
        """(part of the bound, first t, last t, samples); continuous time has no first step."""
        steps = self.clock.steps
        if steps is None:
            return [("diffusion", 0, 0, samples)]
        spans = [("reconstruction", 1, 1, 1), ("diffusion", 2, steps, samples)]
        return spans if steps > 1 else spans[:1]

    def _masks(
        self, places: Tensor, share: Tensor, first: int, stop: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """places [batch, length] uniform, share [batch] in [0, 1): the quantile of the count to
        draw. -> (masked Bool [batch, length], its mask rate [batch], weight of its mean nats)."""
        length, steps = places.shape[1], self.clock.steps
        ordered = places.sort(dim=1).values
        if steps is None:
            # int dlambda / lambda sum 1{u < lambda} = sum over n of the mean over the n smallest u,
            # with lambda the n-th smallest, as far as the schedule goes
            count = (share * length).long().clamp(max=length - 1) + 1
            rate = ordered.gather(1, count[:, None] - 1)[:, 0]
            top = 1 - float(self.clock.now(torch.ones(1, dtype=torch.float64)))
            weight = length * (rate <= top).double()
        else:
            s = torch.arange(first, stop + 1, dtype=torch.float64) / steps
            rates, chance = 1 - self.clock.now(s), self.clock.reveal(s)
            # [n, t]: rho_t n P(n masked at t), whose sum is that of rho_t (1 - alpha-bar_t) length
            table = chance * binomial(length, rates) * torch.arange(1, length + 1)[:, None]
            total = table.flatten().cumsum(dim=0)
            index = torch.searchsorted(total, share * total[-1], right=True)
            index = index.clamp(max=len(total) - 1)
            count, rate = index // len(s) + 1, rates[index % len(s)]
            weight = total[-1].expand(len(share))
        edge = ordered.gather(1, count[:, None] - 1)
        return places <= edge, rate, weight

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


def binomial(length: int, rates: Tensor) -> Tensor:
    """P(n of `length` are masked) at each rate [t] -> float64 [length, t], n = 1 ... length."""
    n = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    top = torch.tensor(float(length), dtype=torch.float64)
    ways = (top + 1).lgamma() - (n + 1).lgamma() - (top - n + 1).lgamma()
    return (ways + torch.xlogy(n, rates) + torch.xlogy(top - n, 1 - rates)).exp()
