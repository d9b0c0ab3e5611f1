"""Solvers and samplers against Gaussian data, whose marginal field and flow are known."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.sampling.gaussians import DATA, PATHS, Gaussian, standard, time
from vqgen.priors.continuous import integrate
from vqgen.sampling import solvers, stochastic
from vqgen.sampling.density import bound_parts, flow_nats, normal_nats
from vqgen.sampling.field import Field
from vqgen.sampling.knobs import SOLVERS, ContinuousKnobs
from vqgen.sampling.paths import VP, GaussianPath
from vqgen.sampling.times import grid

paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
PAIRS = [
    pytest.param(path, name, id=f"{path.name}-{name}")
    for path in PATHS.values()
    for name, solver in SOLVERS.items()
    if solver.path in (None, path.name)
]


CENTERED = Gaussian([0.0, 0.0], [[0.9, 0.5], [0.5, 0.6]])  # as latents are


def slope(errors: list[float]) -> float:
    """The order of convergence that errors at N, 2N, ... steps show at the end."""
    return math.log2(errors[-2] / errors[-1])


@paths
@pytest.mark.parametrize(
    ("step", "order"), [(solvers.euler, 1), (solvers.heun, 2), (solvers.rk4, 4)]
)
def test_orders_of_the_ode_solvers(path: GaussianPath, step, order: int) -> None:
    x, field = standard(50), DATA.field(path)
    wanted = DATA.flow(path, x, time(0.3), time(0.9))
    errors = []
    for count in (32, 64, 128):
        y, times = x, torch.linspace(0.3, 0.9, count + 1, dtype=torch.float64)
        for t, u in pairwise(times):
            y = field.follow(step, y, t, u)
        errors.append(float((y - wanted).abs().max()))
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 16), ("heun", 8), ("rk4", 4)])
@paths
def test_few_steps_leave_no_noise(path: GaussianPath, solver: str, steps: int) -> None:
    """About 16 network calls. On VE this needs the path's scale taken out: in x itself half of the
    noise stays."""
    knobs, field = ContinuousKnobs(solver=solver, steps=steps), CENTERED.field(path)
    first, last = path.span(field.kind)
    times, x = grid(path, "uniform", steps, first, last), standard(2000)
    got = integrate(lambda step: field, times, knobs, lambda: x)
    start = path.deviation(times[0]) * x
    wanted = CENTERED.flow(path, start, times[0], times[-1])
    assert float((got - wanted).square().mean().sqrt()) < 0.1


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm", 2)])
def test_orders_of_the_vp_solvers(name: str, order: int) -> None:
    path, x = VP(), standard(50)
    wanted, errors = DATA.flow(path, x, time(0.1), time(0.9)), []
    for count in (64, 128, 256):
        step = ContinuousKnobs(solver=name).stepper(lambda: standard(50))
        y, times = x, torch.linspace(0.1, 0.9, count + 1, dtype=torch.float64)
        for t, u in pairwise(times):
            y = step(DATA.field(path), y, t, u)
        errors.append(float((y - wanted).abs().max()))
    assert slope(errors) == pytest.approx(order, abs=0.2)


@paths
def test_dormand_prince_keeps_its_tolerance_and_runs_both_ways(path: GaussianPath) -> None:
    field, x, (t, u) = DATA.field(path), standard(20), (time(0.05), time(0.95))
    there, errors = DATA.flow(path, x, t, u), []
    for tolerance in (1e-3, 1e-6, 1e-9):
        y = solvers.dopri5(field.velocity, x, t, u, tolerance=tolerance)
        errors.append(float((y - there).abs().max()))
    assert errors[0] < 0.05 and errors[1] < 5e-5 and errors[2] < 5e-8
    back = solvers.dopri5(field.velocity, there, u, t, tolerance=1e-9)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_dormand_prince_stops_where_there_is_no_velocity(bad: float) -> None:
    """From the middle of the way on, for one of two images; a few calls, not 10^5."""
    calls = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        lost = (t > 0.5) & torch.tensor([False, True])
        return torch.ones_like(x).where(~lost[:, None], bad)

    with pytest.raises(ValueError, match=r"a finite velocity, got none near t=0.5; try a smaller"):
        solvers.dopri5(velocity, torch.zeros(2, 3), time(0.0), time(1.0))
    assert len(calls) < 1000


def test_dormand_prince_gives_each_image_its_own_steps() -> None:
    """A stiff image beside an easy one changes neither its steps nor its result."""
    rates = torch.tensor([1.0, 200.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    calls: list[int] = []

    def velocity(rate: Tensor, x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return -rate * x

    run = partial(solvers.dopri5, t=time(0.0), u=time(1.0), tolerance=1e-6)
    x = torch.ones(2, 1, 1, 1).double()
    together = run(partial(velocity, rates), x)
    alone = run(partial(velocity, rates[:1]), x[:1])
    assert torch.equal(together[:1], alone)
    assert calls.count(2) > 3 * calls.count(1)
    assert together[0].item() == pytest.approx(math.exp(-1), abs=1e-5)


@pytest.mark.parametrize(("path", "name"), PAIRS)
def test_samples_have_the_mean_and_covariance_of_the_data(path: GaussianPath, name: str) -> None:
    """Monte Carlo error of 8,000 samples is 0.011 times a deviation, of a variance 0.016; the
    solvers of order 1 add up to 0.03 at 800 steps, VE's start 0.02 to the mean."""
    count, seeds = 8000, iter(range(10**6))
    steps = {"dopri5": 4, "heun": 100, "rk4": 100, "dpm": 100, "langevin": 400}
    more: dict = {"snr": 0.3, "corrector_steps": 5} if name == "langevin" else {}
    knobs = ContinuousKnobs(solver=name, steps=steps.get(name, 800), **more)
    field = DATA.field(path)
    times = grid(path, "uniform", knobs.count, *path.span(field.kind))
    x = integrate(lambda step: field, times, knobs, lambda: standard(count, next(seeds))).flatten(1)
    torch.testing.assert_close(x.mean(dim=0), DATA.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), DATA.covariance, rtol=0, atol=0.06)


