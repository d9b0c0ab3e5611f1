"""The contract matrix: every tokenizer with every prior trains a step, samples and decodes, or
refuses."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests import tiny
from vqgen.contracts import Bottleneck, Condition, Known, Prior, Tokenizer, TokenSpec
from vqgen.nn.dit import DiT
from vqgen.priors.absorbing import Absorbing
from vqgen.priors.diffusion import Diffusion
from vqgen.priors.flow import Flow
from vqgen.priors.llamagen import LlamaGen
from vqgen.training.stage2 import Stage2

TOKENIZERS = tiny.TOKENIZERS
# continuous latents have no undecided token; their laws are in tests/tokenizers
OF_TOKENS = [name for name, make in TOKENIZERS.items() if isinstance(make().spec, TokenSpec)]
# One row per family: makes a prior for a tokenizer and a class count, or raises.
PRIORS: dict[str, Callable[[Tokenizer, int], Prior]] = {
    "llamagen": lambda tokenizer, classes: tiny.prior_for(tokenizer.spec, classes),
    "var": lambda tokenizer, classes: tiny.var(tokenizer, classes),
    "absorbing": lambda tokenizer, classes: tiny.absorbing_for(tokenizer.spec, classes),
    "flow": lambda tokenizer, classes: tiny.continuous(Flow, tokenizer, classes),
    "diffusion": lambda tokenizer, classes: tiny.continuous(Diffusion, tokenizer, classes),
}
# (tokenizer, prior) that must fit; every other pair must refuse
FITTING = {
    ("vq-learned", "llamagen"),
    ("vq-ema", "llamagen"),
    ("var-learned", "var"),
    ("var-ema-own", "var"),
    ("vq-learned", "absorbing"),
    ("vq-ema", "absorbing"),
    ("kl", "flow"),
    ("kl", "diffusion"),
    ("vq-as-features", "flow"),
    ("vq-as-features", "diffusion"),
}


def float_images(count: int) -> Tensor:
    return tiny.images(count).float() / 127.5 - 1


def encoded(tokenizer: str) -> tuple[Tokenizer, Tensor]:
    """A tokenizer that has seen a batch (a data-dependent start needs one), and 4 latents."""
    made = TOKENIZERS[tokenizer]()
    made(float_images(4))
    return made, made.encode(float_images(4)).detach()


def a_pair(prior: str, classes: int) -> tuple[Prior, Tensor]:
    """A prior on the first tokenizer that fits, and 4 latents."""
    tokenizer, latents = encoded(next(fit for fit in TOKENIZERS if (fit, prior) in FITTING))
    return PRIORS[prior](tokenizer, classes), latents


@pytest.mark.parametrize("classes", [0, 3], ids=["unconditional", "classes"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_pair_trains_samples_and_decodes_or_refuses(
    tokenizer: str, prior: str, classes: int
) -> None:
    first, latents = encoded(tokenizer)
    if (tokenizer, prior) not in FITTING:
        with pytest.raises(ValueError, match=r"(?s)needs.*got.*python train_stage1\.py"):
            PRIORS[prior](first, classes)
        return
    second = PRIORS[prior](first, classes)
    condition = Condition(4) if classes == 0 else Condition.of_labels(torch.tensor([0, 1, 2, 0]))
    losses = second.loss(latents, condition)
    losses.total.backward()
    grown = [p for p in second.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert grown and torch.isfinite(losses.total)
    assert all(not part.requires_grad for part in losses.parts.values())
    second.eval()
    with torch.no_grad():
        bits = second.bits(latents, condition)
        parts = second.bits_by_part(latents, condition)
        drawn = second.sample(condition, second.Knobs(), lambda progress: 1.0, seeds=[0, 1, 2, 3])
        images = first.decode(drawn)
    assert bits.shape == (4,) and torch.equal(bits, sum(parts.values()))
    assert isinstance(second.spec, TokenSpec) <= bool((bits > 0).all())
    assert drawn.shape == latents.shape and drawn.dtype == latents.dtype
    assert images.shape == (4, 3, *tiny.SIZE)


@pytest.mark.parametrize("tokenizer", OF_TOKENS)
def test_undecided_tokens_decode(tokenizer: str) -> None:
    """A film shows latents in the making: -1 is a token that is not there yet."""
    model, latents = encoded(tokenizer)
    with torch.no_grad():
        whole = model.decode(latents)
        part = model.decode(latents.index_fill(1, torch.tensor([latents.shape[1] - 1]), -1))
    assert part.shape == whole.shape and bool(torch.isfinite(part).all())
    assert not torch.equal(part, whole)


@pytest.mark.parametrize("tokenizer", OF_TOKENS)
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
    model, given = a_pair(prior, 0)
    keep = torch.zeros_like(given, dtype=torch.bool)
    keep[:, 1::2] = True
    drawn = model.eval().sample(
        Condition(4),
        model.Knobs(),
        lambda progress: 1.0,
        seeds=[0, 1, 2, 3],
        known=Known(given, keep),
    )
    assert torch.equal(drawn[keep], given[keep])


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
def test_one_batch_is_overfitted(prior: str) -> None:
    """The code length of one batch falls to under a third of what the untrained prior needs."""
    torch.manual_seed(0)
    model, latents = a_pair(prior, 3)
    condition = Condition.of_labels(torch.tensor([0, 1, 2, 0]))
    with torch.no_grad():
        before = model.eval().bits(latents, condition).mean()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(latents, condition).total.backward()
        optimizer.step()
    with torch.no_grad():
        assert model.eval().bits(latents, condition).mean() < before / 3


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


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_loss_reaches_all_of_a_prior(prior: str, classes: int) -> None:
    """Else DDP would wait for ever for the rest: stage 2 does not let it look (some_unused)."""
    model, latents = a_pair(prior, classes)
    condition = Condition.of_labels(torch.tensor([0, 1, 2, 0])) if classes else Condition(4)
    for seed in range(3):
        torch.manual_seed(seed)
        model.zero_grad()
        model.train().loss(latents, condition).total.backward()
        parameters = dict(model.named_parameters())
        assert not [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
    assert not Stage2.some_unused


NO_PRIORS: dict[str, Callable[[], Prior]] = {
    r"prior.depth as a whole number of at least 1, got 0": lambda: LlamaGen(
        tiny.tokenizer().spec, width=32, depth=0, heads=2
    ),
    r"prior.heads as a whole number of at least 1, got 0": lambda: Absorbing(
        tiny.tokenizer().spec, width=32, depth=2, heads=0
    ),
    r"prior.num_classes as a whole number of at least 0, got -1": lambda: tiny.prior(-1),
    r"prior.label_dropout from 0 to 1, got 1.1": lambda: Flow(
        tiny.kl().spec, network=partial(DiT, width=32, depth=2, heads=2), label_dropout=1.1
    ),
    r"wanted heads that divide the width, got width=32, heads=0": lambda: Diffusion(
        tiny.kl().spec, network=partial(DiT, width=32, depth=2, heads=0)
    ),
}


@pytest.mark.parametrize("sentence", NO_PRIORS)
def test_a_prior_that_cannot_be_is_refused_in_python_too(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NO_PRIORS[sentence]()


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
    twice = TokenSpec(vocab_size=8, scales=((1, 1), (2, 3), (2, 3)))
    assert twice.lengths == {"scale_1x1": 1, "scale_2x3": 12}
