"""The absorbing prior: its loss, bound and samplers agree with each other and with enumeration."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgen.contracts import Condition, FeatureSpec, Guidance, Known, TokenSpec
from vqgen.priors.absorbing import Absorbing
from vqgen.sampling.draws import Draws
from vqgen.sampling.guidance import constant, interval
from vqgen.sampling.masking import nats
from vqgen.sampling.unmasking import unmask

VOCAB, SIZE = 11, (2, 3)
SPEC = TokenSpec(VOCAB, (SIZE,))
KINDS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "class": {"num_classes": 3},
    "text": {"text_length": 4, "text_dim": 5},
}
KERNELS = ["absorbing", "uniform"]
SAMPLERS = ["ancestral", "confidence", "halton", "random"]


def make(spec: TokenSpec = SPEC, **changes: Any) -> Absorbing:
    """A small model in eval mode whose every matrix matters (the head starts at zero otherwise)."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "multiple_of": 16, **changes}
    model = Absorbing(spec, **sizes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def condition(kind: str, batch: int = 3) -> Condition:
    generator = torch.Generator().manual_seed(1)
    if kind == "class":
        return Condition.of_labels(torch.arange(batch) % 3)
    if kind == "text":
        mask = torch.arange(4) >= torch.arange(batch)[:, None] % 4  # left padding
        return Condition.of_text(torch.randn(batch, 4, 5, generator=generator), mask)
    return Condition(batch=batch)


def tokens(batch: int = 3, spec: TokenSpec = SPEC) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(spec.vocab_size, (batch, spec.length), generator=generator)


# ---- against enumeration: two places, two codes, every state and every step

TWO = TokenSpec(2, ((1, 2),))


def states_of(model: Absorbing) -> Tensor:
    every = torch.arange(model.process.inputs)
    return torch.cartesian_prod(every, every)


def chain(model: Absorbing, steps: int) -> Tensor:
    """p(x_0) of each state when the reverse chain runs `steps` steps, by matrix products."""
    kernel, every = model.process.kernel, states_of(model)
    limit = kernel.limit
    chances = limit[every].prod(dim=1)
    rates = model.clock.schedule.rates(steps)
    for before, after in itertools.pairwise(rates):
        rate = torch.full((len(every),), before)
        guess = model.logits(every, rate, Condition(len(every))).double().softmax(dim=-1)
        guess = torch.nn.functional.pad(guess, (0, len(limit) - 2))
        keep = [torch.full(every.shape, 1 - r, dtype=torch.float64) for r in (after, before)]
        step = kernel.posterior(every, guess, *keep)  # [states, 2, inputs]
        step = step.nan_to_num(0.0)  # a state that cannot be: no token is clean at T
        move = (step[:, 0, :, None] * step[:, 1, None, :]).flatten(1)
        chances = chances @ move
    return chances


def exact_bound(model: Absorbing, clean: Tensor) -> Tensor:
    """The bound of one image in nats, by summing over every t and every noisy state."""
    kernel, every, steps = model.process.kernel, states_of(model), model.clock.steps or 0
    total = torch.zeros(()).double()
    one = torch.nn.functional.one_hot(clean, len(kernel.limit)).double()
    for t in range(1, steps + 1):
        s = torch.full((len(every),), t / steps, dtype=torch.float64)
        keep = model.clock.now(s)
        chance = kernel.marginal(one, keep[:2])[torch.arange(2), every].prod(dim=1)
        logits = model.logits(every, (1 - keep).float(), Condition(len(every)))
        terms = model.process.terms(logits, clean.expand_as(every), every, s) / steps
        total = total + (chance * terms.sum(dim=1)).sum()
    return total


@pytest.mark.parametrize("rate_condition", [False, True], ids=["still", "timed"])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_bound_chain_and_samples_agree(kernel: str, rate_condition: bool) -> None:
    """Law: the reverse chain is a distribution, its code length is under the bound, the estimate of
    the bound has the enumerated mean, and samples have the chain's shares."""
    model = make(TWO, kernel=kernel, noise_steps=4, rate_condition=rate_condition)
    chances = chain(model, 4)
    assert chances.sum().item() == pytest.approx(1)
    count = model.process.inputs
    for clean in itertools.product(range(2), repeat=2):
        image = torch.tensor(clean)
        wanted = exact_bound(model, image)
        assert wanted >= -chances[clean[0] * count + clean[1]].log() - 1e-6
        many = image.expand(3000, 2)

        def predict(noisy: Tensor, rate: Tensor) -> Tensor:
            return model.logits(noisy, rate.float(), Condition(len(noisy)))

        parts = model.process.bound(predict, many, Draws(range(3000)), samples=2)
        estimate = torch.stack(list(parts.values())).sum(dim=0).double()
        error = 4 * estimate.std() / math.sqrt(3000)
        prior = parts["prior"].mean().item()
        assert estimate.mean().item() - prior == pytest.approx(float(wanted), abs=float(error))
    drawn = model.sample(Condition(4000), model.Knobs(steps=4), constant(1.0), range(4000))
    shares = torch.bincount(drawn[:, 0] * count + drawn[:, 1], minlength=len(chances)) / 4000
    assert ((shares - chances).abs() <= 4 * (chances * (1 - chances) / 4000).sqrt() + 1e-9).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "arc_cosine"])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_law_a_network_that_says_nothing_has_the_bound_of_uniform_tokens(
    kernel: str, schedule: str
) -> None:
    """log2 K, exactly, of every image: flat logits are the posterior of tokens of any code alike,
    whatever the noisy ones say; and the chain draws every image alike."""
    model = make(TWO, kernel=kernel, noise_steps=4, schedule=schedule)
    torch.nn.init.zeros_(model.net.head.weight)
    for clean in itertools.product(range(2), repeat=2):
        image = torch.tensor(clean)
        prior = model.bits_by_part(image[None], Condition(1))["prior"]
        bits = exact_bound(model, image) / math.log(2) + prior
        assert bits.item() == pytest.approx(2, abs=1e-5)
    if schedule == "linear":  # the others leave some share clean at T, or the rates differ
        chances = chain(model, 4).unflatten(0, 2 * (model.process.inputs,))[:2, :2]
        torch.testing.assert_close(chances, torch.full((2, 2), 0.25).double())