@pytest.mark.parametrize("stochasticity", [0.0, 0.5])
@pytest.mark.parametrize("step", [stochastic.euler_maruyama, stochastic.ancestral])
@paths
def test_less_noise_leaves_the_marginals(path: GaussianPath, step, stochasticity: float) -> None:
    t, u, seeds = time(0.3), time(0.9), iter(range(100, 10**6))
    start = path.point(DATA.draw(20000, 5), standard(20000, 6), t)
    wanted = path.point(DATA.draw(20000, 7), standard(20000, 8), u).flatten(1)
    y, times, field = start, torch.linspace(0.3, 0.9, 201, dtype=torch.float64), DATA.field(path)
    for a, b in pairwise(times):
        y = step(field, y, a, b, noise=lambda: standard(20000, next(seeds)),
                 stochasticity=stochasticity)  # fmt: skip
    y, scale = y.flatten(1), float(wanted.std())
    torch.testing.assert_close(y.mean(dim=0), wanted.mean(dim=0), rtol=0, atol=0.04 * scale)
    torch.testing.assert_close(y.T.cov(), wanted.T.cov(), rtol=0, atol=0.06 * scale**2)


def test_ancestral_without_noise_is_ddim() -> None:
    x, t, u, field = standard(9), time(0.4), time(0.6), DATA.field(VP())
    got = stochastic.ancestral(field, x, t, u, noise=lambda: standard(9), stochasticity=0.0)
    torch.testing.assert_close(got, solvers.ddim(field, x, t, u))


