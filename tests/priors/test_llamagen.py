"""The LlamaGen prior: its loss, likelihood and sampler agree with each other."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgen.contracts import Condition, FeatureSpec, Known, TokenSpec
from vqgen.priors.llamagen import LlamaGen
from vqgen.sampling.guidance import constant, interval, linear

VOCAB, SIZE = 11, (2, 3)
SPEC = TokenSpec(VOCAB, (SIZE,))
KINDS: dict[str, dict[str, int]] = {
    "unconditional": {},
    "class": {"num_classes": 3},
    "text": {"text_length": 4, "text_dim": 5},
}

SCHEDULES = {
    "off": constant(1.0),
    "constant": constant(3.0),
    "linear": linear(4.0),
    "interval": interval(3.0, 0.2, 0.6),
}
NO_DROPOUT = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}


def make(spec: TokenSpec = SPEC, **changes: Any) -> LlamaGen:
    """A small model in eval mode whose every matrix matters (the head starts at zero otherwise)."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "multiple_of": 16, **changes}
    model = LlamaGen(spec, **sizes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def condition(kind: str, batch: int = 3, dtype: torch.dtype = torch.float32) -> Condition:
    generator = torch.Generator().manual_seed(1)
    if kind == "class":
        return Condition.of_labels(torch.arange(batch) % 3)
    if kind == "text":
        mask = torch.arange(4) >= torch.arange(batch)[:, None] % 4  # left padding
        return Condition.of_text(
            torch.randn(batch, 4, 5, generator=generator).to(dtype), mask.bool()
        )
    return Condition(batch=batch)


def tokens(batch: int = 3, spec: TokenSpec = SPEC) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(spec.vocab_size, (batch, spec.length), generator=generator)


def replay(model: LlamaGen, given: Tensor, condition: Condition, scale: Any) -> Tensor:
    """The logits that the cached sampler sees while it is made to say `given`."""
    logits: list[Tensor] = []

    def choose(row: Tensor, step: int) -> Tensor:
        logits.append(row)
        return given[:, step]

    assert torch.equal(model.generate(condition, choose, scale), given)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True], ids=["still", "zero"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_cached_equals_uncached(kind: str, zero: bool, schedule: Any) -> None:
    model, given = make(zero_condition_rope=zero, **KINDS[kind]).double(), tokens()
    asked = condition(kind, dtype=torch.float64)
    with torch.no_grad():
        conditional = model.logits(given, asked)
        null = model.logits(given, asked.null())
        scales = torch.tensor([schedule(i / 5) for i in range(6)], dtype=torch.float64)[:, None]
        wanted = null + scales * (conditional - null)
    got = replay(model, given, asked, schedule)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_cached_equals_uncached_in_float32(kv_heads: int, size: tuple[int, int]) -> None:
    spec = TokenSpec(VOCAB, (size,))
    model = make(spec, kv_heads=kv_heads, num_classes=3)
    given, asked = tokens(spec=spec), condition("class")
    wanted = model.logits(given, asked)
    torch.testing.assert_close(
        replay(model, given, asked, constant(1.0)), wanted, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_is_causal_and_needs_no_mode(kind: str) -> None:
    model, given, asked = make(**KINDS[kind], **NO_DROPOUT), tokens(), condition(kind)
    logits, changed = model.logits(given, asked), given.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    moved = (model.logits(changed, asked) - logits).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 4 + [True] * 2
    assert torch.equal(model.train().logits(given, asked), logits)


def test_guidance_one_is_the_conditional_model_bit_for_bit() -> None:
    model, asked = make(num_classes=3), condition("class")
    seen: list[int] = []
    model.blocks[0].register_forward_hook(lambda module, x, y: seen.append(y.shape[0]))
    plain = replay(model, tokens(), asked, constant(1.0))
    assert set(seen) == {3}  # no second branch
    guided = replay(model, tokens(), asked, interval(5.0, 0.9, 1.0))
    assert torch.equal(guided[:, :5], plain[:, :5]) and not torch.equal(guided[:, 5], plain[:, 5])


def test_the_null_branch_stops_after_its_last_use() -> None:
    model, seen = make(num_classes=3), []
    model.blocks[0].register_forward_hook(lambda module, x, y: seen.append(y.shape[0]))
    replay(model, tokens(5), condition("class", 5), interval(5.0, 0.0, 0.4))
    assert seen == [10, 10, 10, 5, 5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_zero_is_the_null_condition(kind: str) -> None:
    model, asked = make(**KINDS[kind]), condition(kind)
    null = replay(model, tokens(), asked.null(), constant(1.0))
    torch.testing.assert_close(replay(model, tokens(), asked, constant(0.0)), null)


@pytest.mark.parametrize(
    ("width", "heads", "kv_heads"), [(16, 2, 2), (32, 4, 2), (48, 4, 1), (100, 5, 5), (128, 4, 4)]
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_is_the_same_in_any_batch(
    width: int, heads: int, kv_heads: int, guidance: float
) -> None:
    spec = TokenSpec(97, ((3, 4),))
    model = make(spec, width=width, heads=heads, kv_heads=kv_heads, num_classes=3)
    asked, seeds = condition("class", 32), list(range(100, 132))
    knobs = model.Knobs(top_k=50, top_p=0.95)

    def draw(rows: slice) -> Tensor:
        part = asked.map(lambda tensor: tensor[rows])
        return model.sample(part, knobs, constant(guidance), seeds[rows])

    together = draw(slice(0, 32))
    assert len(together.unique(dim=0)) == 32
    for size in (1, 5, 16):
        parts = [draw(slice(start, min(start + size, 32))) for start in range(0, 32, size)]
        assert torch.equal(torch.cat(parts), together), f"batch {size}"


def test_logits_of_an_image_have_the_same_bits_in_any_batch() -> None:
    """What the padding of rows is for; where a library breaks it, the tokens still hold (above)."""
    spec = TokenSpec(97, ((3, 4),))
    model, given = make(spec, width=64, num_classes=3), tokens(32, spec)
    asked = condition("class", 32)
    together = replay(model, given, asked, constant(3.0))
    for size in (1, 3, 16):
        part = asked.map(lambda tensor, size=size: tensor[:size])
        assert torch.equal(replay(model, given[:size], part, constant(3.0)), together[:size])


def test_known_tokens_are_kept_and_heard() -> None:
    model, asked = make(num_classes=3), condition("class")
    keep = torch.zeros(3, 6, dtype=torch.bool)
    keep[:, ::2] = True
    known = Known(tokens(), keep)
    films: list[Tensor] = []
    got = model.sample(
        asked, model.Knobs(), constant(2.0), [1, 2, 3], known, lambda i, n, x: films.append(x)
    )
    assert torch.equal(got[keep], known.latents[keep])
    other = Known((known.latents + 1) % VOCAB, keep)
    changed = model.sample(asked, model.Knobs(), constant(2.0), [1, 2, 3], other)
    assert not torch.equal(got[~keep], changed[~keep])
    everything = Known(known.latents, torch.ones_like(keep))
    told = model.sample(asked, model.Knobs(), constant(2.0), [1, 2, 3], everything)
    assert torch.equal(told, known.latents)
    assert [(frame >= 0).sum().item() for frame in films] == [3, 6, 9, 12, 15, 18]
    assert all((film[:, :i] == got[:, :i]).all() for i, film in enumerate(films, start=1))


def test_on_step_counts() -> None:
    model, calls = make(), []
    model.sample(Condition(batch=2), model.Knobs(), constant(1.0), [0, 1], None,
                 lambda done, total, latents: calls.append((done, total)))  # fmt: skip
    assert calls == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_code_length(kind: str) -> None:
    model, given, asked = make(**KINDS[kind]), tokens(), condition(kind)
    chances = model.logits(given, asked).softmax(dim=-1).gather(-1, given[..., None])[..., 0]
    torch.testing.assert_close(model.bits(given, asked), -chances.log2().sum(dim=1))


def test_bits_sum_to_one_over_all_images() -> None:
    """Law: 2^-bits of every possible image adds up to 1."""
    model = make(TokenSpec(3, ((1, 3),)), num_classes=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    bits = model.bits(every, Condition.of_labels(torch.full((27,), 2)))
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_follow_the_likelihood() -> None:
    model = make(TokenSpec(3, ((1, 2),)), num_classes=3)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    chances = 2 ** -model.bits(every, Condition.of_labels(torch.ones(9, dtype=torch.long)))
    asked = Condition.of_labels(torch.ones(2000, dtype=torch.long))
    drawn = model.sample(asked, model.Knobs(), constant(1.0), list(range(2000)))
    shares = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9) / 2000
    assert ((shares - chances).abs() < 4 * (chances * (1 - chances) / 2000).sqrt()).all()


def test_bits_and_samples_stay_float32_under_autocast() -> None:
    model, given, asked = make(num_classes=3), tokens(), condition("class")
    bits = model.bits(given, asked)
    drawn = model.sample(asked, model.Knobs(), constant(2.0), [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.bits(given, asked), bits)
        assert torch.equal(model.sample(asked, model.Knobs(), constant(2.0), [0, 1, 2]), drawn)
        assert model.loss(given, asked).total.dtype == torch.float32


def test_loss_is_the_mean_cross_entropy() -> None:
    model, given, asked = make(num_classes=3, label_dropout=0.0), tokens(), condition("class")
    losses = model.loss(given, asked)
    wanted = F.cross_entropy(model.logits(given, asked).flatten(0, 1), given.flatten())
    torch.testing.assert_close(losses.total, wanted)
    assert (
        losses.parts.keys() == {"cross_entropy"} and not losses.parts["cross_entropy"].requires_grad
    )


@pytest.mark.parametrize("kind", ["class", "text"])
def test_label_dropout_withholds_the_condition_in_the_loss_alone(kind: str) -> None:
    model, given, asked = make(**KINDS[kind], label_dropout=1.0), tokens(), condition(kind)
    withheld = model.bits(given, asked.null())
    torch.testing.assert_close(
        model.loss(given, asked).total, withheld.mean() * math.log(2) / SPEC.length
    )
    assert not torch.allclose(model.bits(given, asked), withheld)


def test_a_new_model_is_uniform() -> None:
    model = LlamaGen(SPEC, width=16, depth=2, heads=2, num_classes=3).eval()
    bits = model.bits(tokens(), condition("class"))
    torch.testing.assert_close(bits, torch.full((3,), SPEC.length * math.log2(VOCAB)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    model = make(**KINDS[kind], label_dropout=0.0).train()
    asked = condition(kind)
    if kind == "class":
        asked = Condition.of_labels(torch.tensor([0, 1, 3]))  # 3 is the null row
    model.loss(tokens(), asked).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_unused_classes_get_no_gradient() -> None:
    model = make(num_classes=3, label_dropout=0.0)
    model.loss(tokens(), Condition.of_labels(torch.tensor([0, 2, 2]))).total.backward()
    used = model.condition.embedding.weight.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [True, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_one_batch(kind: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**KINDS[kind], **NO_DROPOUT, "label_dropout": 0.0}
    model = LlamaGen(SPEC, width=32, depth=2, heads=4, **settings)
    given, asked = tokens(2), condition(kind, 2)
    given[:, 0] = torch.tensor([1, 1]) if kind == "unconditional" else torch.tensor([1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(given, asked).total.backward()
        optimizer.step()
    excess = model.eval().bits(given, asked).mean().item() - (kind == "unconditional")
    assert abs(excess) < 0.1  # without a condition, one bit says which of the two images it is
    drawn = model.sample(asked, model.Knobs(temperature=0.5), constant(1.0), [0, 1])
    assert all((row == given).all(dim=1).any() for row in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_the_sampler_sees_nearly_the_same_logits(kind: str) -> None:
    model, given, asked = make(**KINDS[kind]), tokens(), condition(kind)
    scale = constant(1.0 if kind == "unconditional" else 2.0)
    whole = replay(model, given, asked, scale)
    half = replay(model.to(torch.bfloat16), given, asked, scale)  # a caption stays in float32
    assert 0 < (half.float() - whole).abs().max() < 0.1 * whole.std()


def test_text_hides_its_padding() -> None:
    model, given, asked = make(**KINDS["text"]), tokens(), condition("text")
    assert asked.text is not None and asked.mask is not None
    other = Condition.of_text(torch.where(asked.mask[..., None], asked.text, 9.0), asked.mask)
    assert torch.equal(model.logits(given, asked), model.logits(given, other))
    unmasked = model.logits(given, Condition.of_text(other.text))  # type: ignore[arg-type]
    assert not torch.allclose(model.logits(given, asked), unmasked)


def test_a_copy_of_the_weights_is_the_model() -> None:
    """The rotary table is recomputed, not stored."""
    sizes = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "multiple_of": 16}
    model, other = make(num_classes=3), LlamaGen(SPEC, num_classes=3, **sizes).eval()
    assert not any("rotary" in name for name in model.state_dict())
    other.load_state_dict(model.state_dict())
    asked, given = condition("class"), tokens()
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin.bits(given, asked), model.bits(given, asked))


def test_sampling_leaves_nothing_behind() -> None:
    model, asked = make(num_classes=3), condition("class")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.sample(asked, model.Knobs(), constant(3.0), [0, 1, 2])
    assert model.state_dict().keys() == before.keys()
    model.train().loss(tokens(), asked).total.backward()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (FeatureSpec(4, 8, 8), "needs tokens, got continuous features of 4 x 8 x 8; type prior="),
        (TokenSpec(8, ((1, 1), (2, 2))), r"one scale, got 2 scales .* type prior=var, or train"),
    ],
)
def test_latents_that_do_not_fit_are_refused(spec: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LlamaGen.check(spec)
    with pytest.raises(ValueError, match=sentence):
        LlamaGen(spec, width=8, depth=1, heads=1)


def test_wrong_questions_are_refused() -> None:
    model, knobs, off = make(num_classes=3), LlamaGen.Knobs(), constant(1.0)
    asked = condition("class")
    with pytest.raises(ValueError, match=r"class labels from 0 to 2, got \[0, 3\]"):
        model.sample(Condition.of_labels(torch.tensor([0, 3])), knobs, off, [0, 1])
    with pytest.raises(ValueError, match="3 class labels, got none; give classes= 0 to 2"):
        model.sample(Condition(batch=3), knobs, off, [0, 1, 2])
    with pytest.raises(ValueError, match="one seed for each of 3 images, got 2"):
        model.sample(asked, knobs, off, [0, 1])
    with pytest.raises(ValueError, match=r"known tokens of shape \[3, 6\], got \[3, 4\]"):
        wrong = Known(torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool))
        model.sample(asked, knobs, off, [0, 1, 2], wrong)
    with pytest.raises(ValueError, match="prior is unconditional"):
        make().sample(asked, knobs, off, [0, 1, 2])
    with pytest.raises(ValueError, match=r"text embeddings \[3, 4, 5\], got none"):
        make(**KINDS["text"]).sample(asked, knobs, off, [0, 1, 2])
    with pytest.raises(ValueError, match="label_dropout=0; type guidance=1"):
        make(num_classes=3, label_dropout=0.0).sample(asked, knobs, constant(2.0), [0, 1, 2])
    with pytest.raises(ValueError, match="num_classes=3, text_length=4"):
        make(num_classes=3, text_length=4, text_dim=5)
