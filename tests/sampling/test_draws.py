"""One seed per image."""

import math

import torch

from vqgen.sampling.draws import Draws

SEEDS = [3, 14, 15, 92]


def test_image_depends_on_its_own_seed_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 9)
    together, alone = Draws(SEEDS), [Draws([seed]) for seed in SEEDS]
    for _ in range(3):
        assert torch.equal(together.uniform(2, 3), torch.cat([d.uniform(2, 3) for d in alone]))
        assert torch.equal(together.normal(4), torch.cat([d.normal(4) for d in alone]))
        got = together.categorical(logits)
        apart = [d.categorical(row[None]) for d, row in zip(alone, logits, strict=True)]
        assert torch.equal(got, torch.cat(apart)) and got.shape == (4, 5)


def test_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    Draws(SEEDS).categorical(torch.zeros(4, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_frequencies_are_the_probabilities() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    drawn = Draws([0]).categorical(chances.log().expand(1, 40000, 5))
    shares = torch.bincount(drawn[0], minlength=5) / 40000
    assert ((shares - chances).abs() < 4 * (chances * (1 - chances) / 40000).sqrt()).all()


def test_small_chances_are_not_overdrawn() -> None:
    """4,000 unlikely codes share a chance of 1e-5; noise of 24 bits alone would add 2e-4 to it."""
    logits = torch.full((4001,), math.log(1e-5 / 4000))
    logits[0] = math.log(1 - 1e-5)
    draws, odd = Draws([0]), 0
    for _ in range(10):
        odd += int((draws.categorical(logits.expand(1, 500, -1)) > 0).sum())
    assert odd <= 2


def test_removed_tokens_are_never_drawn() -> None:
    logits = torch.zeros(1, 5000, 8)
    logits[..., 1::2] = -math.inf
    assert (Draws([1]).categorical(logits) % 2 == 0).all()


def test_tiny_changes_of_the_logits_change_no_token() -> None:
    """Rounding differs between batch sizes and devices; the choice must survive it."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(1, 5000, 200)
    noisy = logits + 1e-6 * torch.randn_like(logits)
    assert torch.equal(Draws([2]).categorical(logits), Draws([2]).categorical(noisy))
