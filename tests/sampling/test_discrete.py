"""The Markov chain of discrete diffusion against enumeration, Monte Carlo and the lecture's
numbers."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgen.sampling.discrete import Clock, Kernel
from vqgen.sampling.masking import Masking
from vqgen.sampling.replacement import Replacement
from vqgen.sampling.schedules import SCHEDULES, cosine, linear, parse

CODES, BETAS = 3, (0.1, 0.2, 0.3)
KEEP = torch.cumprod(1 - torch.tensor((0.0, *BETAS), dtype=torch.float64), dim=0)
KERNELS = {"absorbing": Kernel.absorbing(CODES), "uniform": Kernel.uniform(CODES)}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_columns_sum_to_one_and_steps_multiply(kernel: Kernel) -> None:
    product = torch.eye(len(kernel.limit)).double()
    for beta, keep in zip(BETAS, KEEP[1:], strict=True):
        step = kernel.matrix(1 - beta)
        torch.testing.assert_close(step.sum(dim=0), torch.ones(len(step)).double())
        product = step @ product
        torch.testing.assert_close(product, kernel.matrix(float(keep)))
    torch.testing.assert_close(kernel.matrix(0.0), kernel.limit[:, None].expand_as(product))
    clean = F.one_hot(torch.arange(CODES), len(kernel.limit)).double()
    got = kernel.marginal(clean, KEEP[3].expand(CODES))
    torch.testing.assert_close(got, product[:, :CODES].T)


def enumerated(kernel: Kernel, t: int, noisy: int, clean: int) -> Tensor:
    """Bayes: q(x_{t-1} | x_t, x_0) = q(x_t | x_{t-1}) q(x_{t-1} | x_0) / the sum of it."""
    joint = kernel.matrix(1 - BETAS[t - 1])[noisy] * kernel.matrix(float(KEEP[t - 1]))[:, clean]
    return joint / joint.sum()


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_posterior_equals_enumeration(kernel: Kernel, t: int) -> None:
    states = len(kernel.limit)
    for clean, noisy in itertools.product(range(CODES), range(states)):
        if kernel.matrix(float(KEEP[t]))[noisy, clean] == 0:
            continue  # cannot happen
        given = F.one_hot(torch.tensor(clean), states).double()
        got = kernel.posterior(torch.tensor(noisy), given, KEEP[t - 1], KEEP[t])
        torch.testing.assert_close(got, enumerated(kernel, t, noisy, clean))
        assert got.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_posterior_averages_over_what_is_predicted(kernel: Kernel) -> None:
    states, guess = len(kernel.limit), torch.tensor([0.2, 0.5, 0.3]).double()
    padded = F.pad(guess, (0, states - CODES))
    noisy = states - 1  # the mask, or the last code: any x_0 may have become it
    wanted = torch.stack([enumerated(kernel, 2, noisy, clean) for clean in range(CODES)])
    got = kernel.posterior(torch.tensor(noisy), padded, KEEP[1], KEEP[2])
    torch.testing.assert_close(got, guess @ wanted)
    if states > CODES:  # a token that is there stays, whatever the network thinks
        stays = kernel.posterior(torch.tensor(0), padded, KEEP[1], KEEP[2])
        assert stays.tolist() == [1, 0, 0, 0]


def test_the_numbers_of_the_lecture() -> None:
    """A posterior with Q_t in the place of its transpose gives 0 for the code: it never unmasks."""
    torch.testing.assert_close(KEEP[1:], torch.tensor([0.9, 0.72, 0.504]).double())
    clean = F.one_hot(torch.tensor(1), 4).double()
    got = KERNELS["absorbing"].posterior(torch.tensor(3), clean, KEEP[2], KEEP[3])
    wanted = torch.tensor([0, 0.435483871, 0, 0.564516129], dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)
    slipped = (KERNELS["absorbing"].matrix(0.7) @ F.one_hot(torch.tensor(3), 4).double()) * (
        KERNELS["absorbing"].matrix(0.72) @ clean
    )
    assert slipped[1] == 0


def test_the_reveal_probability_of_given_betas() -> None:
    """rho_3 of beta = .1, .2, .3 through the clock that loss and sampler use, as one may type
    it."""
    clock = Clock(parse([1, 0.9, 0.72, 0.504, 0]), steps=4)
    rho = clock.reveal(torch.tensor([0.75], dtype=torch.float64))
    assert rho.item() == pytest.approx(0.435483871, abs=1e-9)


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_monte_carlo(kernel: str) -> None:
    """Run the chain forward step by step: marginals and posteriors come out as computed, and the
    one-jump corruption has the same marginal."""
    torch.manual_seed(0)
    count, chain = 200_000, KERNELS[kernel]
    states, history = len(chain.limit), [torch.full((200_000,), 1)]
    for beta in BETAS:
        jumps = torch.multinomial(chain.limit, count, replacement=True)
        history.append(torch.where(torch.rand(count) < beta, jumps, history[-1]))
    clean = F.one_hot(torch.tensor(1), states).double()
    wanted = chain.marginal(clean, KEEP[3])
    tolerance = {"rtol": 0, "atol": 5e-3}
    torch.testing.assert_close(shares(history[3], states), wanted, **tolerance)
    last = states - 1
    got = shares(history[2][history[3] == last], states)
    posterior = chain.posterior(torch.tensor(last), clean, KEEP[2], KEEP[3])
    torch.testing.assert_close(got, posterior, **tolerance)
    process = (Masking if kernel == "absorbing" else Replacement)(CODES, Clock(linear(), 10))
    tokens, keep = torch.full((1, count), 1), KEEP[3:4].float()
    jumped = process.corrupt(tokens, keep, torch.rand(2, 1, count))
    torch.testing.assert_close(shares(jumped[0], states), wanted, **tolerance)


def shares(values: Tensor, states: int) -> Tensor:
    return torch.bincount(values, minlength=states).double() / len(values)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_law_an_exact_model_has_a_tight_bound(name: str, steps: int) -> None:
    """sum_t rho_t (1 - alpha-bar_t) = 1 - alpha-bar_T: every token is paid for once."""
    clock = Clock(SCHEDULES[name](), steps)
    s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    total = (clock.reveal(s) * (1 - clock.now(s))).sum()
    assert total.item() == pytest.approx(1 - float(clock.now(s[-1:])), abs=1e-9)
    torch.testing.assert_close(clock.elbo(s), steps * clock.reveal(s))
    if name == "linear":
        torch.testing.assert_close(clock.reveal(s), 1 / torch.arange(1, steps + 1).double())


@pytest.mark.parametrize("name", SCHEDULES)
def test_continuous_weights_are_the_limit_of_discrete_ones(name: str) -> None:
    schedule, s = SCHEDULES[name](), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    fine, smooth = Clock(schedule, 10**6), Clock(schedule)
    torch.testing.assert_close(smooth.elbo(s), fine.elbo(s), rtol=1e-4, atol=0)
    torch.testing.assert_close(smooth.maskgit(s), fine.maskgit(s), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_maskgit_weight_is_a_change_of_schedule(name: str) -> None:
    """Under the cosine schedule it is 1; under any other its mass is T as well, but for the rates
    that the schedule does not reach."""
    clock = Clock(SCHEDULES[name](), 50)
    weight = clock.maskgit(torch.arange(1, 51).double() / 50)
    reached = 0.97153 if name == "log_linear" else 1.0  # (2 / pi) arcsin(0.999)
    assert weight.sum().item() == pytest.approx(50 * reached, rel=1e-4)
    if name == "cosine":
        torch.testing.assert_close(weight, torch.ones(50).double())


def test_stratified_times_fall_one_into_each_part() -> None:
    torch.manual_seed(0)
    s = Clock(linear(), 1000).draw(10)
    assert ((s * 1000 - 1) // 100).tolist() == list(range(10))
    assert bool((s > 0).all()) and bool((s <= 1).all())
    smooth = Clock(linear()).draw(10)
    assert sorted((smooth * 10).ceil().tolist()) == list(range(1, 11))


@pytest.mark.parametrize(("steps", "length"), [(7, 5), (3, 1), (None, 5)])
def test_the_bound_draws_counts_by_their_weight(steps: int | None, length: int) -> None:
    """Of `rho_t n P(n masked at t)`, summed over t > 1, every n gets its share; masks come from
    the rate that is told."""
    clock = Clock(cosine(), steps)
    process, count = Masking(4, clock), 40_000
    first = 0.0 if steps is None else 1 / steps
    noise = torch.rand(count, length + 1, generator=torch.Generator().manual_seed(0)).double()
    share = (torch.arange(count).double() + 0.5) / count
    masked, rate, weight = process._masks(noise, share, first, 1.0)
    s = torch.linspace(0, 1, (steps or 5000) + 1, dtype=torch.float64)
    n, rates = torch.arange(1, length + 1).double(), 1 - clock.now(s)
    chance = torch.distributions.Binomial(length, rates[1:, None]).log_prob(n).exp()
    table = rates.diff()[:, None] / rates[1:, None] * n * chance  # [t, n]
    table = table if steps is None else table[1:]
    assert weight == pytest.approx(float(table.sum()), rel=1e-3)
    got = torch.bincount(masked.sum(dim=1), minlength=length + 1)[1:] / count
    torch.testing.assert_close(got.double(), table.sum(dim=0) / table.sum(), rtol=0, atol=0.01)
    if steps is not None:
        assert {round(float(r), 9) for r in rate} == {round(float(r), 9) for r in rates[2:]}


def test_a_million_noise_steps_cost_what_ten_do() -> None:
    """No table over t: the last steps of a large T are found by halving."""
    process = Masking(4, Clock(linear(), 10**6))
    share, noise = torch.tensor([0.0, 0.5, 1 - 1e-9]).double(), torch.rand(3, 65).double()
    _, rate, _ = process._masks(noise, share, 1e-6, 1.0)
    assert (rate * 10**6).round().tolist() == [2, 500_001, 10**6]


@pytest.mark.parametrize("wanted", [lambda s: s - 0.5, lambda s: 0 * s, lambda s: 1 / (0 * s)])
def test_weights_that_make_no_sense_are_refused(wanted) -> None:
    with pytest.raises(ValueError, match=r"w_t of at least 0.*type prior\.weight=elbo"):
        Clock(linear(), 10).weight(wanted)


@pytest.mark.parametrize("wanted", [lambda s: 1.0, lambda s: s.sum()], ids=["float", "sum"])
def test_a_weight_of_another_shape_is_refused(wanted) -> None:
    with pytest.raises(ValueError, match="a weight w_t for each s"):
        Clock(linear(), 10).weight(wanted)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"elbo, uniform, maskgit or, in Python.*got elob"):
        Clock(linear(), 10).weight("elob")
    with pytest.raises(ValueError, match=r"noise_steps as a whole number of at least 1.*got 0"):
        Clock(linear(), 0)
    for wrong in (2.5, True, 10**6 + 1):
        with pytest.raises(ValueError, match=rf"noise_steps as a whole number .* got {wrong}"):
            Clock(linear(), wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kernel=uniform wanted .* prior\.noise_steps=1000"):
        Replacement(4, Clock(linear()))
