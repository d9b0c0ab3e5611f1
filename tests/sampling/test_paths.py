"""Paths: derivatives, the lecture's fields and numbers, conversions, ends."""

import pytest
import torch

from tests.sampling.gaussians import PATHS, standard, time
from vqgen.sampling.paths import EDGE, VE, VP, WEIGHTS, GaussianPath, Kind
from vqgen.sampling.times import SPACINGS, TRAINING_TIMES, grid

TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
kinds = pytest.mark.parametrize("kind", WEIGHTS)


@paths
def test_rates_are_the_derivatives(path: GaussianPath) -> None:
    t = TIMES.clone().requires_grad_()
    for value, rate in ((path.mean, path.mean_rate), (path.deviation, path.deviation_rate)):
        wanted = torch.autograd.functional.jacobian(value, t).diagonal()
        torch.testing.assert_close(rate(TIMES), wanted)


@pytest.mark.parametrize(
    ("path", "x", "f"),
    [
        (VE(sigma_min=0.01, sigma_max=50.0), 1.1971681, -4.2344768),
        (VP(beta_min=0.1, beta_max=20.0), 0.4093486, 0.6341448),
    ],
    ids=["ve", "vp"],
)
def test_the_numbers_of_the_lecture(path: GaussianPath, x: float, f: float) -> None:
    data, noise, t = torch.full((1, 1), 0.7).double(), torch.full((1, 1), 0.3).double(), time(0.4)
    point = path.point(data, noise, t)
    assert point.item() == pytest.approx(x, abs=1e-7)
    assert path.field(point, data, t).item() == pytest.approx(f, abs=1e-6)


def test_the_formulas_of_the_lecture() -> None:
    """f as the slide writes it, from alpha and sigma and their derivatives at s = 1 - t."""
    s, x, data = 1 - TIMES, torch.tensor(1.3).double(), torch.tensor(-0.2).double()

    def alpha(s: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * (0.1 * s + 0.5 * 19.9 * s**2))

    def sigma(s: torch.Tensor) -> torch.Tensor:
        return 0.01 * 5000**s

    rate = torch.autograd.functional.jacobian(alpha, s).diagonal()
    vp = rate / (1 - alpha(s) ** 2) * (alpha(s) * x - data)
    slope = torch.autograd.functional.jacobian(sigma, s).diagonal()
    ve = -slope / sigma(s) * (x - data)
    shape = (len(s), 1)
    for path, wanted in ((VP(), vp), (VE(), ve)):
        got = path.field(x.expand(shape), data.expand(shape), TIMES)[:, 0]
        torch.testing.assert_close(got, wanted)


@paths
def test_the_field_moves_points_along_the_path(path: GaussianPath) -> None:
    """Finite differences of x_t = a x_1 + b e at fixed x_1 and e."""
    data, noise, h = standard(25, 1), standard(25, 2), 1e-5
    there = path.point(data, noise, TIMES + h), path.point(data, noise, TIMES - h)
    slope = (there[0] - there[1]) / (2 * h)
    got = path.field(path.point(data, noise, TIMES), data, TIMES)
    torch.testing.assert_close(got, slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, path.target("velocity", data, noise, TIMES))


@paths
def test_the_field_is_minus_the_drift_of_the_probability_flow(path: GaussianPath) -> None:
    """The SDE runs in s = 1 - t: dx/ds = drift - g^2 score / 2."""
    data = standard(25, 1)
    x = path.point(data, standard(25, 2), TIMES)
    g = path.diffusion(TIMES).reshape(-1, 1, 1, 1)
    flow = path.drift(x, TIMES) - g**2 / 2 * path.score(x, data, TIMES)
    torch.testing.assert_close(path.field(x, data, TIMES), -flow)


def test_the_sdes_are_the_published_ones() -> None:
    vp, ve, s = VP(), VE(), 1 - TIMES
    torch.testing.assert_close(vp.diffusion(TIMES) ** 2, 0.1 + s * 19.9)
    x = standard(25)
    drift = -0.5 * (0.1 + s * 19.9).reshape(-1, 1, 1, 1) * x
    torch.testing.assert_close(vp.drift(x, TIMES), drift)
    squared = torch.autograd.functional.jacobian(lambda s: (0.01 * 5000**s) ** 2, s).diagonal()
    torch.testing.assert_close(ve.diffusion(TIMES) ** 2, squared)
    assert not ve.drift(x, TIMES).any()