@pytest.mark.parametrize("steps", [1, 20, 1000])
@torch.no_grad()
def test_an_untrained_uniform_prior_has_a_bound_of_log2_k(steps: int) -> None:
    spec = TokenSpec(1024, ((8, 8),))
    model = Absorbing(spec, width=8, depth=1, heads=1, kernel="uniform", noise_steps=steps).eval()
    given = tokens(64, spec)
    model.bound_samples = 16
    bits = model.bits(given, Condition(64)) / spec.length
    error = 4 * float(bits.std()) / 8
    assert bits.mean().item() == pytest.approx(10, abs=max(error, 1e-3)) and error < 0.5


@torch.no_grad()
def test_the_evidence_of_a_noisy_token_is_log_q_up_to_a_constant() -> None:
    process = make(kernel="uniform").process
    noisy, rate = tokens(4), torch.tensor([1e-3, 0.3, 0.9, 1.0])
    got = process.informed(torch.zeros(4, 6, VOCAB), noisy, rate[:, None])
    columns = torch.stack([process.kernel.matrix(1 - float(r)) for r in rate])
    wanted = columns[torch.arange(4)[:, None], noisy].log()  # q(x_t | x_0) for every x_0
    difference = got - wanted
    torch.testing.assert_close(
        difference, difference[..., :1].expand(-1, -1, VOCAB), rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_a_continuous_rate_is_the_limit_of_many_steps() -> None:
    fine, smooth = make(TWO, noise_steps=200), make(TWO, noise_steps=None)
    image = torch.tensor([1, 0])
    wanted = exact_bound(fine, image).item() / math.log(2)
    many = image.expand(2000, 2)
    parts = smooth.process.bound(
        lambda noisy, rate: smooth.net.logits(noisy, None, Condition(len(noisy))),
        many, Draws(range(2000)), samples=2,
    )  # fmt: skip
    assert parts["diffusion"].mean().item() / math.log(2) == pytest.approx(wanted, rel=0.02)
    assert parts["reconstruction"].sum() == parts["prior"].sum() == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "arc_cosine"])
