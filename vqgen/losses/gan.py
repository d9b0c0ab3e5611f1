"""The adversarial part of stage 1: discriminator, losses and the schedule that lets it in."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vqgen.contracts import Losses
from vqgen.losses.adversarial import GAMES, LeCam, adaptive_weight, gradient_penalty
from vqgen.losses.choices import choose
from vqgen.losses.discriminator import PatchDiscriminator


class PatchGAN(nn.Module):
    """A patch discriminator that enters the training in steps, stated as fractions of the run.

    Before `start` nothing happens. From `start` on the discriminator trains, alone for `warmup`;
    then its gradient reaches the generator, with a weight that climbs from 0 to `weight` over
    `ramp`.

    loss            "hinge", "vanilla" or "non_saturating"
    adaptive        multiply by the ratio of gradients at the last layer, at most `adaptive_max`
    lecam_weight    of the LeCam regularizer in the discriminator's loss, 0: none
    r1_weight       of the gradient penalty on real images (gamma of the paper), 0: none
    norm, width, layers    of the discriminator

    Raises ValueError for unknown names and for numbers out of range."""

    def __init__(
        self,
        *,
        loss: str = "hinge",
        weight: float = 0.5,
        start: float = 0.4,
        warmup: float = 0.02,
        ramp: float = 0.1,
        adaptive: bool = True,
        adaptive_max: float = 100.0,
        lecam_weight: float = 0.0,
        r1_weight: float = 0.0,
        norm: str = "batch",
        width: int = 64,
        layers: int = 3,
    ) -> None:
        super().__init__()
        for name, value in (("start", start), ("warmup", warmup), ("ramp", ramp)):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"loss.gan.{name} is a fraction of the run, between 0 and 1; got {value}. "
                    f"For step s of n type s / n, for example loss.gan.{name}=0.4"
                )
        weights = {"weight": weight, "lecam_weight": lecam_weight, "r1_weight": r1_weight}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"loss.gan.{name} has to be 0 or more; got {value}")
        self.game = choose(GAMES, loss, "loss.gan.loss")
        self.weight, self.start, self.warmup, self.ramp = weight, start, warmup, ramp
        self.adaptive, self.adaptive_max = adaptive, adaptive_max
        self.lecam_weight, self.r1_weight = lecam_weight, r1_weight
        self.discriminator = PatchDiscriminator(width=width, layers=layers, norm=norm)
        self.lecam = LeCam()

    def active(self, progress: float) -> bool:
        """Does the discriminator train at this fraction of the run?"""
        return progress >= self.start

    def weight_at(self, progress: float) -> float:
        """The weight of the generator's term at this fraction of the run, adaptive factor aside."""
        since = progress - (self.start + self.warmup)
        if since < 0:
            return 0.0
        return self.weight * (min(since / self.ramp, 1.0) if self.ramp else 1.0)

    def generator_loss(
        self, fakes: Tensor, reconstruction_loss: Tensor, last_layer: nn.Parameter, progress: float
    ) -> Losses:
        """fakes [batch, 3, H, W] with their graph -> the weighted generator term.

        The discriminator's parameters collect no gradient. Where none is recorded (validation), the
        adaptive factor cannot be measured and is 1."""
        weight = self.weight_at(progress)
        parts = {"gan/weight": fakes.new_tensor(weight)}
        if weight == 0:
            return Losses(fakes.new_zeros(()), parts)
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        term = self.game.generator(functional_call(self.discriminator, frozen, (fakes,)))
        parts["gan/generator"] = term.detach()
        factor = torch.ones_like(term)
        if self.adaptive and torch.is_grad_enabled():
            factor = adaptive_weight(reconstruction_loss, term, last_layer, self.adaptive_max)
            parts["gan/adaptive_weight"] = factor
        return Losses(weight * factor * term, parts)

    def discriminator_loss(self, images: Tensor, fakes: Tensor) -> Losses:
        """images, fakes [batch, 3, H, W] -> the discriminator's loss; the images get no gradient.

        Real and fake images go through it apart, each with its own batch statistics."""
        images = images.detach().requires_grad_(self.r1_weight > 0)
        real, fake = self.discriminator(images), self.discriminator(fakes.detach())
        total = self.game.discriminator(real, fake)
        parts = {
            "gan/discriminator": total.detach(),
            "gan/logits_real": real.detach().mean(),
            "gan/logits_fake": fake.detach().mean(),
        }
        if self.lecam_weight > 0:
            penalty = self.lecam(real, fake)
            self.lecam.update(real, fake)
            parts["gan/lecam"] = penalty.detach()
            total = total + self.lecam_weight * penalty
        if self.r1_weight > 0:
            penalty = gradient_penalty(images, real)
            parts["gan/r1"] = penalty.detach()
            total = total + self.r1_weight * penalty
        return Losses(total, parts)
