"""Code lengths in one unit, bits per dimension: the prior's, the decoder's, and their sum.

log p(tokens) compares priors over the same tokenizer only. Where tokenizers differ, the full bound
does: -log2 p(image) <= bits of the tokens + bits of the image given the decoded tokens, with one
decoder likelihood for all (metrics/decoder.py)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import Condition, FeatureSpec, TokenSpec
from vqgen.evaluation.card import Number
from vqgen.evaluation.quality import numbered
from vqgen.evaluation.sets import Images
from vqgen.metrics.decoder import DiscreteLaplace
from vqgen.metrics.estimate import mean
from vqgen.metrics.features import CHUNK
from vqgen.metrics.units import bits_per_dimension, bits_per_token, uniform_bits
from vqgen.pipeline import Pipeline

FITTED_ON = 256  # training images that the decoder's width is fitted on


def latent_bits(pipeline: Pipeline, images: Images) -> tuple[str, Tensor | None]:
    """-> (what the number is, code length of each image's latents in bits, Double [n]).

    Without a prior the uniform one stands in; continuous latents have none then: None."""
    if not pipeline.has_prior:
        spec = pipeline.tokenizer.spec
        if not isinstance(spec, TokenSpec):
            return "none", None
        return "uniform prior", torch.full((len(images),), uniform_bits(spec)).double()
    bits = []
    for part, labels in _chunks(images, pipeline.device):
        condition = _condition(len(part), labels, pipeline)
        bits.append(pipeline.prior.bits(pipeline.tokenizer.encode(part), condition).double().cpu())
    return pipeline.prior.likelihood, torch.cat(bits)


def _condition(batch: int, labels: Tensor | None, pipeline: Pipeline) -> Condition:
    if pipeline.prior.num_classes == 0:
        return Condition(batch)
    if labels is not None:
        return Condition.of_labels(labels)
    nothing = torch.zeros(batch, dtype=torch.long, device=pipeline.device)
    return Condition.of_labels(nothing).null()


def decoder_bits(pipeline: Pipeline, train: Images, images: Images) -> tuple[Tensor, float]:
    """(Double [n]: code length of each image given its decoded latents, the width in gray levels).

    The width is fitted on `train`, never on the images that are counted."""
    decoder = DiscreteLaplace.fit(decoded(pipeline, train), train.images)
    return decoder.bits(decoded(pipeline, images), images.images), decoder.width


def decoded(pipeline: Pipeline, images: Images) -> Tensor:
    """Reconstructions, float [n, 3, H, W], on the CPU."""
    tokenizer = pipeline.tokenizer
    done = [
        tokenizer.decode(tokenizer.encode(part)) for part, _ in _chunks(images, pipeline.device)
    ]
    return torch.cat([part.float().cpu() for part in done])


def numbers(
    bits: Tensor, kind: str, from_decoder: Tensor | None, pipeline: Pipeline
) -> dict[str, Number]:
    """Code lengths [n] per image -> numbers of the card; `kind` as `latent_bits` says."""
    size, spec, n = pipeline.tokenizer.image_size, pipeline.tokenizer.spec, len(bits)
    per_dimension = bits_per_dimension(bits, size)
    found: dict[str, Any] = {f"bits per dimension ({kind})": per_dimension}
    if isinstance(spec, TokenSpec):
        found[f"bits per token ({kind})"] = bits_per_token(bits, spec.length)
    elif isinstance(spec, FeatureSpec):  # of a density: it may be negative
        size_of_latents = spec.channels * spec.height * spec.width
        found[f"bits per latent dimension ({kind})"] = bits / size_of_latents
    if from_decoder is not None:
        term = bits_per_dimension(from_decoder, size)
        found["decoder term, bits per dimension"] = term
        found[f"full bound, bits per dimension ({kind} + decoder)"] = per_dimension + term
    return {name: numbered(mean(values), n, "bits") for name, values in found.items()}


def _chunks(images: Images, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Float images in [-1, 1] and labels, in passes of a fixed size."""
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        labels = None if images.labels is None else images.labels[rows].to(device)
        yield 2 * (images.images[rows].to(device).float() / 255) - 1, labels