@paths
@kinds
def test_a_prediction_gives_back_data_and_noise(path: GaussianPath, kind: Kind) -> None:
    data, noise = standard(25, 1), standard(25, 2)
    x = path.point(data, noise, TIMES)
    value = path.target(kind, data, noise, TIMES)
    got = path.split(kind, value, x, TIMES)
    torch.testing.assert_close(got, (data, noise), rtol=1e-6, atol=1e-6)
    for other in WEIGHTS:
        wanted = path.target(other, data, noise, TIMES)
        torch.testing.assert_close(
            path.convert(value, x, TIMES, kind, other), wanted, rtol=1e-6, atol=1e-6
        )
    torch.testing.assert_close(path.target("score", data, noise, TIMES), path.score(x, data, TIMES))


@paths
@kinds
def test_everything_is_finite_at_the_ends_of_the_span(path: GaussianPath, kind: Kind) -> None:
    ends = torch.tensor(path.span(kind), dtype=torch.float64)
    x, value = standard(2, 1), standard(2, 2)
    assert 0 <= ends[0] < 0.02 and 1 - EDGE <= ends[1] <= 1
    assert bool(torch.isfinite(path.size(kind, ends)).all())
    for target in (kind, "velocity"):
        assert bool(torch.isfinite(path.convert(value, x, ends, kind, target)).all())


@paths
def test_residual_is_what_x_does_not_tell(path: GaussianPath) -> None:
    """Unit variance, and uncorrelated with x_t, for data of unit variance."""
    data, noise = standard(40000, 1), standard(40000, 2)
    for t in (0.1, 0.5, 0.9):
        x = path.point(data, noise, time(t)).flatten()
        rest = path.target("residual", data, noise, time(t)).flatten()
        assert abs(float(torch.corrcoef(torch.stack((x, rest)))[0, 1])) < 0.02
        assert float(rest.std()) == pytest.approx(1, abs=0.02)


@paths
def test_time_of_inverts_log_snr(path: GaussianPath) -> None:
    torch.testing.assert_close(path.time_of(path.log_snr(TIMES)), TIMES)


@paths
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grids_rise_from_first_to_last(path: GaussianPath, spacing: str) -> None:
    for steps in (1, 2, 30):
        times = grid(path, spacing, steps, *path.span("velocity"))
        assert len(times) == steps + 1 and bool((times.diff() > 0).all())
        torch.testing.assert_close(tuple(times[[0, -1]].tolist()), path.span("velocity"))


def test_training_times_are_inside() -> None:
    torch.manual_seed(0)
    means = {name: draw(20000) for name, draw in TRAINING_TIMES.items()}
    assert all(bool(((t >= 0) & (t <= 1)).all()) for t in means.values())
    assert float(means["uniform"].var()) == pytest.approx(1 / 12, abs=0.002)
    assert float(means["logit_normal"].logit().var()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: VE(sigma_min=2, sigma_max=1),
            r"sigma_min < sigma_max <= 1e\+06, got .*2.*; type prior",
        ),
        (lambda: VE(sigma_min=1, sigma_max=1), r"sigma_min=1, sigma_max=1; type prior.path"),
        (lambda: VE(sigma_max=float("inf")), r"sigma_max=inf; type prior.path.sigma_min=0.01"),
        (lambda: VP(beta_max=float("inf")), r"beta_max=inf; type prior.path.beta_min=0.1"),
        (
            lambda: VP(beta_min=0),
            r"0 < beta_min < beta_max, .* 200, got beta_min=0.*; type prior.path",
        ),
        (lambda: VP(beta_max=1e9), r"at most 200, got .*beta_max=1000000000.0; type prior"),
        (lambda: VP(beta_min=150, beta_max=160), r"at most 200, got beta_min=150"),
        (lambda: VE(sigma_max=1e30), r"<= 1e\+06, got .*sigma_max=1e\+30; type prior.path"),
        (lambda: VE(sigma_min=1e-30), r"1e-06 <= sigma_min .*, got sigma_min=1e-30"),
    ],
)
def test_impossible_paths_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    "path",
    [VP(beta_max=199), VP(beta_min=95, beta_max=105), VE(sigma_min=1e-6, sigma_max=1e6)],
    ids=["steep", "always noisy", "wide"],
)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_is_not_refused_is_finite_in_float32(path: GaussianPath, kind: Kind) -> None:
    torch.manual_seed(0)
    first, last = path.span(kind)
    t = first + (last - first) * torch.linspace(0, 1, 65).double()
    x = torch.randn(65, 4)
    for target in WEIGHTS:
        assert path.convert(torch.randn(65, 4), x, t, kind, target).isfinite().all(), target
