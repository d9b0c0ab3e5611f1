"""The uniform process: tokens turn into any other code and on; corruption, loss, bound, sampler."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgen.sampling.discrete import Clock, Kernel
from vqgen.sampling.draws import Draws
from vqgen.sampling.masking import Predictor
from vqgen.sampling.unmasking import OnStep, Predict, UnmaskingKnobs

SMALLEST = 1e-30  # probability: a float32 with a finite logarithm
LEAST_RATE = 1e-9  # of noise: below it a token is taken to be clean anyhow


class Replacement:
    """Uniform discrete diffusion over `codes` codes (Austin et al. 2021): no mask, so a wrong token
    may still be put right, but nothing says which tokens are noise.

    The network predicts what its neighbors say about a token; what the noisy token itself says is
    known and added (`informed`). Weights of a version that did not add it mean something else."""

    def __init__(self, codes: int, clock: Clock) -> None:
        if clock.steps is None:
            raise ValueError(
                "kernel=uniform wanted a number of noise steps, got prior.noise_steps=null; type "
                "prior.noise_steps=1000 (a continuous mask rate needs kernel=absorbing)"
            )
        self.codes, self.clock, self.inputs = codes, clock, codes
        self.kernel = Kernel.uniform(codes)

    def corrupt(self, tokens: Tensor, keep: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): each token stays with probability keep [batch], else it is any code; noise
        Float [2, batch, length] is uniform in [0, 1)."""
        other = (noise[1] * self.codes).long().clamp(max=self.codes - 1)
        return torch.where(noise[0] < keep[:, None], tokens, other)

    def counted(self, noisy: Tensor) -> Tensor:
        """-> Bool, the places whose prediction the simplified loss counts: all."""
        return torch.ones_like(noisy, dtype=torch.bool)

    def informed(self, logits: Tensor, noisy: Tensor, rate: Tensor | float) -> Tensor:
        """Logits plus log q(x_t | x_0) up to a constant, log(1 + K keep / rate) where x_0 = x_t and
        0 elsewhere, since q(x_t | x_0) = keep 1{x_0 = x_t} + rate / K: flat logits become the exact
        posterior of tokens that are alike likely, whose bound is log K.

        logits Float [..., codes], noisy Long [...], rate (the noise, 1 - keep) broadcast to [...]
        -> [..., codes], in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        rate = torch.as_tensor(rate, dtype=logits.dtype, device=logits.device)
        known = torch.log1p(self.codes * (1 - rate) / rate.clamp(min=LEAST_RATE))
        return logits.scatter_add(-1, noisy[..., None], known.expand(noisy.shape)[..., None])

    def terms(self, logits: Tensor, tokens: Tensor, noisy: Tensor, s: Tensor) -> Tensor:
        """T L_t per place, in nats: T KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), where p is the
        posterior averaged over the predicted x_0; at t = 1 this is -log p(x_0 | x_1).

        logits [batch, length, codes], s [batch] -> [batch, length]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        before, now = (
            part(s).to(logits)[:, None].expand(noisy.shape)
            for part in (self.clock.before, self.clock.now)
        )
        clean = F.one_hot(tokens, self.codes).to(logits)
        true = self.kernel.posterior(noisy, clean, before, now)
        guess = self.kernel.posterior(noisy, logits.softmax(dim=-1), before, now)
        steps = self.clock.steps or 0
        return steps * (torch.xlogy(true, true) - true * guess.clamp(min=SMALLEST).log()).sum(-1)

    def bound(
        self, predict: Predictor, tokens: Tensor, draws: Draws, samples: int
    ) -> dict[str, Tensor]:
        """The negative evidence lower bound of each image by part, in nats [batch]; t is drawn
        stratified, `samples` times. Unbiased: `samples` changes the noise, not the mean."""
        steps = self.clock.steps or 0
        (batch, length), codes = tokens.shape, self.codes
        left = float(self.clock.now(torch.ones(1, dtype=torch.float64)))
        same, other = left + (1 - left) / codes, (1 - left) / codes  # q(x_T | x_0)
        divergence = math.log(codes) + same * math.log(same) + (codes - 1) * other * math.log(other)
        zero = torch.zeros(batch, device=tokens.device)
        parts = {
            "reconstruction": zero,
            "diffusion": zero,
            "prior": zero + length * max(divergence, 0),
        }
        spans = [("reconstruction", 0, 1, 1), ("diffusion", 1, steps, samples)]
        for part, first, stop, count in spans if steps > 1 else spans[:1]:
            noise = draws.uniform(count, 2 * length + 1)
            for i in range(count):
                share = (i + noise[:, i, -1].double()) / count
                s = self.clock.at((first + share * (stop - first)) / steps)
                keep, chances = self.clock.now(s), noise[:, i, :-1].unflatten(1, (2, length))
                moved = chances.transpose(0, 1).to(tokens.device)
                noisy = self.corrupt(tokens, keep.to(moved), moved)
                terms = self.terms(predict(noisy, 1 - keep), tokens, noisy, s).sum(dim=1)
                parts[part] = parts[part] + terms * (stop - first) / steps / count
        return parts

    @torch.no_grad()
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
        """tokens Long [batch, length], -1 where nothing is given -> all decided. Given tokens are
        noised like the rest on the way, which is what the network knows, and clean at the end.

        Raises ValueError for samplers that need masks."""
        if knobs.sampler != "ancestral" or knobs.remask > 0:
            raise ValueError(
                "a prior with kernel=uniform samples ancestrally, since it has no masks, got "
                f"sampler={knobs.sampler} remask={knobs.remask}; type sampler=ancestral remask=0, "
                "or train with prior.kernel=absorbing"
            )
        rates, given, wanted = knobs.rates(self.clock.schedule), tokens >= 0, tokens
        (batch, length), device = tokens.shape, tokens.device
        nothing, everywhere = torch.zeros(batch, device=device), torch.ones_like(given)
        tokens = self.corrupt(tokens, nothing, _noise(draws, length, device))
        for step in range(knobs.steps):
            now, before = (1 - rate for rate in rates[step : step + 2])
            logits = knobs.filter(predict(tokens, everywhere, rates[step], step))
            clean = logits.float().softmax(dim=-1).unflatten(0, tokens.shape)
            times = (clean.new_full(tokens.shape, keep) for keep in (before, now))
            tokens = draws.categorical(self.kernel.posterior(tokens, clean, *times).log())
            noised = self.corrupt(wanted, nothing + before, _noise(draws, length, device))
            tokens = torch.where(given, noised, tokens)
            if on_step is not None:
                on_step(step + 1, knobs.steps, tokens.clone())
        return tokens


def _noise(draws: Draws, length: int, device: torch.device) -> Tensor:
    return draws.uniform(2, length).transpose(0, 1).to(device)