@torch.no_grad()
def test_an_exact_model_of_independent_tokens_has_a_tight_bound(kernel: str, schedule: str) -> None:
    """p(x_0 | x_t) known in closed form -> the bound is the entropy, but for noise."""
    share = torch.tensor([0.5, 0.25, 0.125, 0.125])
    model = make(TokenSpec(4, ((3, 3),)), kernel=kernel, schedule=schedule, noise_steps=20)
    matrix, codes = model.process.kernel.matrix, model.process.codes

    def predict(noisy: Tensor, rate: Tensor) -> Tensor:
        columns = torch.stack([matrix(1 - float(r)) for r in rate])[:, :, :codes]
        seen = columns[torch.arange(len(noisy))[:, None], noisy]  # q(x_t | x_0) for every x_0
        return (seen * share).clamp(min=1e-30).log().float()

    torch.manual_seed(0)
    images = torch.multinomial(share, 9 * 400, replacement=True).view(400, 9)
    parts = model.process.bound(predict, images, Draws(range(400)), samples=10)
    bits = torch.stack(list(parts.values())).sum(dim=0).double() / math.log(2)
    entropy = -(share.log2()[images]).sum(dim=1)
    slack = 1.0 if kernel == "absorbing" else 4 * float((bits - entropy).std()) / 20
    prior = 9 * 2 * float(model.clock.now(torch.ones(1)))  # log_linear: never masked, then uniform
    assert (bits - entropy).mean().item() == pytest.approx(0, abs=max(0.02 * 15.75, prior) * slack)


# ---- training on a truth that is known


