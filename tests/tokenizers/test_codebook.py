"""Codebook upkeep: EMA by hand, revival, data-dependent start, exact resume."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from vqgen.tokenizers.codebook import SMOOTHING, Codebook

Update = Literal["learned", "ema"]
UPDATES = pytest.mark.parametrize("update", ["learned", "ema"])


def _vectors(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_ema_by_hand() -> None:
    book = Codebook(size=3, dim=2, update="ema", ema_decay=0.9, start="random", revive_below=0)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
        book.ema_sum.copy_(book.weight)
    first, second = torch.tensor([[1.0, 1.0], [9.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    for vectors in (first, second):  # two forward passes of one optimizer step
        book.observe(vectors, book.nearest(vectors))
    book.after_step()
    count = torch.tensor([0.9 + 0.1 * 2, 0.9 + 0.1 * 1, 0.9])
    total = torch.tensor([[0.4, 0.0], [9.0 + 0.9, 0.2], [0.0, 9.0]])
    smooth = (count + SMOOTHING) / (count.sum() + 3 * SMOOTHING) * count.sum()
    torch.testing.assert_close(book.ema_count, count)
    torch.testing.assert_close(book.ema_sum, total)
    torch.testing.assert_close(book.weight, total / smooth[:, None])


def test_ema_finds_the_means() -> None:
    torch.manual_seed(0)
    centers = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    book = Codebook(size=3, dim=2, update="ema", ema_decay=0.9, revive_below=0.1, usage_decay=0.8)
    for _ in range(150):
        vectors = centers.repeat(20, 1) + 0.1 * torch.randn(60, 2)
        book.start(vectors)
        book.observe(vectors, book.nearest(vectors))
        book.after_step()
    assert torch.cdist(centers, book.rows()).amin(1).max() < 0.1


@UPDATES
def test_nothing_moves_before_after_step(update: Update) -> None:
    book = Codebook(size=4, dim=3, update=update, start="random")
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.observe(_vectors(9), torch.zeros(9, dtype=torch.long))
    assert all(torch.equal(before[name], value) for name, value in book.state_dict().items())
    book.after_step()
    moved = {name for name, value in book.state_dict().items() if not value.equal(before[name])}
    assert moved == {"usage"} | ({"weight", "ema_count", "ema_sum"} if update == "ema" else set())
    assert book.after_step() == {"codebook/revived": 0.0}  # nothing new was observed


@UPDATES
def test_revival_leaves_no_dead_code_and_resets_its_history(update: Update) -> None:
    torch.manual_seed(0)
    book = Codebook(size=8, dim=3, update=update, start="random", revive_below=0.1, usage_decay=0.5)
    vectors = 5 + _vectors(50)
    revived = 0.0
    for step in range(4):  # 0.5^4 < 0.1
        assert revived == 0.0, step
        book.observe(vectors, torch.arange(50) % 3)  # codes 3..7 are never chosen
        revived = book.after_step()["codebook/revived"]
    assert revived == 5.0
    assert book.usage.min() >= 0.1
    assert book.usage[3:].eq(1).all()
    drawn = [bool((vectors == row).all(1).any()) for row in book.weight[3:]]
    assert all(drawn)
    assert len({tuple(row.tolist()) for row in book.weight[3:]}) == 5  # five different vectors
    if update == "ema":
        assert book.ema_count[3:].eq(1).all()
        assert torch.equal(book.ema_sum[3:], book.weight[3:])


def test_a_vector_revives_one_code_at_most() -> None:
    """Many codes of few vectors: no copies of a batch that would die together."""
    torch.manual_seed(0)
    book = Codebook(size=16, dim=3, start="random", revive_below=0.5, usage_decay=0.1)
    vectors = 5 + _vectors(3)
    book.observe(vectors, torch.zeros(3, dtype=torch.long))
    assert book.after_step() == {"codebook/revived": 3.0}
    placed = (torch.cdist(book.weight, vectors) < 1e-6).sum(0)
    assert placed.tolist() == [1, 1, 1]


def test_no_revival_at_zero() -> None:
    book = Codebook(size=8, dim=3, start="random", revive_below=0, usage_decay=0.5)
    for _ in range(200):
        book.observe(_vectors(5), torch.zeros(5, dtype=torch.long))
        assert book.after_step() == {"codebook/revived": 0.0}


@UPDATES
@pytest.mark.parametrize("count", [5, 8, 30])
def test_start_takes_vectors_of_the_first_batch_once(update: Update, count: int) -> None:
    torch.manual_seed(0)
    book = Codebook(size=8, dim=3, update=update)
    vectors = _vectors(count)
    book.start(vectors)
    distances = torch.cdist(book.rows().detach(), vectors)
    assert distances.amin(1).max() < (1e-3 if count >= 8 else 0.2)
    assert len({tuple(row.tolist()) for row in book.rows()}) == 8
    if count >= 8:
        assert distances.argmin(1).unique().numel() == 8
    before = book.rows().clone()
    book.start(_vectors(count, seed=1))
    assert torch.equal(before, book.rows())


def test_random_start_ignores_the_data() -> None:
    book = Codebook(size=8, dim=3, start="random")
    before = book.rows().clone()
    book.start(_vectors(30))
    assert torch.equal(before, book.rows())
    assert before.abs().max() <= 1 / 8
    torch.testing.assert_close(
        Codebook(size=8, dim=3, start="random", normalize=True).rows().norm(dim=1), torch.ones(8)
    )


@UPDATES
def test_resume_is_exact(update: Update) -> None:
    def steps(book: Codebook, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            vectors = _vectors(6, seed=seed)
            book.start(vectors)
            book.observe(vectors, book.nearest(vectors))
            book.after_step()

    options = {"size": 8, "dim": 3, "update": update, "revive_below": 0.2, "usage_decay": 0.7}
    straight, killed = Codebook(**options), Codebook(**options)
    resumed = Codebook(**options)
    steps(straight, range(10))
    steps(killed, range(4))
    resumed.load_state_dict(killed.state_dict(), strict=True)
    steps(resumed, range(4, 10))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_bad_batch_does_not_destroy_an_ema_codebook() -> None:
    book = Codebook(size=4, dim=3, update="ema", start="random", revive_below=10)
    vectors = _vectors(5)
    vectors[2] = torch.nan
    vectors[3] = torch.inf
    book.observe(vectors, book.nearest(vectors))
    book.after_step()
    assert all(value.isfinite().all() for value in book.state_dict().values())


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="update to be learned or ema, got EMA"):
        Codebook(size=4, dim=3, update="EMA")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="start to be data or random, got kmeans"):
        Codebook(size=4, dim=3, start="kmeans")  # pyright: ignore[reportArgumentType]