@paths
def test_going_back_is_the_forward_process(path: GaussianPath) -> None:
    t, u, field = time(0.5), time(0.8), DATA.field(path)
    x = path.point(DATA.draw(40000, 1), standard(40000, 2), u)
    back = stochastic.renoise(field, x, u, t, noise=lambda: standard(40000, 3)).flatten(1)
    wanted = path.point(DATA.draw(40000, 4), standard(40000, 5), t).flatten(1)
    scale = float(wanted.std())
    torch.testing.assert_close(back.T.cov(), wanted.T.cov(), rtol=0, atol=0.04 * scale**2)


@pytest.mark.parametrize(("path", "name"), PAIRS)
def test_a_point_mass_is_found(path: GaussianPath, name: str) -> None:
    """Before the last evaluation, which would return the point from anywhere."""
    place = torch.tensor([0.3, -1.2], dtype=torch.float64).reshape(2, 1, 1)
    point = place.expand(4, 2, 1, 1)
    first, last = path.span("data")

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return point

    knobs, seeds = ContinuousKnobs(solver=name, steps=100), iter(range(10**6))
    field, step = Field(path, "data", predict), knobs.stepper(lambda: standard(4, next(seeds)))
    times = grid(path, "log_snr", 100, first, last)
    x = path.deviation(times[0]) * standard(4, 99)
    for t, u in pairwise(times):
        x = step(field, x, t, u)
    assert float((x - point).abs().max()) < 0.05
    end = integrate(lambda i: field, times, knobs, lambda: standard(4, next(seeds)))
    torch.testing.assert_close(end, point)


@paths
def test_the_flow_likelihood_is_the_gaussians(path: GaussianPath) -> None:
    """Exact trace and probes, fixed and adaptive steps: 0.01 bits per dimension. The data is
    centered, as latents are: VE's start has no room for a mean."""
    data = CENTERED
    x, field = data.draw(64, 3), data.field(path)
    first, last = path.span(field.kind)
    signs = torch.tensor(
        [[1.0, 1.0], [1.0, -1.0]]
    ).double()  # in two dimensions their mean is exact
    probes = signs.reshape(2, 1, 2, 1, 1).expand(2, 64, 2, 1, 1)
    for step, count, some in (
        (solvers.heun, 400, None),
        (solvers.rk4, 40, probes),
        (partial(solvers.dopri5, tolerance=1e-5), 1, None),
    ):
        times = torch.linspace(last, first, count + 1, dtype=torch.float64)
        start, volume = flow_nats(field.velocity, x, times, step=step, probes=some)
        nats = normal_nats(start, float(path.deviation(times[-1]))) + volume
        error = (nats - data.nats(x)) / 2 / math.log(2)
        assert float(error.abs().max()) < 0.01


@paths
def test_the_bound_is_tight_for_the_exact_model(path: GaussianPath) -> None:
    """The bound's gap vanishes with the exact denoiser: equal to the entropy in the mean."""
    x = DATA.draw(4000, 3)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(256, *x.shape, generator=generator, dtype=torch.float64)
    parts = bound_parts(DATA.field(path), x, (1e-3, 1 - 1e-3), noise)
    excess = (sum(parts.values()) - DATA.nats(x)).mean() / 2 / math.log(2)
    assert abs(float(excess)) < 0.03


