"""Noise schedules: values, derivatives, and what is refused."""

import itertools
import math

import pytest
import torch

from vqgen.sampling.schedules import SCHEDULES, Schedule, linear, parse

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)
HALVES = {"linear": 0.5, "cosine": 1 - math.sqrt(0.5), "log_linear": 0.5005, "arc_cosine": 1 / 3}


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_middle(name: str) -> None:
    values = SCHEDULES[name]().clean(TIMES)
    assert values[0].item() == pytest.approx(1) and 0 <= values[-1].item() < 0.01
    assert bool((values.diff() < 0).all())
    assert values[50].item() == pytest.approx(HALVES[name])


@pytest.mark.parametrize("name", SCHEDULES)
def test_law_the_slope_is_the_derivative(name: str) -> None:
    schedule, times = SCHEDULES[name](), TIMES[1:-1].clone().requires_grad_()
    wanted = torch.autograd.grad(schedule.clean(times).sum(), times)[0]
    torch.testing.assert_close(schedule.slope(times.detach()), wanted, rtol=1e-9, atol=1e-9)


def test_a_schedule_of_ones_own() -> None:
    own = Schedule(lambda s: (1 - s) ** 2)
    torch.testing.assert_close(own.slope(TIMES), -2 * (1 - TIMES))
    assert parse(own) is own and own.name == "custom"


def test_alpha_bars_that_are_typed() -> None:
    typed = parse([1, 0.9, 0.72, 0.504, 0])
    at = torch.tensor([0, 0.125, 0.25, 0.6, 1], dtype=torch.float64)
    wanted = torch.tensor([1, 0.95, 0.9, 0.6336, 0], dtype=torch.float64)
    torch.testing.assert_close(typed.clean(at), wanted)
    slopes = torch.tensor([-0.4, -0.4, -0.72, -0.864, -2.016], dtype=torch.float64)
    torch.testing.assert_close(typed.slope(at), slopes)
    assert typed.rates(2) == pytest.approx([1, 0.28, 0])
    for wrong in ([], [1], [1, 0.5, 0.5, 0], [0, 1], [1, 2, 0]):
        with pytest.raises(ValueError, match=r"falling alpha-bars, got .*type for instance"):
            parse(wrong)
    for wrong in ([0.9, 0], [1, 0.5]):
        with pytest.raises(ValueError, match=r"falls from 1 at s=0 strictly to at most 0\.01"):
            parse(wrong)
    with pytest.raises(ValueError, match="linear, cosine, log_linear, arc_cosine or a list"):
        parse(["a", 0])  # type: ignore[list-item]


def test_a_loop_ends_without_masks_whatever_a_curve_rounds_to() -> None:
    nearly = Schedule(lambda s: (1 - 1e-7) * (1 - s))
    assert nearly.rates(4)[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 64])
def test_the_rates_of_a_loop(name: str, steps: int) -> None:
    rates = SCHEDULES[name]().rates(steps)
    assert len(rates) == steps + 1 and rates[-1] == 0 and rates[0] > 0.99
    assert all(before > after for before, after in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("curve", "sentence"),
    [
        (lambda s: 1 - s + 3 * torch.sin(9 * s) * s * (1 - s), "strictly"),
        (lambda s: 1 - 0.5 * s, "got 1 to 0.5"),
        (lambda s: 0.9 * (1 - s), "got 0.9 to 0"),
        (lambda s: (1 - 2 * s).clamp(min=0), "strictly"),
        (lambda s: 1 - 2 * s, "got 1 to -1"),
    ],
)
def test_what_is_no_schedule_is_refused(curve, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Schedule(curve)


def test_a_wrong_slope_and_a_wrong_name_are_refused() -> None:
    with pytest.raises(ValueError, match="leave slope out"):
        Schedule(linear().clean, lambda s: -2 * torch.ones_like(s))
    with pytest.raises(ValueError, match=r"hand in vqgen\.sampling\.schedules\.Schedule\(function"):
        parse(lambda s: 1 - s)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"linear, cosine, log_linear, arc_cosine .*, got cosin"):
        parse("cosin")
