"""A VQ tokenizer seen as continuous."""

import pytest
import torch

from tests import tiny
from vqgen.contracts import FeatureSpec
from vqgen.tokenizers.features import AsFeatures


def images(count: int = 4) -> torch.Tensor:
    return tiny.images(count).float() / 127.5 - 1


@pytest.mark.parametrize("make", [tiny.tokenizer, tiny.multiscale], ids=["one", "many"])
def test_law_rounding_the_features_gives_the_tokens_of_the_tokenizer(make) -> None:
    """Of one scale and of many."""
    inner = make()
    inner(images())  # a data-dependent start
    model = AsFeatures(tokenizer=inner).eval()
    channels, grid = model.spec.channels, (model.spec.height, model.spec.width)
    assert model.spec == FeatureSpec(inner.bottleneck.in_channels, *inner.latent_size)
    model.scaling.refine_(torch.linspace(-1, 1, channels), torch.linspace(0.1, 3, channels))
    with torch.no_grad():
        latents, tokens = model.encode(images()), inner.encode(images())
        assert latents.shape == (4, channels, *grid)
        assert torch.equal(model.tokens(latents), tokens) and len(tokens.unique()) > 1
        assert torch.equal(model.decode(latents), inner.decode(tokens))
        near = latents + 1e-5 * torch.randn_like(latents)
        assert torch.equal(model.decode(near), inner.decode(tokens)), "decoded through the codebook"


def test_continuous_latents_need_no_wrapping() -> None:
    with pytest.raises(ValueError, match=r"as_features.*got.*leave as_features out"):
        AsFeatures(tokenizer=tiny.kl())


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted latents of shape \[batch, 8, 2, 3\]"):
        AsFeatures(tokenizer=tiny.tokenizer()).decode(torch.zeros(1, 8, 3, 2))
