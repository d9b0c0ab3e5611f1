"""Guidance scales, what users type for them, and the rows of a guided batch."""

import pytest
import torch

from vqgen.sampling.branches import Branches
from vqgen.sampling.guidance import constant, guide, interval, linear, parse


def test_guide_is_its_formula() -> None:
    torch.manual_seed(0)
    c, u = torch.randn(2, 3, 4)
    assert guide(c, u, 1.0) is c
    assert torch.equal(guide(c, u, 0.0), u)
    torch.testing.assert_close(guide(c, u, 3.0), 3 * c - 2 * u)


def test_schedules() -> None:
    assert [constant(3.0)(p) for p in (0, 0.5, 1)] == [3, 3, 3]
    assert [linear(3.0)(p) for p in (0, 0.5, 1)] == [1, 2, 3]
    assert [interval(3.0, 0.1, 0.8)(p) for p in (0, 0.1, 0.5, 0.8, 0.9)] == [1, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        (2, [2, 2, 2]),
        ("2.5", [2.5, 2.5, 2.5]),
        ("constant:2", [2, 2, 2]),
        ("linear:4", [1, 2.5, 4]),
        ("interval:4:0.1:0.8", [1, 4, 1]),
        (linear(5.0), [1, 3, 5]),
        ([2, 4], [2, 3, 4]),
        ([3], [3, 3, 3]),
        ([1, 2, 0, 4, 5], [1, 0, 5]),
    ],
)
def test_parse(text: object, scales: list[float]) -> None:
    schedule = parse(text)  # type: ignore[arg-type]
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == scales


@pytest.mark.parametrize(
    "text", ["", "strong", "linear", "linear:x", "interval:4:0.1", "-1", "nan"]
)
def test_what_cannot_be_parsed_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"got '.*'; type one of guidance=4\.0, guidance=linear"):
        parse(text)


def test_a_list_of_as_many_scales_as_steps_is_one_each() -> None:
    for steps in range(1, 40):
        scales = [1 + step % 3 for step in range(steps)]
        assert Branches(2, steps, parse(scales), has_null=True).scales == scales


@pytest.mark.parametrize("scales", [[], [1, "x"], [1, -1], [1, None], [True]])
def test_a_list_that_holds_no_scales_is_refused(scales: list) -> None:
    with pytest.raises(ValueError, match=r"guidance=\[1,2,4\]"):
        parse(scales)


@pytest.mark.parametrize("text", ["interval:4:0.8:0.1", "interval:4:0:2"])
def test_an_empty_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0 <= start <= stop <= 1, got"):
        parse(text)


def test_the_null_branch_runs_as_long_as_a_later_step_needs_it() -> None:
    branches = Branches(6, 11, interval(4.0, 0.2, 0.5), has_null=True)
    assert branches.guided == 6
    assert [branches.rows(step) for step in (0, 5, 6, 10)] == [12, 12, 6, 6]
    assert Branches(6, 11, constant(1.0), has_null=True).guided == 0
    assert Branches(6, 11, constant(4.0), has_null=False).guided == 0
    assert Branches(6, 1, constant(4.0), has_null=True).guided == 1


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 9])
def test_rows_are_conditional_then_null(batch: int) -> None:
    branches = Branches(batch, 3, interval(4.0, 0.0, 0.5), has_null=True)
    conditional, null = torch.arange(batch), 100 + torch.arange(batch)
    rows = branches.stack([conditional, null])
    assert len(rows) == branches.rows(0)
    for step in range(3):
        images = branches.images(step, torch.device("cpu"))
        assert torch.equal(rows[: branches.rows(step)] % 100, images)
        scale = 4.0 if step < 2 else 1.0
        wanted = guide(conditional, null, scale)
        assert torch.equal(branches.guide(rows[: branches.rows(step)], step), wanted)
