"""Adversarial losses, the adaptive weight, and the discriminator's regularizers LeCam and R1."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.losses.ranks import mean_over_ranks

EPSILON = 1e-4  # in the denominator of the adaptive weight, as published


@dataclass(frozen=True)
class Game:
    """The two sides of one GAN: both take logits of any shape and return a scalar to minimize."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (logits of real, logits of fake)
    generator: Callable[[Tensor], Tensor]  # (logits of fake)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean max(0, 1 - real) + mean max(0, 1 + fake)) (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean softplus(-real) + mean softplus(fake)): cross-entropy (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def linear_generator(fake: Tensor) -> Tensor:
    """-mean fake: the generator raises the logits, with the same force wherever they are."""
    return -fake.mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """mean softplus(-fake) = -mean log sigmoid(fake) (Goodfellow et al. 2014).

    The force fades where the discriminator already takes the images for real. Published VQGAN
    code that offers this loss swaps logits and labels in the cross-entropy: its generator term is
    the linear one plus a constant, and its discriminator learns nothing from made images. That
    version is not offered here."""
    return F.softplus(-fake).mean()


# "vanilla" pairs the logistic discriminator with the linear generator: what VQGAN calls vanilla.
GAMES: dict[str, Game] = {
    "hinge": Game(hinge_discriminator, linear_generator),
    "vanilla": Game(logistic_discriminator, linear_generator),
    "non_saturating": Game(logistic_discriminator, non_saturating_generator),
}


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter, largest: float
) -> Tensor:
    """The weight that gives both losses the same pull on the decoder's last layer.

    |d reconstruction_loss / d last_layer| / (|d adversarial_loss / d last_layer| + 1e-4), a
    detached scalar clamped to [0, largest] (Esser et al. 2021, Eq. 7). The graph is kept for
    backward(). The gradients are averaged over the ranks first: the weight is that of the global
    batch, and equal on all of them."""
    pulls = [
        mean_over_ranks(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (pulls[0].norm() / (pulls[1].norm() + EPSILON)).clamp(0, largest)


class LeCam(nn.Module):
    """Keeps the logits of one side near the running mean of the other side's (Tseng et al. 2021).

    mean (real - mean_fake)^2 + mean (fake - mean_real)^2, with exponential moving averages that
    start at zero. It holds a discriminator back that has few images to learn from."""

    mean_real: Tensor
    mean_fake: Tensor

    def __init__(self, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of any shape -> the penalty, a scalar, against the averages before this batch."""
        return (real - self.mean_fake).square().mean() + (fake - self.mean_real).square().mean()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Move the averages towards this batch's logits, of all ranks; logits that are not finite
        would stay in them for good, and are left out."""
        for average, logits in ((self.mean_real, real), (self.mean_fake, fake)):
            mean = mean_over_ranks(logits.mean())
            average.lerp_(mean.where(mean.isfinite(), average), 1 - self.decay)


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """R1: mean over images of 0.5 |d logit / d image|^2 (Mescheder et al. 2018, Eq. 9), a scalar.

    images [batch, 3, H, W] with requires_grad, logits [batch, 1, h, w] computed from them. An
    image's logit is the mean over its patches: more patches do not mean more penalty."""
    per_image = logits.mean(dim=(1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(per_image, images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()
