"""Code lengths in one unit, bits per dimension: the prior's, the decoder's, and their sum.

The prior's bits compare priors over the same tokenizer only. Where tokenizers differ, the full
bound does: -log2 p(image) <= E_q[bits of the latents] - H(q(latents | image)) + E_q[bits of the
image given the decoded latents], with one decoder likelihood for all (metrics/decoder.py). Of
tokens q is one point and its entropy 0."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqgen.contracts import Condition, FeatureSpec, Tokenizer, TokenSpec
from vqgen.evaluation.card import Number
from vqgen.evaluation.quality import numbered
from vqgen.evaluation.sets import Images
from vqgen.metrics.decoder import DiscreteLaplace
from vqgen.metrics.estimate import mean
from vqgen.metrics.features import CHUNK
from vqgen.metrics.units import bits_per_dimension, bits_per_token, uniform_bits
from vqgen.pipeline import Pipeline
from vqgen.sampling.draws import Draws

FITTED_ON = 256  # training images that the decoder's width is fitted on

Encode = Callable[[Tokenizer, Tensor, int], Tensor]  # images, number of the first one -> latents


@dataclass(frozen=True)
class Bound:
    """The two terms of the full bound, Double [n] in bits, and the decoder's width."""

    rate: Tensor  # bits of the latents less the entropy of q
    decoder: Tensor
    width: float  # in gray levels


def encoded(tokenizer: Tokenizer, images: Tensor, first: int) -> Tensor:
    """What `encode` gives; if that is random, from one stream of draws per image: the same at every
    call. images float in [-1, 1], the first of them number `first` of its set."""
    return _drawn(*tokenizer.moments(images), first)


def drawn(tokenizer: Tokenizer, images: Tensor, first: int) -> Tensor:
    """A draw from q(latents | image), also where `encode` gives the mean; as `encoded`."""
    return _drawn(*tokenizer.posterior(images), first)


def _drawn(center: Tensor, deviation: Tensor | None, first: int) -> Tensor:
    if deviation is None:
        return center
    noise = Draws(range(first, first + len(center))).normal(*center.shape[1:])
    return center + deviation * noise.to(center)


def latent_bits(
    pipeline: Pipeline, images: Images, encode: Encode = encoded
) -> tuple[str, Tensor | None]:
    """-> (what the number is, code length of each image's latents in bits, Double [n]).

    Without a prior the uniform one stands in; continuous latents have none then: None."""
    if not pipeline.has_prior:
        spec = pipeline.tokenizer.spec
        if not isinstance(spec, TokenSpec):
            return "none", None
        return "uniform prior", torch.full((len(images),), uniform_bits(spec)).double()
    bits = []
    for part, labels, first in _chunks(images, pipeline.device):
        condition = _condition(len(part), labels, pipeline)
        latents = encode(pipeline.tokenizer, part, first)
        bits.append(pipeline.prior.bits(latents, condition).double().cpu())
    return pipeline.prior.likelihood, torch.cat(bits)


def _condition(batch: int, labels: Tensor | None, pipeline: Pipeline) -> Condition:
    if pipeline.prior.num_classes == 0:
        return Condition(batch)
    if labels is not None:
        return Condition.of_labels(labels)
    nothing = torch.zeros(batch, dtype=torch.long, device=pipeline.device)
    return Condition.of_labels(nothing).null()


def full_bound(pipeline: Pipeline, bits: Tensor, train: Images, images: Images) -> Bound | None:
    """The bound at one draw of the latents per image; bits as `latent_bits` counts them. None if
    the latents are continuous and q is one point: its entropy has no bottom.

    The decoder's width is fitted on `train`, never on the images that are counted."""
    rate = bits
    if not isinstance(pipeline.tokenizer.spec, TokenSpec):
        entropy = _entropy(pipeline, images)
        _, at_draws = latent_bits(pipeline, images, drawn)
        if entropy is None or at_draws is None:
            return None
        rate = at_draws - entropy
    decoder = DiscreteLaplace.fit(decoded(pipeline, train, drawn), train.images)
    return Bound(rate, decoder.bits(decoded(pipeline, images, drawn), images.images), decoder.width)


def _entropy(pipeline: Pipeline, images: Images) -> Tensor | None:
    """H(q(latents | image)) of each image in bits, Double [n]; a density: it may be negative."""
    found = []
    for part, _, _ in _chunks(images, pipeline.device):
        _, deviation = pipeline.tokenizer.posterior(part)
        if deviation is None:
            return None
        each = deviation.double().log2() + 0.5 * math.log2(2 * math.pi * math.e)
        found.append(each.flatten(1).sum(dim=1).cpu())
    return torch.cat(found)


def decoded(pipeline: Pipeline, images: Images, encode: Encode = encoded) -> Tensor:
    """Reconstructions, float [n, 3, H, W], on the CPU."""
    tokenizer = pipeline.tokenizer
    done = [
        tokenizer.decode(encode(tokenizer, part, first)).float().cpu()
        for part, _, first in _chunks(images, pipeline.device)
    ]
    return torch.cat(done)


def numbers(bits: Tensor, kind: str, bound: Bound | None, pipeline: Pipeline) -> dict[str, Number]:
    """Code lengths [n] per image -> numbers of the card; `kind` as `latent_bits` says."""
    size, spec, n = pipeline.tokenizer.image_size, pipeline.tokenizer.spec, len(bits)
    found = {f"bits per dimension ({kind})": bits_per_dimension(bits, size)}
    if isinstance(spec, TokenSpec):
        found[f"bits per token ({kind})"] = bits_per_token(bits, spec.length)
    elif isinstance(spec, FeatureSpec):  # of a density: it may be negative
        size_of_latents = spec.channels * spec.height * spec.width
        found[f"bits per latent dimension ({kind})"] = bits / size_of_latents
    if bound is not None:
        rate, term = (bits_per_dimension(part, size) for part in (bound.rate, bound.decoder))
        if not isinstance(spec, TokenSpec):  # of tokens it is the first number
            found["rate term, bits per dimension"] = rate
        found["decoder term, bits per dimension"] = term
        found[f"full bound, bits per dimension ({kind} + decoder)"] = rate + term
    return {name: numbered(mean(values), n, "bits") for name, values in found.items()}


def _chunks(images: Images, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """Float images in [-1, 1], labels and the first one's number, in passes of a fixed size."""
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        labels = None if images.labels is None else images.labels[rows].to(device)
        yield 2 * (images.images[rows].to(device).float() / 255) - 1, labels, start
