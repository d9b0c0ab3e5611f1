"""Vector quantizer: its law, the straight-through gradient, and where each loss term pulls."""

import pytest
import torch
from torch import Tensor

from vqgen.contracts import TokenSpec
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.vq import VectorQuantizer

KINDS = pytest.mark.parametrize(
    "kind",
    [
        {"update": "learned", "normalize": False},
        {"update": "learned", "normalize": True},
        {"update": "ema", "normalize": False},
        {"update": "ema", "normalize": True},
    ],
    ids=lambda kind: f"{kind['update']}-{'unit' if kind['normalize'] else 'free'}",
)


def _quantizer(kind: dict, **weights: float) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(codebook=Codebook(size=40, dim=6, **kind), **weights)


def _hidden(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 3, 5, generator=generator).requires_grad_()


@KINDS
def test_embedding_the_tokens_gives_what_forward_gave(kind: dict) -> None:
    model, hidden = _quantizer(kind), _hidden()
    for _ in range(3):
        quantized, _ = model(hidden)
        tokens = model.encode(hidden)
        assert torch.equal(model.embed(tokens, (3, 5)), quantized)
        model.after_step()
    assert tokens.shape == (2, 15)
    assert model.spec((3, 5)) == TokenSpec(vocab_size=40, scales=((3, 5),))


@KINDS
def test_tokens_are_in_raster_order(kind: dict) -> None:
    model, hidden = _quantizer(kind), _hidden()
    model(hidden)
    tokens = model.encode(hidden).view(2, 3, 5)
    assert torch.equal(model.encode(hidden[:, :, 1:2, 3:4]).flatten(), tokens[:, 1, 3])


@KINDS
def test_straight_through(kind: dict) -> None:
    model, hidden = _quantizer(kind), _hidden()
    quantized, _ = model(hidden)
    direction = torch.randn_like(quantized)
    (got,) = torch.autograd.grad((quantized * direction).sum(), hidden, retain_graph=True)
    z = hidden / hidden.norm(dim=1, keepdim=True) if kind["normalize"] else hidden * 1.0
    (want,) = torch.autograd.grad((z * direction).sum(), hidden)
    torch.testing.assert_close(got, want)
    if kind["update"] == "learned":
        weight = model.codebook.weight
        assert torch.autograd.grad(quantized.sum(), weight, allow_unused=True) == (None,)


@KINDS
def test_each_loss_term_pulls_where_it_should(kind: dict) -> None:
    model, hidden = _quantizer(kind, commitment_weight=0.3, codebook_weight=0.7), _hidden()
    losses = model(hidden)[1]
    z, code = hidden.detach(), model.embed(model.encode(hidden), (3, 5)).detach()
    if kind["normalize"]:
        z = z / z.norm(dim=1, keepdim=True)
    error = (z - code).square().mean()
    torch.testing.assert_close(losses["commitment"].detach(), 0.3 * error)
    weight = model.codebook.weight
    assert torch.autograd.grad(losses["commitment"], hidden, retain_graph=True)[0].any()
    if kind["update"] == "ema":
        assert set(losses) == {"commitment"}
        assert not weight.requires_grad and not isinstance(weight, torch.nn.Parameter)
        return
    assert set(losses) == {"commitment", "codebook"}
    torch.testing.assert_close(losses["codebook"].detach(), 0.7 * error)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(losses["commitment"], weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(losses["codebook"], hidden, retain_graph=True)
    assert torch.autograd.grad(losses["codebook"], weight)[0].any()


def test_gradient_of_the_codebook_term_by_hand() -> None:
    model = _quantizer({"update": "learned", "start": "random"}, codebook_weight=0.7)
    hidden = _hidden()
    (got,) = torch.autograd.grad(model(hidden)[1]["codebook"], model.codebook.weight)
    z = hidden.detach().permute(0, 2, 3, 1).reshape(-1, 6)
    tokens = model.encode(hidden).flatten()
    want = torch.zeros(40, 6)
    for vector, token in zip(z, tokens, strict=True):
        want[token] += 0.7 * 2 * (model.codebook.weight[token].detach() - vector) / z.numel()
    torch.testing.assert_close(got, want)


def test_entropy_is_least_for_sharp_choices_over_all_codes() -> None:
    codes = 10 * torch.eye(6)
    model = VectorQuantizer(codebook=Codebook(size=6, dim=6, start="random"), entropy_weight=0.5)
    with torch.no_grad():
        model.codebook.weight.copy_(codes)
    spread = codes.T.reshape(1, 6, 2, 3)  # each code once
    same = codes[:1].repeat(6, 1).T.reshape(1, 6, 2, 3)
    entropy = model(spread)[1]["entropy"]
    torch.testing.assert_close(entropy, -0.5 * torch.tensor(6.0).log(), atol=1e-4, rtol=0)
    torch.testing.assert_close(model(same)[1]["entropy"], torch.tensor(0.0), atol=1e-4, rtol=0)
    hidden = (0.1 * spread).requires_grad_()
    for wanted in (hidden, model.codebook.weight):
        assert torch.autograd.grad(model(hidden)[1]["entropy"], wanted)[0].isfinite().all()
    assert "entropy" not in _quantizer({"update": "learned"})(_hidden())[1]


def test_autocast_does_not_reach_the_codebook() -> None:
    model, hidden = _quantizer({"update": "ema"}), _hidden()
    quantized, losses = model(hidden)
    tokens = model.encode(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        again, losses_again = model(hidden)
        assert torch.equal(model.encode(hidden), tokens)
    assert torch.equal(again, quantized) and again.dtype == torch.float32
    assert torch.equal(losses_again["commitment"], losses["commitment"])


def test_tokens_of_another_size_are_refused() -> None:
    model = _quantizer({})
    with pytest.raises(ValueError, match="4 x 5 map has 20 tokens, got 15"):
        model.embed(torch.zeros(1, 15, dtype=torch.long), (4, 5))
