"""The Gaussian bottleneck: closed forms, its law, gradients, draws."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from tests import tiny
from vqgen.contracts import Bottleneck, FeatureSpec
from vqgen.tokenizers.gaussian import LOG_VARIANCE, GaussianBottleneck, kl_nats, posterior


def hidden(seed: int = 0, batch: int = 3) -> Tensor:
    """Means and log-variances of 4 channels on a 2 x 3 map."""
    return torch.randn(batch, 8, 2, 3, generator=torch.Generator().manual_seed(seed))


def scaled(**more) -> GaussianBottleneck:
    """A bottleneck with statistics that are not the trivial ones."""
    made = GaussianBottleneck(channels=4, **more)
    made.scaling.refine_(torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([0.1, 2.0, 1.0, 5.0]))
    return made


def test_kl_is_the_closed_form_of_torch() -> None:
    mean, log_variance = posterior(3 * hidden().double())
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_nats(mean, log_variance), expected)
    assert float(kl_nats(torch.zeros(1), torch.zeros(1))) == 0


def test_law_embedding_the_latents_gives_what_training_decodes() -> None:
    """Up to the draw: so with a posterior too narrow to matter, and in the mean of many draws."""
    model, given = scaled(), hidden()
    narrow = torch.cat((given[:, :4], torch.full_like(given[:, 4:], -100.0)), dim=1)
    embedded = model.embed(model.encode(narrow), (2, 3))
    torch.testing.assert_close(model(narrow)[0], embedded, atol=2e-6, rtol=1e-5)
    torch.manual_seed(0)
    many = model(given[:1].expand(20000, -1, -1, -1))[0]
    deviation = (given[0, 4:] / 2).exp()
    embedded = model.embed(model.encode(given[:1]), (2, 3))[0]
    error = (many.mean(0) - embedded) / (deviation / 20000**0.5)
    assert float(error.abs().max()) < 4.5
    torch.testing.assert_close(many.std(0), deviation, atol=0, rtol=0.03)


def test_the_kl_term_reaches_the_encoder_alone_and_with_its_weight() -> None:
    gradients = []
    for weight in (0.5, 2.0):
        model = tiny.kl(kl_weight=weight)
        losses = model(tiny.images(2).float() / 127.5 - 1).losses
        assert set(losses) == {"kl"}
        losses["kl"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    names = {name for name, _ in tiny.kl().named_parameters()}
    reached = {name for name in names if name.startswith(("encoder.", "quant_conv."))}
    assert set(gradients[0]) == reached
    for name in reached:
        torch.testing.assert_close(4 * gradients[0][name], gradients[1][name])


def test_extreme_posteriors_stay_finite() -> None:
    given = torch.full((1, 8, 1, 1), 1e4)
    given[:, 4:6] = -1e4
    given.requires_grad_(True)
    drawn, losses = GaussianBottleneck(channels=4)(given)
    (drawn.sum() + losses["kl"]).backward()
    assert given.grad is not None and torch.isfinite(given.grad).all()
    assert posterior(given)[1].detach().unique().tolist() == list(LOG_VARIANCE)


def test_mean_latents_are_the_same_at_every_call_and_samples_are_not() -> None:
    given = hidden()
    mean, sample = scaled(), scaled(latents="sample")
    assert torch.equal(mean.encode(given), mean.encode(given))
    assert torch.equal(mean.moments(given)[0], mean.encode(given))
    assert mean.moments(given)[1] is None
    torch.manual_seed(0)
    drawn = torch.stack([sample.encode(given) for _ in range(4000)])
    expected, deviation = sample.moments(given)
    assert deviation is not None
    error = (drawn.mean(0) - expected) / (deviation / 4000**0.5)
    assert float(error.abs().max()) < 4.5
    torch.testing.assert_close(drawn.std(0), deviation, atol=0, rtol=0.06)
    torch.manual_seed(1)
    first = sample.encode(given)
    torch.manual_seed(1)
    assert torch.equal(sample.encode(given), first)


def test_gauges_say_the_kl_of_the_step() -> None:
    model = scaled(kl_weight=0.5)
    losses = model(hidden())[1]
    gauges = model.after_step()
    assert gauges["latents/kl_nats_per_number"] == pytest.approx(2 * float(losses["kl"]))
    assert 0 < gauges["latents/posterior_deviation"] < 10


def test_spec_is_never_square_only() -> None:
    model: Bottleneck = GaussianBottleneck(channels=5)
    assert model.spec((2, 3)) == FeatureSpec(5, 2, 3)
    assert tiny.kl().spec == FeatureSpec(4, 4, 6)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"channels": 0}, "channels=4"),
        ({"kl_weight": -1.0}, "kl_weight=1e-3"),
        ({"latents": "mode"}, "latents=mean"),
    ],
)
def test_bad_settings_are_refused(options: dict, cure: str) -> None:
    with pytest.raises(ValueError, match=f"wanted.*got.*{cure}"):
        GaussianBottleneck(**options)


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted latents of shape \[batch, 4, 2, 3\]"):
        scaled().embed(torch.zeros(1, 4, 3, 2), (2, 3))
