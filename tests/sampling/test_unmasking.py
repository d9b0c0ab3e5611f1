"""The samplers of absorbing diffusion: orders, plans, and what decided tokens go through."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqgen.sampling.draws import Draws
from vqgen.sampling.halton import halton_ranks, radical_inverse
from vqgen.sampling.schedules import SCHEDULES, linear
from vqgen.sampling.unmasking import ORDERS, UnmaskingKnobs, lowest, unmask

SIZE, VOCAB = (3, 4), 7
LENGTH = 12


def logits(tokens: Tensor) -> Tensor:
    """[batch, length, vocab], of every token of the same image and of the place, in float64."""
    places = torch.arange(1, LENGTH + 1)[:, None] * torch.arange(1, VOCAB + 1)
    heard = ((tokens + 2) * torch.arange(1, LENGTH + 1)).sum(dim=1)
    return 2 * torch.cos(0.37 * places + heard[:, None, None].double())


def predict(tokens: Tensor, asked: Tensor, rate: float, step: int) -> Tensor:
    return logits(tokens)[asked]


class Asked:
    """`predict` that remembers in which steps it was called."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, tokens: Tensor, asked: Tensor, rate: float, step: int) -> Tensor:
        self.steps.append(step)
        return predict(tokens, asked, rate, step)


def run(batch: int = 3, start: Tensor | None = None, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """-> (tokens, the film)."""
    function, seeds = options.pop("predict", predict), options.pop("seeds", range(batch))
    knobs, film = UnmaskingKnobs(**options), []
    tokens = torch.full((batch, LENGTH), -1) if start is None else start
    done = unmask(
        function,
        tokens,
        size=SIZE,
        knobs=knobs,
        rates=knobs.rates(linear()),
        draws=Draws(list(seeds)),
        on_step=lambda i, n, x: film.append(x),
    )
    return done, film


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize("steps", [1, 5, 12, 50])
@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_everything_is_decided_once(sampler: str, steps: int, schedule: str | None) -> None:
    done, film = run(sampler=sampler, steps=steps, schedule=schedule)
    assert len(film) == steps and torch.equal(film[-1], done)
    assert bool(((done >= 0) & (done < VOCAB)).all())
    for before, after in itertools.pairwise(film):
        decided = before >= 0
        assert torch.equal(before[decided], after[decided])
    if sampler != "ancestral":  # as many as planned
        rates = SCHEDULES[schedule or "linear"]().rates(steps)
        planned = [math.floor(LENGTH * rate + 1e-4) for rate in rates[1:]]
        assert [(frame < 0).sum(dim=1).tolist() for frame in film] == [[n] * 3 for n in planned]


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize("remask", [0.0, 0.2])
def test_an_image_depends_on_its_seed_alone(sampler: str, remask: float) -> None:
    """In a batch most steps decide something; alone many do not and ask nothing."""
    options: dict[str, Any] = {"sampler": sampler, "steps": 20, "remask": remask}
    together, _ = run(16, seeds=range(50, 66), **options)
    alone = [run(1, seeds=[seed], **options)[0] for seed in range(50, 66)]
    assert torch.equal(together, torch.cat(alone)) and len(together.unique(dim=0)) > 8


@pytest.mark.parametrize("sampler", ORDERS)
def test_a_step_that_decides_nothing_asks_nothing(sampler: str) -> None:
    asked = Asked()
    _, film = run(1, predict=asked, sampler=sampler, steps=100)
    counts = [LENGTH, *((frame >= 0).logical_not().sum().item() for frame in film)]
    busy = [i for i in range(100) if counts[i + 1] < counts[i]]
    assert asked.steps == busy and 1 <= len(busy) <= LENGTH


def test_without_the_trick_the_result_is_the_same() -> None:
    """The same chain written down plainly, asking the network in every step."""
    done, _ = run(1, steps=100, seeds=[5])
    draws, tokens, rates = Draws([5]), torch.full((1, LENGTH), -1), linear().rates(100)
    for step in range(100):
        stays = rates[step + 1] / rates[step]
        opens = (tokens < 0) & (draws.uniform(LENGTH) >= stays)
        if opens.any():
            best = (logits(tokens)[opens].float() + draws.gumbel(opens, VOCAB)).argmax(dim=-1)
            tokens = tokens.masked_scatter(opens, best)
    assert torch.equal(done, tokens)


def test_ancestral_decides_with_probability_rho() -> None:
    _, film = run(4000, steps=4)
    masked = [(frame < 0).double().mean().item() for frame in film]
    assert masked == pytest.approx([0.75, 0.5, 0.25, 0], abs=0.01)
    alike = (film[1] < 0).double().mean(dim=0)
    assert alike.min() > 0.46 and alike.max() < 0.54  # places do not differ


def test_confidence_without_noise_takes_the_most_certain() -> None:
    _, film = run(2, sampler="confidence", steps=12, choice_temperature=0.0, temperature=0.0)
    tokens = torch.full((2, LENGTH), -1)
    for frame in film:
        certain, best = logits(tokens).log_softmax(-1).max(dim=-1)
        place = certain.masked_fill(tokens >= 0, -math.inf).argmax(dim=1, keepdim=True)
        tokens = tokens.scatter(1, place, best.gather(1, place))
        assert torch.equal(tokens, frame)
    noisy, _ = run(2, sampler="confidence", steps=12, choice_temperature=20.0, temperature=0.0)
    assert not torch.equal(noisy, film[-1])


def test_random_orders_differ_between_images_and_halton_does_not() -> None:
    _, film = run(8, sampler="random", steps=3)
    assert len((film[0] < 0).unique(dim=0)) > 4
    _, film = run(8, sampler="halton", steps=3)
    assert len((film[0] < 0).unique(dim=0)) == 1


@pytest.mark.parametrize("sampler", ORDERS)
def test_given_tokens_stay_even_under_remasking(sampler: str) -> None:
    start = torch.full((3, LENGTH), -1)
    start[0, ::2], start[1, 5] = 6, 3
    done, film = run(start=start, sampler=sampler, steps=9, remask=0.5)
    assert all(torch.equal(frame[start >= 0], start[start >= 0]) for frame in film)
    assert bool((done >= 0).all())


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize("remask", [0.1, 0.3, 0.5, 0.9])
def test_remasking_keeps_the_mask_rates(sampler: str, remask: float) -> None:
    """What is undone is decided the sooner: no step, the last one least of all, gets more places to
    draw at once than without remasking. Given places do not count."""
    start = torch.full((400, LENGTH), -1)
    start[:, :4] = 2
    _, film = run(400, start=start, sampler=sampler, steps=6, remask=remask)
    counts = torch.stack([(frame < 0).sum(dim=1) for frame in film]).double()
    rates = torch.tensor(linear().rates(6)[1:]).double()
    if sampler == "ancestral":
        torch.testing.assert_close(counts.mean(dim=1), 8 * rates, rtol=0, atol=0.35)
    else:
        assert torch.equal(counts, (8 * rates + 1e-4).floor()[:, None].expand(-1, 400))
    undone = [((a >= 0) & (b < 0)).sum() for a, b in itertools.pairwise(film)]
    assert sum(undone) > 0 and all(torch.equal(frame[:, :4], start[:, :4]) for frame in film)


def test_remasking_undoes_the_least_certain() -> None:
    _, film = run(1, sampler="halton", steps=12, remask=0.34, temperature=0.0)
    undone = [bool(((a >= 0) & (b < 0)).any()) for a, b in itertools.pairwise(film)]
    assert any(undone) and bool((film[-1] >= 0).all())
    scores, among = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([[True, True, True, False]])
    assert lowest(scores, among, torch.tensor([2])).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (8, 8), (9, 16), (24, 17)])
