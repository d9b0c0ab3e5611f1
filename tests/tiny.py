"""Real models and data, only small: what the tests of training, pipeline and contracts are run
on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqgen import build
from vqgen.contracts import Bottleneck, Prior, Tokenizer
from vqgen.data.images import ImageData
from vqgen.data.store import ImageSet, Kept
from vqgen.losses.gan import PatchGAN
from vqgen.losses.stage1 import Stage1Loss
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.nn.dit import DiT
from vqgen.priors.absorbing import Absorbing
from vqgen.priors.llamagen import LlamaGen
from vqgen.priors.var import VAR
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.features import AsFeatures
from vqgen.tokenizers.gaussian import GaussianBottleneck
from vqgen.tokenizers.multiscale import MultiScaleQuantizer
from vqgen.tokenizers.vq import VectorQuantizer
from vqgen.training.optimizer import Schedule
from vqgen.training.recipe import Budget, Recipe

SIZE = (16, 24)  # not square, on purpose
CODES = 32


def tokenizer(update: str = "learned", image_size: tuple[int, int] = SIZE) -> Autoencoder:
    """A VQ autoencoder of factor 8: 2 x 3 tokens of 32 codes."""
    torch.manual_seed(0)
    return autoencoder(VectorQuantizer(codebook=codebook(update)), image_size)


def multiscale(update: str = "learned", **more: Any) -> Autoencoder:
    """The same around a pyramid: scales of 1 x 1, 1 x 2 and 2 x 3."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"scales": [1, [1, 2], [2, 3]], **more}
    return autoencoder(MultiScaleQuantizer(codebook=codebook(update), **options))


def kl(**more: Any) -> Autoencoder:
    """Factor 4 around Gaussian posteriors: 4 x 6 positions of 4 numbers."""
    torch.manual_seed(0)
    return autoencoder(GaussianBottleneck(channels=4, **more), multipliers=(1,))


def codebook(update: Any) -> Codebook:
    """32 codes of 8 numbers."""
    return Codebook(size=CODES, dim=8, update=update)


def autoencoder(
    bottleneck: Bottleneck,
    image_size: tuple[int, int] = SIZE,
    multipliers: tuple[int, ...] = (1, 1),
) -> Autoencoder:
    """A small convolutional autoencoder of factor 8."""
    shape: dict[str, Any] = {"channels": 32, "multipliers": multipliers, "blocks": 1, "patch": 4}
    return Autoencoder(
        image_size=image_size,
        encoder=partial(Encoder, **shape, attention_levels=()),
        decoder=partial(Decoder, **shape, attention_levels=()),
        bottleneck=bottleneck,
        z_channels=32,
    )


def tokenizer_for(prior: dict[str, Any]) -> Tokenizer:
    """The first tokenizer of TOKENIZERS whose latents the prior of this config node can read."""
    made = (make() for make in TOKENIZERS.values())
    return next(found for found in made if _fits(prior, found))


def _fits(prior: dict[str, Any], tokenizer: Tokenizer) -> bool:
    try:
        build.check_pair(prior, tokenizer.spec)
    except ValueError:
        return False
    return True


def loss(gan: bool = True) -> Stage1Loss:
    """L1 and, from 40 % of the run on, a small patch GAN."""
    return Stage1Loss(gan=PatchGAN(width=8, layers=1, warmup=0.1) if gan else None)


# One row per kind of latents: what the contract tests and the launcher tests go through.
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "vq-learned": lambda: tokenizer("learned"),
    "vq-ema": lambda: tokenizer("ema"),
    "var-learned": lambda: multiscale("learned"),
    "var-ema-own": lambda: multiscale("ema", own_codebooks=True),
    "kl": lambda: kl(),
    "vq-as-features": lambda: AsFeatures(tokenizer=tokenizer("ema")),
}


def prior_for(spec: Any, num_classes: int = 3) -> LlamaGen:
    """A transformer of two layers over such tokens, with dropout."""
    torch.manual_seed(1)
    return LlamaGen(spec, width=32, depth=2, heads=2, num_classes=num_classes)


def var(tokenizer: Tokenizer, num_classes: int = 3) -> VAR:
    """A next-scale transformer of two layers over a pyramid."""
    torch.manual_seed(1)
    pyramid: Any = tokenizer.pyramid  # None where the prior refuses
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "gate_init": 0.1}
    return VAR(tokenizer.spec, pyramid=pyramid, num_classes=num_classes, **sizes)


def absorbing_for(spec: Any, num_classes: int = 3, kernel: str = "absorbing") -> Absorbing:
    """A bidirectional transformer of two layers over such tokens, with dropout."""
    torch.manual_seed(1)
    return Absorbing(spec, width=32, depth=2, heads=2, num_classes=num_classes, kernel=kernel)


def continuous(family: Any, tokenizer: Tokenizer, num_classes: int = 3) -> Prior:
    """A flow or diffusion prior of two layers over such latents."""
    torch.manual_seed(1)
    network = partial(DiT, width=32, depth=2, heads=2, patch=1)
    return family(tokenizer.spec, network=network, num_classes=num_classes)


def prior(num_classes: int = 3) -> LlamaGen:
    """`prior_for` the tokens of `tokenizer`."""
    return prior_for(tokenizer().spec, num_classes)


def images(count: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, H, W]: smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    return (torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear") * 255).to(torch.uint8)


def data(batch: int = 4, accumulate: int = 1, classes: int = 3, seed: int = 0) -> ImageData:
    """24 training and 6 validation images in memory, flipped at random."""

    def split(count: int, seed: int) -> ImageSet:
        pixels = list(images(count, seed).permute(0, 2, 3, 1).numpy())
        labels = np.arange(count) % classes if classes else None
        return ImageSet(Kept(pixels, labels), size=SIZE, skipped={})

    return ImageData(
        name="tiny",
        train=split(24, 1),
        val=split(6, 2),
        class_names=[f"class {i}" for i in range(classes)],
        flip=True,
        global_batch=batch,
        accumulate=accumulate,
        seed=seed,
    )


def recipe(steps: int, **more: Any) -> Recipe:
    """A run of so many steps that logs every one."""
    schedule = Schedule(lr=1e-3, warmup_steps=2)
    return Recipe(budget=Budget(max_steps=steps), schedule=schedule, log_every=1, **more)


def settings(validate_every: int = 100, save_every: int = 100) -> dict[str, Any]:
    """What launch.train reads of the resolved config."""
    trainer = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    return {
        "train": {"validate_every": validate_every, "save_every": save_every},
        "trainer": trainer,
    }
