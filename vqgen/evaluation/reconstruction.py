"""How well a tokenizer gives images back: PSNR, SSIM, LPIPS, code usage, rate and distortion."""

import torch
from torch import Tensor

from vqgen import pictures
from vqgen.contracts import TokenSpec
from vqgen.evaluation import likelihood
from vqgen.evaluation.card import Number
from vqgen.evaluation.quality import numbered
from vqgen.evaluation.sets import Images, digest
from vqgen.losses.perceptual import PerceptualDistance
from vqgen.metrics.codebook import CodeUsage
from vqgen.metrics.estimate import mean
from vqgen.metrics.features import CHUNK
from vqgen.metrics.reconstruction import SSIM_WINDOW, psnr, ssim
from vqgen.metrics.units import uniform_bits
from vqgen.pipeline import Pipeline


def reconstruct(pipeline: Pipeline, images: Images) -> Images:
    """The images through the tokenizer, as uint8."""
    made = pictures.to_uint8(likelihood.decoded(pipeline, images))
    return Images(made, images.labels, f"reconstructions of {images.source}", digest(made))


def measure(
    pipeline: Pipeline, images: Images, made: Images, perceptual: str | None
) -> tuple[dict[str, Number], dict[str, str]]:
    """-> (numbers, what was left out and why). Means over images, of uint8 reconstructions."""
    left_out: dict[str, str] = {}
    distance = None
    if perceptual is not None:
        try:
            distance = PerceptualDistance(net=perceptual)
            distance.check_size((images.images.shape[-2], images.images.shape[-1]))
        except ValueError as error:
            reason = str(error).splitlines()[0].split(". Try")[0]
            left_out["LPIPS"] = f"{reason}; protocol.perceptual=alex is another network"
    if min(images.images.shape[-2:]) < SSIM_WINDOW:
        left_out["SSIM"] = f"images under {SSIM_WINDOW} pixels"
    values: dict[str, list[Tensor]] = {}
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        one, other = _float(made.images[rows]), _float(images.images[rows])
        values.setdefault("PSNR", []).append(psnr(one, other))
        values.setdefault("mean squared error", []).append(
            (one - other).square().mean(dim=(1, 2, 3)) / 4  # on [0, 1]
        )
        if "SSIM" not in left_out:
            values.setdefault("SSIM", []).append(ssim(one, other))
        if distance is not None and "LPIPS" not in left_out:
            values.setdefault(f"LPIPS-{perceptual}", []).append(distance(one, other))
    units = {"PSNR": "dB", "mean squared error": "on [0, 1]"}
    n = len(images)
    found = {
        name: numbered(mean(torch.cat(parts)), n, units.get(name, ""))
        for name, parts in values.items()
    }
    return found | _codes(pipeline, images), left_out


def _codes(pipeline: Pipeline, images: Images) -> dict[str, Number]:
    """Usage, perplexity and rate of discrete latents; nothing for continuous ones."""
    spec = pipeline.tokenizer.spec
    if not isinstance(spec, TokenSpec):
        return {}
    usage = CodeUsage(spec.vocab_size)
    for part in images.images.split(CHUNK):
        usage.update(pipeline.tokenizer.encode(_float(part).to(pipeline.device)).cpu())
    n, perplexity = len(images), usage.perplexity()
    entropy = spec.length * float(torch.tensor(perplexity).log2())
    return {
        "code usage": Number(usage.usage(), n=n, unit="share of the codebook"),
        "code perplexity": Number(perplexity, n=n),
        "rate": Number(uniform_bits(spec), unit="bits per image, codes sent as they are"),
        "rate, entropy": Number(entropy, n=n, unit="bits per image, codes by their frequency"),
    }


def _float(images: Tensor) -> Tensor:
    return 2 * (images.float() / 255) - 1
