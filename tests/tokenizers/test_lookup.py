"""Nearest-code search: the definition, ties, chunks, precision."""

import pytest
import torch

from vqgen.tokenizers.lookup import nearest_code

CHUNKS = [(1, 1), (64, 64), (100, 130), (17, 1000), (10**6, 10**6)]


def _draw(vectors: int, codes: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(vectors, dim, generator=generator),
        torch.randn(codes, dim, generator=generator),
    )


@pytest.mark.parametrize("dim", [1, 3, 8, 40])
@pytest.mark.parametrize(("vectors", "codes"), [(1, 1), (5, 63), (130, 64), (300, 1000)])
def test_is_the_nearest(vectors: int, codes: int, dim: int) -> None:
    x, c = _draw(vectors, codes, dim)
    distances = torch.cdist(x.double(), c.double())
    found = nearest_code(x, c)
    chosen = distances.gather(1, found[:, None])[:, 0]
    assert found.dtype == torch.long
    torch.testing.assert_close(chosen, distances.amin(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dim", [1, 8, 40])
def test_chunks_change_nothing(chunk: tuple[int, int], dim: int) -> None:
    x, c = _draw(300, 1000, dim)
    c[500:] = c[:500]  # every nearest code is a tie, exact only if all chunks round alike
    found = nearest_code(x, c)
    assert found.max() < 500
    assert torch.equal(nearest_code(x, c, chunk=chunk), found)


def test_batch_changes_nothing() -> None:
    x, c = _draw(300, 1000, 8)
    c[500:] = c[:500]
    alone = torch.cat([nearest_code(row[None], c) for row in x])
    assert torch.equal(alone, nearest_code(x, c))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_first_of_equal_codes_wins(chunk: tuple[int, int]) -> None:
    x, _ = _draw(70, 1, 8)
    assert nearest_code(x, torch.ones(1000, 8), chunk=chunk).eq(0).all()
    codes = torch.full((1000, 8), 50.0)
    codes[[137, 400, 999]] = 0.0
    assert nearest_code(x, codes, chunk=chunk).eq(137).all()


def test_float32_inside_autocast() -> None:
    codes = torch.tensor([[1.0, 0.0], [1.001, 0.0]])  # the same in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_code(codes, codes).tolist() == [0, 1]


def test_no_vectors_and_bad_numbers() -> None:
    codes = torch.randn(5, 3)
    assert nearest_code(torch.empty(0, 3), codes).shape == (0,)
    found = nearest_code(torch.full((2, 3), torch.nan), codes)
    assert found.min() >= 0 and found.max() < 5


def test_gives_no_gradient() -> None:
    x, c = _draw(4, 5, 3)
    assert not nearest_code(x.requires_grad_(), c.requires_grad_()).requires_grad
