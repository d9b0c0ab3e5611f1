"""The flow and the diffusion prior with the network that Gaussian data calls for: what training is
to find, so bits, samples and losses are known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.sampling.gaussians import PATHS, Gaussian
from vqgen.contracts import Condition, FeatureSpec, Known
from vqgen.priors.diffusion import Diffusion
from vqgen.priors.flow import Flow
from vqgen.sampling.guidance import constant
from vqgen.sampling.knobs import ContinuousKnobs
from vqgen.sampling.paths import WEIGHTS, GaussianPath, Kind, fit

DATA = Gaussian([0.0, 0.0], [[0.9, 0.5], [0.5, 0.6]])  # centered, as latents are
THIN = Gaussian([0.0, 0.0], [[0.51, 0.49], [0.49, 0.51]])  # deviations 1 and 0.14
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
FAMILIES = [
    pytest.param(family, path, id=f"{family.__name__.lower()}-{name}")
    for family in (Flow, Diffusion)
    for name, path in PATHS.items()
    if family is Flow or name != "ot"
]
families = pytest.mark.parametrize(("family", "path"), FAMILIES)


class Exact(nn.Module):
    """The best prediction of `kind` on `path`, in the units that a network sees and gives."""

    width = 4

    def __init__(self, data: Gaussian, path: GaussianPath, kind: Kind) -> None:
        super().__init__()
        self.data, self.path, self.kind = data, path, kind
        self.like = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # latents are like it

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        x = fit(torch.hypot(self.path.mean(t), self.path.deviation(t)), x) * x
        best = self.path.target(self.kind, *self.data.posterior(self.path, x, t), t)
        return best / fit(self.path.size(self.kind, t), x)


def exact(
    family: Any, path: GaussianPath, kind: Kind, data: Gaussian = DATA, **changes: Any
) -> Any:
    """A prior that has learned `data`."""
    return family(
        FeatureSpec(2, 1, 1),
        network=lambda channels, size: Exact(data, path, kind),
        path=path,
        predict=kind,
        **changes,
    ).eval()


@paths
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_bits_of_a_flow_are_the_gaussians(path: GaussianPath, kind: Kind) -> None:
    """With the steps it has by default, whatever the network predicts."""
    x = DATA.draw(256, 3)
    bits = exact(Flow, path, kind, likelihood_probes=0).bits(x, Condition(256))
    error = (bits - DATA.nats(x) / math.log(2)) / 2
    assert abs(float(error.mean())) < 0.01
    assert float(error.abs().max()) < 0.03


@paths
def test_the_bits_of_a_flow_are_right_where_the_data_is_thin(path: GaussianPath) -> None:
    """On VE x itself, not x over the path's scale, would be short by 0.1 bits (docs/paths.md)."""
    x = THIN.draw(256, 3)
    bits = exact(Flow, path, "velocity", THIN, likelihood_probes=0).bits(x, Condition(256))
    assert abs(float((bits - THIN.nats(x) / math.log(2)).mean()) / 2) < 0.01


@paths
def test_adaptive_steps_give_the_same_bits(path: GaussianPath) -> None:
    x = DATA.draw(64, 3)
    model = exact(Flow, path, "residual", likelihood_steps=0, likelihood_probes=0)
    error = (model.bits(x, Condition(64)) - DATA.nats(x) / math.log(2)) / 2
    assert float(error.abs().max()) < 0.01


@pytest.mark.parametrize("path", [PATHS["vp"], PATHS["ve"]], ids=["vp", "ve"])
def test_the_bound_of_a_diffusion_is_the_entropy(path: GaussianPath) -> None:
    """With one noise for all images; two numbers do not average it as the many of an image do."""
    x = DATA.draw(500, 3)
    model = exact(Diffusion, path, "residual", likelihood_evaluations=1024)
    error = model.bits(x, Condition(500)) - DATA.nats(x) / math.log(2)
    assert abs(float(error.mean())) / 2 < 0.15


@pytest.mark.parametrize("path", [PATHS["vp"], PATHS["ve"]], ids=["vp", "ve"])
def test_on_standard_normal_data_the_noise_of_the_bound_does_not_matter(path: GaussianPath) -> None:
    data = Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    x = data.draw(50, 3)
    bits = exact(Diffusion, path, "residual", data).bits(x, Condition(50))
    torch.testing.assert_close(bits, data.nats(x) / math.log(2), rtol=0, atol=0.02)


@families
def test_samples_are_the_data_at_the_steps_of_the_default(family: Any, path: GaussianPath) -> None:
    model = exact(family, path, "velocity" if family is Flow else "residual")
    seeds = range(4000)
    x = model.sample(Condition(4000), ContinuousKnobs(), constant(1.0), seeds).flatten(1)
    torch.testing.assert_close(x.mean(dim=0), DATA.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(x.T.cov(), DATA.covariance, rtol=0, atol=0.08)


@paths
def test_resampling_brings_the_rest_near_to_the_known(path: GaussianPath) -> None:
    """The first number is given; of the second the mean is then 0.83 and the variance 0.32. By
    replacement alone the mean is half of it."""
    model, count = exact(Flow, path, "residual"), 600
    given = torch.full((count, 2, 1, 1), 1.5, dtype=torch.float64)
    keep = torch.zeros_like(given, dtype=torch.bool)
    keep[:, 0] = True
    means = []
    for resample in (1, 8):
        knobs = ContinuousKnobs(steps=25, resample=resample)
        known = Known(given, keep)
        x = model.sample(Condition(count), knobs, constant(1.0), range(count), known)
        means.append(float(x[:, 1].mean()))
    assert means[0] < 0.6 < means[1] < 0.9
    assert float(x[:, 1].var()) == pytest.approx(0.32, abs=0.1)


def test_the_noise_of_a_start_is_as_wide_as_typed() -> None:
    """temperature: x_0 = temperature b_0 e, on a path whose flow from there is linear."""
    model = exact(Flow, PATHS["vp"], "residual")
    spread = [
        model.sample(Condition(500), ContinuousKnobs(temperature=t), constant(1.0), range(500))
        for t in (1.0, 0.5)
    ]
    torch.testing.assert_close(spread[1], 0.5 * spread[0], rtol=1e-6, atol=1e-6)