def test_a_wrong_model_has_a_longer_code() -> None:
    x, path, wrong = DATA.draw(2000, 3), VP(), Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    noise = torch.randn(32, *x.shape, generator=torch.Generator().manual_seed(0)).double()
    bounds = [
        sum(bound_parts(model.field(path), x, (1e-3, 1 - 1e-3), noise).values()).mean()
        for model in (DATA, wrong)
    ]
    gap = float(bounds[1] - bounds[0])
    assert gap == pytest.approx(float((wrong.nats(x) - DATA.nats(x)).mean()), abs=0.1)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"steps": 0}, "steps as a whole number of at least 1, got 0; type steps=10"),
        ({"solver": "eulr"}, "solver as one of heun, .*, got eulr; did you mean euler"),
        ({"spacing": "cosine"}, "spacing as one of uniform, .*, got cosine; type spacing=uniform"),
        (
            {"tolerance": 0.0, "solver": "dopri5"},
            "tolerance above 0, got 0.0; type tolerance=0.0001",
        ),
        ({"temperature": math.nan}, "temperature above 0, got nan; type temperature=1.0"),
        ({"stochasticity": 2.0, "solver": "ancestral"}, "from 0 to 1, got 2.0; type stoch"),
        ({"stochasticity": 1.0}, "is for .* with solver=heun; type solver=euler_maruyama or leave"),
        ({"snr": 0.2, "solver": "ancestral"}, "snr is for solver=predictor_corrector, langevin, g"),
        ({"corrector_steps": 2}, "corrector_steps is for .* or leave corrector_steps out"),
        (
            {"tolerance": 1e-3},
            "tolerance is for solver=dopri5, got tolerance=0.001 with solver=heun",
        ),
        ({"resample": 0}, "resample as a whole number of at least 1, got 0; type resample=10"),
        ({"solver": ["heun"]}, r"solver as one of heun, .*, got \['heun'\]; did you mean heun"),
        ({"solver": "ancestral", "stochasticity": True}, "from 0 to 1, got True; type stoch"),
        ({"steps": 10**9}, "steps as a whole number of at most 10000, got 1000000000"),
        ({"steps": True}, "steps as a whole number of at least 1, got True; type steps=10"),
        ({"snr": 50, "solver": "predictor_corrector"}, "snr below 1 .* got 50; type snr=0.16"),
        ({"snr": 1.5, "solver": "langevin"}, "snr below 1 .* got 1.5; type snr=0.5"),
        (
            {"tolerance": 1e-30, "solver": "dopri5"},
            "tolerance of at least 1e-06 .* got 1e-30; type tolerance=0.0001",
        ),
    ],
)
def test_impossible_knobs(knobs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ContinuousKnobs(**knobs)


@pytest.mark.parametrize(("solver", "path"), [("ddim", "ve"), ("dpm", "ot"), ("langevin", "vp")])
def test_solvers_of_one_path_refuse_the_others(solver: str, path: str) -> None:
    with pytest.raises(ValueError, match=rf"solver={solver} needs path=v., .*{path}; type solver="):
        ContinuousKnobs(solver=solver).check(PATHS[path], torch.linspace(0, 1, 3).double())


@pytest.mark.parametrize(
    ("steps", "snr", "spacing"),
    [(10, None, "uniform"), (20, None, "quadratic"), (10, 0.3, "uniform"), (100, 0.2, "uniform")],
)
def test_annealed_langevin_takes_the_noise_with_it(
    steps: int, snr: float | None, spacing: str
) -> None:
    """Before the last evaluation. Its steps by default follow from the levels; too few are
    refused."""
    path, field, seeds = PATHS["ve"], CENTERED.field(PATHS["ve"]), iter(range(10**6))
    times = grid(path, spacing, steps, 0.0, 1.0)
    knobs = ContinuousKnobs(solver="langevin", steps=steps, snr=snr)
    knobs.check(path, times)
    step = knobs.stepper(lambda: standard(4000, next(seeds)))
    x = path.deviation(times[0]) * standard(4000, 99)
    for t, u in pairwise(times):
        x = step(field, x, t, u)
    excess = x.flatten(1).T.cov() - CENTERED.covariance
    assert float(excess.diagonal().min()) > -0.1 and float(excess.diagonal().max()) < 0.3
    few = ContinuousKnobs(solver="langevin", steps=steps, snr=0.1, corrector_steps=1)
    with pytest.raises(ValueError, match=r"corrector_steps of at least \d+, or as much noise"):
        few.check(path, times)
    with pytest.raises(ValueError, match=r"a factor of 5.49 with steps=5; type steps=9"):
        ContinuousKnobs(solver="langevin", steps=5).check(path, grid(path, "uniform", 5, 0.0, 1.0))


def test_langevin_steps_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snr of at least 0.05 .* got snr=0.01; type snr=0.5"):
        ContinuousKnobs(solver="langevin", snr=0.01).check(PATHS["ve"], torch.zeros(2).double())
