"""The contract matrix: every tokenizer with every prior trains a step, samples and decodes, or
refuses."""

from collections.abc import Callable

import pytest
import torch

from tests import tiny
from vqgen.contracts import Bottleneck, Condition, FeatureSpec, Known, Prior, Tokenizer, TokenSpec

# One row per family. A tokenizer makes an instance; a prior makes one for a spec and a class count.
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "vq-learned": lambda: tiny.tokenizer("learned"),
    "vq-ema": lambda: tiny.tokenizer("ema"),
}
PRIORS: dict[str, Callable[[object, int], Prior]] = {
    "llamagen": lambda spec, classes: tiny.prior_for(spec, classes),
}
# Latents that no tokenizer of the matrix makes yet, which a prior may have to refuse
FOREIGN = {
    "pyramid": TokenSpec(vocab_size=32, scales=((1, 1), (2, 3))),
    "features": FeatureSpec(channels=4, height=2, width=3),
}


def float_images(count: int) -> torch.Tensor:
    return tiny.images(count).float() / 127.5 - 1


@pytest.mark.parametrize("classes", [0, 3], ids=["unconditional", "classes"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_pair_trains_samples_and_decodes(tokenizer: str, prior: str, classes: int) -> None:
    first = TOKENIZERS[tokenizer]()
    first(float_images(4))  # a data-dependent start needs one
    latents = first.encode(float_images(4))
    second = PRIORS[prior](first.spec, classes)
    condition = Condition(4) if classes == 0 else Condition.of_labels(torch.tensor([0, 1, 2, 0]))
    losses = second.loss(latents, condition)
    losses.total.backward()
    grown = [p for p in second.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert grown and torch.isfinite(losses.total)
    assert all(not part.requires_grad for part in losses.parts.values())
    second.eval()
    with torch.no_grad():
        bits = second.bits(latents, condition)
        drawn = second.sample(condition, second.Knobs(), lambda progress: 1.0, seeds=[0, 1, 2, 3])
        images = first.decode(drawn)
    assert bits.shape == (4,) and bool((bits > 0).all())
    assert drawn.shape == latents.shape and drawn.dtype == latents.dtype
    assert images.shape == (4, 3, *tiny.SIZE)


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_pair_that_does_not_fit_is_refused_with_a_cure(prior: str, foreign: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)needs.*got.*python train_stage1\.py"):
        PRIORS[prior](FOREIGN[foreign], 0)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_law_embedding_the_code_gives_what_training_decodes(tokenizer: str) -> None:
    model = TOKENIZERS[tokenizer]()
    bottleneck: Bottleneck = model.bottleneck  # type: ignore[attr-defined]
    torch.manual_seed(0)
    hidden = torch.randn(2, bottleneck.in_channels, 2, 3)
    quantized, losses = bottleneck(hidden)
    assert torch.equal(bottleneck.embed(bottleneck.encode(hidden), (2, 3)), quantized)
    assert quantized.shape[1] == bottleneck.out_channels
    assert all(term.ndim == 0 for term in losses.values())


@pytest.mark.parametrize("prior", PRIORS)
def test_known_latents_are_kept(prior: str) -> None:
    spec = tiny.tokenizer().spec
    model = PRIORS[prior](spec, 0).eval()
    given = torch.randint(0, 32, (2, spec.length), generator=torch.Generator().manual_seed(0))
    keep = torch.zeros_like(given, dtype=torch.bool)
    keep[:, 1::2] = True
    drawn = model.sample(
        Condition(2), model.Knobs(), lambda progress: 1.0, seeds=[0, 1], known=Known(given, keep)
    )
    assert torch.equal(drawn[keep], given[keep])


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
def test_one_batch_is_overfitted(prior: str) -> None:
    """Bits per token fall from log2 K to nearly nothing."""
    torch.manual_seed(0)
    spec = tiny.tokenizer().spec
    model = PRIORS[prior](spec, 3)
    latents = torch.randint(0, 32, (4, spec.length))
    condition = Condition.of_labels(torch.tensor([0, 1, 2, 0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(latents, condition).total.backward()
        optimizer.step()
    per_token = model.eval().bits(latents, condition) / spec.length
    assert per_token.max() < 1.0  # image 0 and 3 share a class, so 1 bit in 6 tokens stays open


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_one_batch_of_images_is_overfitted(tokenizer: str) -> None:
    torch.manual_seed(0)
    model, images = TOKENIZERS[tokenizer](), float_images(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    errors = []
    for _ in range(120):
        reconstruction = model(images)
        error = (reconstruction.images - images).square().mean()
        optimizer.zero_grad()
        (error + sum(reconstruction.losses.values())).backward()
        optimizer.step()
        model.after_step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.1 * errors[0]


def test_conditions_drop_map_and_null() -> None:
    condition = Condition.of_labels(torch.arange(6))
    assert condition.drop(0.0) is condition
    dropped = condition.drop(1.0).dropped
    assert dropped is not None and bool(dropped.all())
    halves = condition.null().map(lambda part: part[:3])
    assert halves.batch == 3 and halves.dropped is not None and len(halves.dropped) == 3
    text = Condition.of_text(torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    assert text.map(lambda part: part.repeat_interleave(2, dim=0)).batch == 4
    torch.manual_seed(0)
    share = Condition.of_labels(torch.zeros(20000, dtype=torch.long)).drop(0.1).dropped
    assert share is not None and abs(float(share.float().mean()) - 0.1) < 0.01


def test_token_spec_is_never_square_only() -> None:
    spec = TokenSpec(vocab_size=8, scales=((1, 1), (2, 3)))
    assert spec.length == 7 and TokenSpec(8, [[1, 1], [2, 3]]) == spec  # type: ignore[arg-type]
