"""The loss of stage 1: pixels, perception, bottleneck and GAN; and the discriminator's own loss."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vqgen.contracts import Losses, Reconstruction, Size
from vqgen.losses.gan import PatchGAN
from vqgen.losses.perceptual import PerceptualDistance
from vqgen.losses.pixel import pixel_loss


class Stage1Loss(nn.Module):
    """total = pixel_weight pixel + perceptual_weight mean perceptual + bottleneck terms + GAN term.

    pixel         a name ("l1", "l2", "huber", "mixed") or weights by name ({"l1": 1.0, "l2": 0.2})
    perceptual    a module (reconstruction, images) -> distances [batch], with check_size(size)
    gan           the adversarial part

    All of it is computed in float32, outside autocast. A trainer steps the generator with
    `generator`, then, if `gan_active(progress)`, the discriminator with `discriminator`.
    perceptual and gan may be None, or "none", as in `loss.gan=none`."""

    def __init__(
        self,
        *,
        pixel: str | Mapping[str, float] = "l1",
        pixel_weight: float = 1.0,
        perceptual: PerceptualDistance | str | None = None,
        perceptual_weight: float = 1.0,
        gan: PatchGAN | str | None = None,
    ) -> None:
        super().__init__()
        self.pixel = pixel_loss(pixel)
        self.pixel_weight = pixel_weight
        self.perceptual: PerceptualDistance | None = _module_or_none(perceptual, "loss.perceptual")
        self.perceptual_weight = perceptual_weight
        self.gan: PatchGAN | None = _module_or_none(gan, "loss.gan")

    def check_size(self, size: Size) -> None:
        """size (height, width). Raises ValueError if LPIPS or the discriminator cannot take it."""
        if self.perceptual is not None:
            self.perceptual.check_size(size)
        if self.gan is not None:
            self.gan.discriminator.check_size(size)

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """What the discriminator's optimizer has to hold; empty without a GAN."""
        return [] if self.gan is None else list(self.gan.discriminator.parameters())

    def gan_active(self, progress: float) -> bool:
        """Is there a discriminator step at this fraction of the run, in [0, 1]?"""
        return self.gan is not None and self.gan.active(progress)

    def generator(
        self,
        images: Tensor,
        reconstruction: Reconstruction,
        last_layer: nn.Parameter,
        progress: float,
    ) -> Losses:
        """images [batch, 3, H, W] in [-1, 1] and what the tokenizer made of them -> its loss.

        last_layer is the weight that makes the pixels (for the adaptive weight); progress the
        fraction of the run in [0, 1]. Parts hold pixel, perceptual and GAN terms unweighted."""
        with torch.autocast(images.device.type, enabled=False):
            images, decoded = images.float(), reconstruction.images.float()
            pixel = self.pixel(decoded, images)
            visible = self.pixel_weight * pixel
            parts = {"pixel": pixel.detach()}
            if self.perceptual is not None:
                perceptual = self.perceptual(decoded, images).mean()
                visible = visible + self.perceptual_weight * perceptual
                parts["perceptual"] = perceptual.detach()
            total = visible
            for name, term in reconstruction.losses.items():
                total = total + term.float()
                parts[name] = term.detach()
            if self.gan is not None:
                adversarial = self.gan.generator_loss(decoded, visible, last_layer, progress)
                total = total + adversarial.total
                parts |= adversarial.parts
        return Losses(total, parts)

    def discriminator(self, images: Tensor, fakes: Tensor, progress: float) -> Losses:
        """images, fakes [batch, 3, H, W] -> the discriminator's loss; images get no gradient."""
        assert self.gan is not None and self.gan_active(progress), "ask gan_active(progress) first"
        with torch.autocast(images.device.type, enabled=False):
            return self.gan.discriminator_loss(images.float(), fakes.float())


def _module_or_none(part: Any, setting: str) -> Any:
    if part is None or part == "none":
        return None
    if isinstance(part, str):
        raise ValueError(
            f"{setting} is a group of settings or none; got {part!r}. Try {setting}=none"
        )
    return part