def test_halton_visits_every_place_once(size: tuple[int, int]) -> None:
    ranks = halton_ranks(*size)
    assert sorted(ranks.long().tolist()) == list(range(size[0] * size[1]))


def test_halton_spreads() -> None:
    assert radical_inverse(torch.arange(7), 2).tolist() == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8,
                                                            3 / 8]  # fmt: skip
    ranks = halton_ranks(16, 16).view(16, 16)
    for count in (16, 32, 64):  # of the first `count` places every quadrant has its share
        early = (ranks < count).view(2, 8, 2, 8).sum(dim=(1, 3))
        assert bool(((early - count / 4).abs() <= 1).all()), early


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sampler": "greedy"}, "ancestral, confidence, halton, random, got greedy"),
        ({"sampler": "haltom"}, r"got haltom; did you mean halton\?"),
        ({"steps": 0}, "steps as a whole number of at least 1, got 0; type steps=16"),
        ({"steps": 10**9}, "steps as a whole number of at most 10000, got 1000000000"),
        ({"steps": True}, "steps as a whole number of at least 1, got True"),
        ({"steps": 2.5}, "steps as a whole number of at least 1, got 2.5"),
        ({"schedule": "square"}, "schedule as one of linear, cosine"),
        ({"choice_temperature": -1.0, "sampler": "confidence"}, "choice_temperature of at least 0"),
        ({"choice_temperature": 1.0}, "got it with sampler=ancestral; type sampler=confidence"),
        ({"remask": 1.0}, "remask as a share from 0 to under 1, got 1.0"),
        ({"temperature": -1.0}, "temperature of at least 0"),
        ({"top_k": 0}, "top_k of at least 1"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UnmaskingKnobs(**options)


def test_a_numpy_integer_is_a_number_of_steps() -> None:
    assert UnmaskingKnobs(steps=np.int64(4)) == UnmaskingKnobs(steps=4)  # type: ignore[arg-type]