def field(count: int, seed: int) -> Tensor:
    """A small Markov field, [count, 4] of four codes: the first is uniform, each next one is the
    one before with probability 0.7, else one of the others."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(4, (count,), generator=generator)]
    for _ in range(3):
        moved = (columns[-1] + torch.randint(1, 4, (count,), generator=generator)) % 4
        stays = torch.rand(count, generator=generator) < 0.7
        columns.append(torch.where(stays, columns[-1], moved))
    return torch.stack(columns, dim=1)


FIELD_BITS = 2 + 3 * -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.1))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"schedule": "cosine", "rate_condition": True}, marks=pytest.mark.slow),
    ],
    ids=["linear", "cosine-timed"],
)
def test_a_trained_bound_reaches_the_entropy_of_a_markov_field(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "multiple_of": 16}
    model = Absorbing(TokenSpec(4, ((2, 2),)), **sizes, dropout=0.0, **settings)
    optimizer, train = torch.optim.Adam(model.parameters()), field(100_000, 1)
    steps, rate = (400, 4e-3) if settings else (250, 1e-2)  # what each needs to get there
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = train[torch.randint(len(train), (256,))]
        optimizer.zero_grad()
        model.loss(batch, Condition(256)).total.backward()
        optimizer.step()
    model.bound_samples = 32  # the 256 images there are repeat, and equal images have equal noise
    bits = model.eval().bits(field(1000, 2), Condition(1000)).mean().item()
    assert bits == pytest.approx(FIELD_BITS, rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
def test_overfits_one_batch(kernel: str) -> None:
    torch.manual_seed(0)
    given = tokens(2)
    settings: dict[str, Any] = {"num_classes": 3, "kernel": kernel, "noise_steps": 20}
    model = Absorbing(SPEC, width=32, depth=2, heads=4, dropout=0.0, label_dropout=0.0, **settings)
    optimizer, asked = torch.optim.Adam(model.parameters(), lr=5e-3), condition("class", 2)
    before = model.bits(given, asked).mean()
    for _ in range(100):
        optimizer.zero_grad()
        many = asked.map(lambda values: values.repeat_interleave(16, dim=0))
        model.loss(given.repeat_interleave(16, dim=0), many).total.backward()
        optimizer.step()
    model.eval()
    assert model.bits(given, asked).mean() < 0.1 * before
    for sampler in SAMPLERS if kernel == "absorbing" else SAMPLERS[:1]:
        knobs = model.Knobs(sampler=sampler, steps=8)
        drawn = model.sample(asked, knobs, constant(1.0), [0, 1])
        assert (drawn == given).float().mean() > 0.9, sampler


# ---- the loss


def test_the_elbo_loss_is_t_rho_t_on_masked_tokens() -> None:
    model, given = make(label_dropout=0.0, noise_steps=8), tokens(16)
    torch.manual_seed(3)
    got = model.loss(given, Condition(16))
    torch.manual_seed(3)
    s = model.clock.draw(16)
    noisy = torch.where(torch.rand(2, *given.shape)[0] < (1 - s).float()[:, None], given, VOCAB)
    errors = (noisy == VOCAB) * nats(model.net.logits(noisy, None, Condition(16)), given)
    t = (s * 8).round()
    wanted = (8 / t).float()[:, None] * errors  # T rho_t of the linear schedule
    torch.testing.assert_close(got.total, wanted.mean())
    mean = errors.sum() / (noisy == VOCAB).sum()
    torch.testing.assert_close(got.parts["cross_entropy"], mean)
    for weight, total in (("uniform", errors.mean()), (lambda s: 1 / s, got.total)):
        other = make(label_dropout=0.0, noise_steps=8, weight=weight)
        torch.manual_seed(3)
        torch.testing.assert_close(other.loss(given, Condition(16)).total, total)


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_the_mean_elbo_loss_is_the_bound(kernel: str) -> None:
    model = make(TWO, kernel=kernel, noise_steps=4, rate_condition=True)
    torch.manual_seed(0)
    image = torch.tensor([0, 1])
    loss = model.loss(image.expand(20_000, 2), Condition(20_000)).total.item()
    assert 2 * loss == pytest.approx(float(exact_bound(model, image)), rel=0.03)


@torch.no_grad()
def test_a_seen_token_does_not_count_and_the_mask_is_no_code() -> None:
    model = make()
    noisy = torch.tensor([[3, VOCAB, 5, VOCAB, 1, 0]])
    logits = model.net.logits(noisy, None, Condition(1))
    assert logits.shape == (1, 6, VOCAB) and model.net.embedding.num_embeddings == VOCAB + 1
    terms = model.process.terms(logits, tokens(1), noisy, torch.tensor([0.5]).double())
    assert (terms > 0).tolist() == [[False, True, False, True, False, False]]


@torch.no_grad()
def test_every_place_hears_every_place() -> None:
    model, given = make(), tokens(1)
    base = model.net.logits(given, None, Condition(1))
    for place in range(6):
        changed = given.clone()
        changed[0, place] = VOCAB
        moved = (model.net.logits(changed, None, Condition(1)) - base).abs().amax(dim=2)
        assert bool((moved > 0).all()), place


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_parameter_gets_a_gradient(kind: str, kernel: str) -> None:
    options: dict[str, Any] = {**KINDS[kind], "kernel": kernel, "rate_condition": True}
    model = make(**options, label_dropout=0.0).train()
    asked = condition(kind)
    if kind == "class":
        asked = Condition.of_labels(torch.tensor([0, 1, 3]))  # 3 is the null row
    model.loss(tokens(), asked).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_new_model_is_uniform() -> None:
    model = Absorbing(SPEC, width=16, depth=2, heads=2, num_classes=3).eval()
    bits = model.bits(tokens(), condition("class"))
    torch.testing.assert_close(bits, torch.full((3,), SPEC.length * math.log2(VOCAB)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_are_a_function_of_the_image(kernel: str) -> None:
    """No global randomness, no neighbor in the batch, no autocast, no gradient."""
    model, given = make(num_classes=3, kernel=kernel), tokens(5)
    asked = condition("class", 5)
    state = torch.get_rng_state()
    bits = model.bits(given, asked)
    assert torch.equal(torch.get_rng_state(), state) and not bits.requires_grad
    alone = [model.bits(given[i : i + 1], asked.map(lambda v, i=i: v[i : i + 1])) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), bits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.bits(given, asked), bits)
    parts = model.bits_by_part(given, asked)
    assert list(parts) == ["reconstruction", "diffusion", "prior"]
    assert bool((parts["reconstruction"] > 0).all() and (parts["diffusion"] > 0).all())
    if kernel == "absorbing":
        assert parts["prior"].sum() == 0


def test_the_prior_term_is_what_the_schedule_leaves() -> None:
    parts = make(schedule="log_linear").bits_by_part(tokens(), Condition(3))
    wanted = torch.full((3,), 6 * 1e-3 * math.log2(VOCAB))
    torch.testing.assert_close(parts["prior"], wanted, rtol=1e-4, atol=0)


# ---- sampling


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("width", "guidance"), [(32, 1.0), (100, 3.0)])
def test_an_image_is_the_same_in_any_batch(sampler: str, width: int, guidance: float) -> None:
    spec = TokenSpec(97, ((3, 4),))
    model = make(spec, width=width, heads=5 if width == 100 else 4, kv_heads=None, num_classes=3)
    asked, seeds = condition("class", 32), list(range(100, 132))
    knobs = model.Knobs(sampler=sampler, steps=4, top_k=50, top_p=0.95)

    def draw(rows: slice) -> Tensor:
        part = asked.map(lambda tensor: tensor[rows])
        return model.sample(part, knobs, constant(guidance), seeds[rows])

    together = draw(slice(0, 32))
    assert len(together.unique(dim=0)) > 24
    for size in (1, 5, 16):
        parts = [draw(slice(start, min(start + size, 32))) for start in range(0, 32, size)]
        assert torch.equal(torch.cat(parts), together), f"batch {size}"


def test_uniform_images_are_the_same_in_any_batch() -> None:
    model, knobs = make(num_classes=3, kernel="uniform"), Absorbing.Knobs(steps=5)
    together = model.sample(condition("class", 8), knobs, constant(2.0), range(8))
    for i in range(8):
        asked = Condition.of_labels(torch.tensor([i % 3]))
        assert torch.equal(model.sample(asked, knobs, constant(2.0), [i])[0], together[i])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_one_is_the_conditional_model_and_zero_the_null(sampler: str) -> None:
    model, asked = make(num_classes=3), condition("class", 4)
    knobs, rows = model.Knobs(sampler=sampler, steps=4), []
    model.net.blocks[0].register_forward_hook(lambda module, x, y: rows.append(y.shape[0]))
    plain = model.sample(asked, knobs, constant(1.0), range(4))
    assert max(rows) == 4  # no second branch
    assert torch.equal(model.sample(asked, knobs, interval(1.0, 0.2, 0.5), range(4)), plain)
    null = model.sample(asked.null(), knobs, constant(1.0), range(4))
    assert torch.equal(model.sample(asked, knobs, constant(0.0), range(4)), null)
    strong = model.sample(asked, knobs, constant(6.0), range(4))
    assert not torch.equal(strong, plain)
    for start, stop, both in ((0.0, 0.4, [8, 8, 4, 4]), (0.4, 1.0, [4, 4, 8, 8])):
        rows.clear()
        model.sample(asked, knobs, interval(6.0, start, stop), range(4))
        assert len(rows) == 4 and all(n <= most for n, most in zip(rows, both, strict=True))
        assert rows == both or sampler == "ancestral"  # there, images may have nothing to decide
    rows.clear()
    model.sample(condition("class", 8), model.Knobs(steps=60), constant(1.0), range(8))
    assert max(rows) < 8  # images that decide nothing take no part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("width", [32, 100])
@torch.no_grad()
def test_property_places_asked_alone_get_the_same_bits(width: int, dtype: torch.dtype) -> None:
    spec, counts = TokenSpec(97, ((5, 4),)), torch.Generator().manual_seed(3)
    model = make(spec, width=width, heads=5 if width == 100 else 4, kv_heads=None).to(dtype)
    noisy, front = tokens(8, spec), model.net.condition(Condition(8))
    full = model.net(noisy, None, front)
    for share in (0.01, 0.1, 0.5, 1.0):
        asked = torch.rand(noisy.shape, generator=counts) < share
        assert torch.equal(model.net(noisy, None, front, None, asked), full[asked])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [constant(1.0), interval(3.0, 0.2, 0.8)], ids=["off", "on"])
def test_property_the_savings_of_the_sampler_change_nothing(
    kind: str, sampler: str, guidance: Guidance
) -> None:
    """The same loop with every image, both branches and all places in every call."""
    model, asked, seeds = make(**KINDS[kind], rate_condition=True), condition(kind, 5), range(5)
    knobs = model.Knobs(sampler=sampler, steps=12, remask=0.1)
    keep = torch.zeros(5, 6, dtype=torch.bool)
    keep[0, 1], keep[2], keep[3, :5] = True, True, True
    known, rows = Known(tokens(5), keep), []

    def plainly(now: Tensor, wanted: Tensor, rate: float, step: int) -> Tensor:
        noisy, rates = now.masked_fill(now < 0, VOCAB), torch.full((5,), rate)
        clear, null = (model.net.logits(noisy, rates, part) for part in (asked, asked.null()))
        scale = guidance(step / 11)
        return (clear if scale == 1 else null + scale * (clear - null))[wanted]

    wanted = unmask(
        plainly,
        torch.where(keep, known.latents, -1),
        size=SIZE,
        knobs=knobs,
        rates=knobs.rates(model.clock.schedule),
        draws=Draws(list(seeds)),
    )
    model.net.blocks[0].register_forward_hook(lambda module, x, y: rows.append(len(y)))
    done = model.sample(asked, knobs, guidance, seeds, known)
    assert torch.equal(done, wanted)
    both = kind != "unconditional" and guidance(0.5) != 1
    assert max(rows) <= (8 if both else 4)  # the image that is wholly known takes no part


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_point_mass_is_sampled(
    kernel: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is sure of one image gives it, whatever the sampler and the noise."""
    if kernel == "uniform" and sampler != "ancestral":
        return
    model = make(num_classes=3, kernel=kernel)
    point = tokens(1)
    sure = 100.0 * torch.nn.functional.one_hot(point, VOCAB).float()
    monkeypatch.setattr(
        model.net,
        "forward",
        lambda noisy, rate, front, visible, asked: sure.expand(len(noisy), -1, -1)[asked],
    )
    knobs = model.Knobs(sampler=sampler, steps=5)
    drawn = model.sample(condition("class"), knobs, constant(2.0), [1, 2, 3])
    assert torch.equal(drawn, point.expand(3, -1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_subset_of_places_may_be_known(kernel: str, sampler: str) -> None:
    if kernel == "uniform" and sampler != "ancestral":
        return
    model, asked = make(num_classes=3, kernel=kernel), condition("class")
    knobs, film = model.Knobs(sampler=sampler, steps=4), []
    keep = torch.tensor([[True, False] * 3, [False] * 6, [True] * 6])
    known, seeds = Known(tokens(), keep), [1, 2, 3]
    got = model.sample(
        asked, knobs, constant(2.0), seeds, known, lambda i, n, x: film.append((i, n, x))
    )
    assert torch.equal(got[keep], known.latents[keep]) and bool((got >= 0).all())
    assert [(i, n) for i, n, _ in film] == [(i, 4) for i in range(1, 5)]
    assert torch.equal(film[-1][2], got)
    other = Known((known.latents + 1) % VOCAB, keep)
    changed = model.sample(asked, knobs, constant(2.0), seeds, other)
    assert torch.equal(changed[1], got[1]) and not torch.equal(changed[0, 1::2], got[0, 1::2])


def test_a_grid_that_is_not_square_and_a_number_of_steps_of_ones_own() -> None:
    for size in ((1, 1), (1, 7), (5, 2)):
        model = make(TokenSpec(VOCAB, (size,)))
        for steps, sampler in itertools.product((1, 3, 40), SAMPLERS):
            knobs = model.Knobs(sampler=sampler, steps=steps, schedule="cosine")
            drawn = model.sample(Condition(2), knobs, constant(1.0), [0, 1])
            assert drawn.shape == (2, size[0] * size[1]) and bool((drawn < VOCAB).all())


def test_text_hides_its_padding() -> None:
    model, given, asked = make(**KINDS["text"]), tokens(), condition("text")
    assert make().text_size is None and make(**KINDS["text"]).text_size == (4, 5)
    assert asked.text is not None and asked.mask is not None
    other = Condition.of_text(torch.where(asked.mask[..., None], asked.text, 9.0), asked.mask)
    assert torch.equal(model.net.logits(given, None, asked), model.net.logits(given, None, other))
    drawn = model.sample(asked, model.Knobs(steps=3), constant(2.0), [0, 1, 2])
    assert torch.equal(drawn, model.sample(other, model.Knobs(steps=3), constant(2.0), [0, 1, 2]))


def test_the_noise_rate_is_heard_if_it_is_wanted() -> None:
    rates = torch.tensor([0.1, 0.9])
    given = tokens(1).expand(2, -1)
    for wanted in (False, True):
        low, high = make(rate_condition=wanted).net.logits(given, rates, Condition(2))
        assert torch.equal(low, high) == (not wanted)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (FeatureSpec(4, 8, 8), "needs tokens, got continuous features of 4 x 8 x 8; type prior="),
        (TokenSpec(8, ((1, 1), (2, 2))), r"one scale, got 2 scales .* type prior=var, or train"),
    ],
)
def test_latents_that_do_not_fit_are_refused(spec: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Absorbing(spec, width=8, depth=1, heads=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kernel": "gaussian"}, "absorbing, uniform, got gaussian; type prior.kernel=absorbing"),
        ({"kernel": "unifrom"}, r"got unifrom; did you mean uniform\?"),
        ({"kernel": ["uniform"]}, r"absorbing, uniform, got \['uniform'\]"),
        ({"kernel": "uniform", "noise_steps": None}, "noise_steps=null; type prior"),
        ({"noise_steps": 0}, "noise_steps as a whole number of at least 1"),
        ({"schedule": "cosin"}, r"got cosin; did you mean cosine\?"),
        ({"weight": "elbow"}, r"got elbow; did you mean elbo\?"),
        ({"weight": [1, -1]}, r"a function of s .* got \[1, -1\]; type prior.weight=elbo"),
        ({"weight": lambda s: -s}, "w_t of at least 0"),
        ({"schedule": [1, 0.5, 0.6, 0]}, r"falling alpha-bars, got \[1, 0.5, 0.6, 0\]; type"),
        ({"bound_samples": 0}, "bound_samples as a whole number of at least 1"),
        ({"bound_samples": True}, "bound_samples as a whole number of at least 1, got True"),
        ({"bound_samples": 1.5}, "bound_samples as a whole number of at least 1, got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**changes)


def test_wrong_questions_are_refused() -> None:
    model, knobs, off = make(num_classes=3), Absorbing.Knobs(steps=2), constant(1.0)
    asked = condition("class")
    with pytest.raises(ValueError, match=r"class labels from 0 to 2, got \[0, 3\]"):
        model.sample(Condition.of_labels(torch.tensor([0, 3])), knobs, off, [0, 1])
    with pytest.raises(ValueError, match="one seed for each of 3 images, got 2"):
        model.sample(asked, knobs, off, [0, 1])
    for latents in (torch.zeros(3, 4).long(), tokens() + VOCAB, tokens() - VOCAB):
        known = Known(latents, torch.ones_like(latents, dtype=torch.bool))
        with pytest.raises(ValueError, match="wanted known tokens"):
            model.sample(asked, knobs, off, [0, 1, 2], known)
    with pytest.raises(ValueError, match="label_dropout=0; type guidance=1"):
        make(num_classes=3, label_dropout=0.0).sample(asked, knobs, constant(2.0), [0, 1, 2])
    uniform = make(kernel="uniform")
    for wrong in ({"sampler": "confidence"}, {"remask": 0.1}):
        with pytest.raises(ValueError, match=r"kernel=uniform samples ancestrally.*remask=0"):
            uniform.sample(Condition(1), Absorbing.Knobs(**wrong), off, [0])
