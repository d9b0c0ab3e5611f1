"""Logit filters: temperature, then top-k, then top-p."""

import math

import pytest
import torch

from vqgen.sampling.logits import LogitKnobs, filter_logits

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits.isfinite().nonzero()[:, 0].tolist()


def test_defaults_change_nothing() -> None:
    assert torch.equal(filter_logits(LOGITS), LOGITS)


def test_input_is_not_edited() -> None:
    logits = LOGITS.clone()
    filter_logits(logits, 0.5, 1, 0.1)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_top_k(top_k: int, count: int) -> None:
    assert kept(filter_logits(LOGITS, top_k=top_k)) == list(range(count))


def test_ties_at_the_edge_stay() -> None:
    assert kept(filter_logits(torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), top_k=3)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("top_p", "count"), [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)]
)
def test_top_p(top_p: float, count: int) -> None:
    assert kept(filter_logits(LOGITS, top_p=top_p)) == list(range(count))


def test_top_p_counts_what_top_k_left() -> None:
    """After top-k the masses are 0.625 and 0.375, so 0.6 keeps one; of the raw 0.5, 0.3 two."""
    assert kept(filter_logits(LOGITS, top_k=2, top_p=0.6)) == [0]
    assert kept(filter_logits(LOGITS, top_p=0.6)) == [0, 1]


def test_temperature_comes_before_top_p() -> None:
    assert kept(filter_logits(LOGITS, temperature=0.2, top_p=0.8)) == [0]


def test_temperature_zero_is_the_likeliest_token() -> None:
    chances = filter_logits(LOGITS, temperature=0.0).softmax(dim=-1)
    assert chances.tolist() == [1, 0, 0, 0]


def test_rows_are_independent() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7)
    whole = filter_logits(logits, 0.7, 4, 0.8)
    assert torch.equal(whole[1, 2], filter_logits(logits[1, 2], 0.7, 4, 0.8))


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"temperature": -1.0}, "temperature of at least 0, got -1.0"),
        ({"temperature": math.nan}, "temperature of at least 0, got nan"),
        ({"top_k": 0}, "top_k of at least 1, got 0; type top_k=null"),
        ({"top_p": 1.5}, "top_p from 0 to 1, got 1.5; type top_p=null"),
    ],
)
def test_impossible_knobs(knobs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LogitKnobs(**knobs)
