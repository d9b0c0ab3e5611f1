"""The VAR prior: its loss, likelihood and cached sampler agree with each other."""

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgen.contracts import Condition, FeatureSpec, Guidance, Known, TokenSpec
from vqgen.nn.cache import KVCache
from vqgen.priors.llamagen import LlamaGen
from vqgen.priors.var import VAR
from vqgen.priors.var_transformer import ScaleTransformer
from vqgen.sampling.draws import Draws
from vqgen.sampling.guidance import constant, guide, interval, linear
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi
from vqgen.training.optimizer import adamw

SCALES = ((1, 1), (1, 2), (2, 3), (3, 4))  # never square
SPEC = TokenSpec(11, SCALES)
ENDS = [1, 3, 9, 21]
KINDS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "class": {"num_classes": 3},
    "shared": {"num_classes": 3, "shared_modulation": True},
    "plain attention": {"num_classes": 3, "unit_qk": False},
}
SCHEDULES: dict[str, Guidance] = {
    "off": constant(1.0),
    "constant": constant(3.0),
    "linear": linear(4.0),
    "early": interval(3.0, 0.0, 0.4),
    "middle": interval(3.0, 0.3, 0.7),
    "last": interval(3.0, 0.9, 1.0),
    "twice": lambda progress: 2.0 if progress in (0.0, 1.0) else 1.0,
}


def pyramid(spec: TokenSpec = SPEC) -> FrozenPyramid:
    torch.manual_seed(3)
    codes = torch.randn(1, spec.vocab_size, 8)
    return FrozenPyramid(scales=spec.scales, codes=codes, phi=Phi(8, count=2))


def make(spec: TokenSpec = SPEC, **changes: Any) -> VAR:
    """A small model in eval mode whose every matrix matters (gates start almost shut)."""
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "drop_path": 0.0, **changes}
    given = pyramid(spec)
    torch.manual_seed(0)
    model = VAR(spec, pyramid=given, **sizes)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.25)
    return model.eval()


def new(**changes: Any) -> VAR:
    """The same as its constructor leaves it."""
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "num_classes": 3, **changes}
    return VAR(SPEC, pyramid=pyramid(), **sizes)


def condition(kind: str = "class", batch: int = 3) -> Condition:
    if kind == "unconditional":
        return Condition(batch)
    return Condition.of_labels(torch.arange(batch) % 3)


def tokens(batch: int = 3, spec: TokenSpec = SPEC) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(spec.vocab_size, (batch, spec.length), generator=generator)


def replay(model: VAR, given: Tensor, asked: Condition, schedule: Guidance) -> Tensor:
    """The logits that the cached sampler sees while it is made to say `given`."""
    logits: list[Tensor] = []

    def choose(seen: Tensor, scale: int) -> Tensor:
        logits.append(seen)
        return given[:, model.places(scale)]

    assert torch.equal(model.generate(asked, choose, schedule), given)
    return torch.cat(logits, dim=1)


# ---- the cached sampler against the network without a cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_cached_passes_are_the_teacher_forced_logits_and_guidance_their_mixture(
    kind: str, schedule: Guidance
) -> None:
    model, given, asked = make(**KINDS[kind]).double(), tokens(), condition(kind)
    with torch.no_grad():
        conditional, null = model.logits(given, asked), model.logits(given, asked.null())
    levels = model.transformer.inputs.levels
    scales = torch.tensor([schedule(k / 3) for k in range(4)], dtype=torch.float64)[levels, None]
    wanted = null + scales * (conditional - null)
    got = replay(model, given, asked, schedule)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_tokens_are_those_of_recomputing_all_scales_for_both_branches(schedule: Guidance) -> None:
    """Bit for bit, whatever the cache skipped or joined."""
    model, asked, seeds = make(num_classes=3), condition("class", 5), list(range(5))
    draws, knobs, known = Draws(seeds), model.Knobs(top_k=7), torch.zeros(5, 0, dtype=torch.long)
    for k in range(4):
        padded = F.pad(known, (0, SPEC.length - known.shape[1]))  # not read
        with torch.no_grad():
            parts = [model.logits(padded, c, k + 1) for c in (asked, asked.null())]
        logits = guide(parts[0], parts[1], schedule(k / 3))[:, model.places(k)]
        known = torch.cat((known, draws.categorical(knobs.filter(logits))), dim=1)
    assert torch.equal(model.sample(asked, knobs, schedule, seeds), known)


def rows_and_lengths(schedule: Guidance) -> list[tuple[int, int]]:
    """Rows and new positions of each pass through the blocks, for five images."""
    model, seen = make(num_classes=3), []
    model.transformer.blocks[0].register_forward_hook(
        lambda module, x, y: seen.append(tuple(y.shape[:2]))
    )
    replay(model, tokens(5), condition("class", 5), schedule)
    return seen


def test_one_pass_per_scale_and_no_null_branch_where_guidance_is_off() -> None:
    """Five images are five rows, both branches ten."""
    assert rows_and_lengths(constant(1.0)) == [(5, 1), (5, 2), (5, 6), (5, 12)]
    assert rows_and_lengths(constant(2.0)) == [(10, 1), (10, 2), (10, 6), (10, 12)]
    # the first scale of a ramp is read by the null branch in the pass of the second
    assert rows_and_lengths(linear(2.0)) == [(5, 1), (10, 3), (10, 6), (10, 12)]
    assert rows_and_lengths(interval(2.0, 0.0, 0.4)) == [(10, 1), (10, 2), (5, 6), (5, 12)]
    assert rows_and_lengths(interval(2.0, 0.9, 1.0)) == [(5, 1), (5, 2), (5, 6), (10, 21)]


def test_guidance_one_is_the_conditional_model_bit_for_bit() -> None:
    model, asked = make(num_classes=3), condition()
    plain = replay(model, tokens(), asked, constant(1.0))
    late = replay(model, tokens(), asked, interval(5.0, 0.9, 1.0))
    assert torch.equal(late[:, :9], plain[:, :9]) and not torch.equal(late[:, 9:], plain[:, 9:])


@pytest.mark.parametrize("guidance", [constant(1.0), linear(3.0)], ids=["off", "linear"])
@pytest.mark.parametrize(
    ("width", "heads", "shared"), [(32, 2, False), (64, 1, True), (96, 4, False), (160, 5, True)]
)
def test_an_image_is_the_same_in_any_batch(
    width: int, heads: int, shared: bool, guidance: Guidance
) -> None:
    model = make(
        TokenSpec(97, SCALES), width=width, heads=heads, shared_modulation=shared, num_classes=3
    )
    model.transformer.head.out.weight.data *= 0.2  # many tokens are likely
    asked, seeds = condition("class", 32), list(range(100, 132))
    knobs, given = model.Knobs(top_k=50, top_p=0.95), tokens(32, model.spec)

    def part(rows: slice) -> Condition:
        return asked.map(lambda tensor: tensor[rows])

    together = model.sample(asked, knobs, guidance, seeds)
    logits = replay(model, given, asked, guidance)
    assert len(together.unique(dim=0)) == 32
    for size in (1, 5, 16):
        slices = [slice(start, min(start + size, 32)) for start in range(0, 32, size)]
        parts = [model.sample(part(rows), knobs, guidance, seeds[rows]) for rows in slices]
        assert torch.equal(torch.cat(parts), together), f"batch {size}"
        alone = replay(model, given[:size], part(slices[0]), guidance)
        assert torch.equal(alone, logits[:size]), f"logits of batch {size}"


def test_the_cache_has_exactly_the_needed_size_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[weakref.ref[KVCache], int, int]] = []
    original = ScaleTransformer.empty_cache

    def watched(net: ScaleTransformer, batch: int, length: int) -> KVCache:
        cache = original(net, batch, length)
        made.append((weakref.ref(cache), batch, length))
        assert cache.layers[0].keys.shape == (batch, 4, length, 8)
        return cache

    monkeypatch.setattr(ScaleTransformer, "empty_cache", watched)
    model = make(num_classes=3)
    model.sample(condition(), model.Knobs(), linear(2.0), [0, 1, 2])
    assert [(batch, length) for _, batch, length in made] == [(3, 1), (6, 21)]
    assert all(cache() is None for cache, _, _ in made)


# ---- what sees what


def test_a_scale_sees_itself_and_all_before_nothing_behind() -> None:
    model = make(num_classes=3)
    vector, maps = model.condition(condition())[:, 0], model.teacher_maps(tokens())
    before = model.transformer(vector, maps)
    changed = [part.clone() for part in maps]
    changed[1][:, 2] += 1  # one position of scale 2
    moved = (model.transformer(vector, changed) - before).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 3 + [True] * 18


def test_the_last_scale_is_not_read_and_no_token_its_own_scale() -> None:
    model, given = make(num_classes=3), tokens()
    logits = model.logits(given, condition())
    for scale, (start, stop) in enumerate(zip([0, *ENDS], ENDS, strict=False)):
        other = given.clone()
        other[:, start:stop] = (other[:, start:stop] + 1) % SPEC.vocab_size
        moved = (model.logits(other, condition()) - logits).abs().amax(dim=(0, 2)) > 0
        assert moved.tolist() == [False] * stop + [True] * (21 - stop), scale


def test_teacher_inputs_are_what_sampling_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = make(num_classes=3), tokens(4)
    heard: list[Tensor] = []
    word = model.transformer.inputs.word
    word.register_forward_hook(lambda module, x, y: heard.append(x[0]))
    replay(model, given, condition("class", 4), constant(1.0))
    wanted = model.teacher_maps(given)
    assert len(heard) == 3 and all(map(torch.equal, heard, wanted))


def test_one_boolean_mask_serves_every_layer() -> None:
    model = make(depth=3)
    large = {n: b for n, b in model.named_buffers() if b.numel() >= SPEC.length**2}
    assert {n: b.dtype for n, b in large.items()} == {"transformer.mask": torch.bool}
    assert "transformer.mask" not in model.state_dict()
    masks: list[Tensor] = []
    for block in model.transformer.blocks:
        block.register_forward_pre_hook(
            lambda module, x, named: masks.append(named["mask"]), with_kwargs=True
        )
    model.logits(tokens(), Condition(3))
    assert {mask.data_ptr() for mask in masks} == {model.transformer.mask.data_ptr()}


# ---- likelihood


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_code_length_by_scale(kind: str) -> None:
    model, given, asked = make(**KINDS[kind]), tokens(), condition(kind)
    chances = model.logits(given, asked).softmax(dim=-1).gather(-1, given[..., None])[..., 0]
    parts = model.bits_by_part(given, asked)
    assert list(parts) == ["scale_1x1", "scale_1x2", "scale_2x3", "scale_3x4"]
    for part, wanted in zip(parts.values(), chances.log2().split([1, 2, 6, 12], 1), strict=True):
        torch.testing.assert_close(part, -wanted.sum(dim=1))
    torch.testing.assert_close(model.bits(given, asked), -chances.log2().sum(dim=1))


def test_scales_of_one_size_share_a_part() -> None:
    model = make(TokenSpec(5, ((1, 1), (2, 2), (2, 2))))
    given = tokens(spec=model.spec)
    parts = model.bits_by_part(given, Condition(3))
    chances = model.logits(given, Condition(3)).log_softmax(-1).gather(-1, given[..., None])
    torch.testing.assert_close(parts["scale_2x2"], -chances[:, 1:, 0].sum(1) / math.log(2))


def test_bits_sum_to_one_over_all_images() -> None:
    """Law: 2^-bits of every possible image adds up to 1."""
    model = make(TokenSpec(3, ((1, 1), (1, 2))), num_classes=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    bits = model.bits(every, Condition.of_labels(torch.full((27,), 2)))
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_follow_the_likelihood() -> None:
    model = make(TokenSpec(3, ((1, 1), (1, 2))), num_classes=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    ones = torch.ones(2000, dtype=torch.long)
    chances = 2 ** -model.bits(every, Condition.of_labels(ones[:27]))
    drawn = model.sample(Condition.of_labels(ones), model.Knobs(), constant(1.0), range(2000))
    shares = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27) / 2000
    assert ((shares - chances).abs() < 4 * (chances * (1 - chances) / 2000).sqrt() + 1e-3).all()


def test_bits_and_samples_stay_float32_under_autocast() -> None:
    model, given, asked = make(num_classes=3), tokens(), condition()
    bits = model.bits(given, asked)
    drawn = model.sample(asked, model.Knobs(), linear(2.0), [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.bits(given, asked), bits)
        assert torch.equal(model.sample(asked, model.Knobs(), linear(2.0), [0, 1, 2]), drawn)
        assert model.loss(given, asked).total.dtype == torch.float32


# ---- editing


def test_known_images_are_kept_as_pictures() -> None:
    """Where coarse tokens are made anew, the kept finer ones are chosen again, so that the kept
    part of the canvas stays nearer to the image's; all known is the image, nothing known a
    sample."""
    model, asked, knobs = make(num_classes=3), condition(), VAR.Knobs()
    given, seeds = tokens(), [1, 2, 3]

    def sampled(keep: Tensor, whole: bool) -> Tensor:
        return model.sample(asked, knobs, linear(2.0), seeds, Known(given, keep, whole))

    keep = torch.ones_like(given, dtype=torch.bool)
    assert torch.equal(sampled(keep, True), given)
    assert torch.equal(sampled(~keep, True), model.sample(asked, knobs, linear(2.0), seeds))
    keep[:, : model.ends[0]] = False
    plain, refitted = sampled(keep, False), sampled(keep, True)
    assert torch.equal(plain[keep], given[keep])

    def canvas(latents: Tensor) -> Tensor:
        made = model.pyramid.blank(len(latents))
        for scale in range(len(model.ends)):
            made = model.pyramid.advance(made, latents[:, model.places(scale)], scale)
        return made

    image = canvas(given)
    assert (canvas(refitted) - image).norm() < (canvas(plain) - image).norm()  # of 11 codes


def test_known_tokens_of_any_scale_are_kept_and_heard() -> None:
    model, asked, knobs = make(num_classes=3), condition(), VAR.Knobs()
    keep = torch.zeros(3, 21, dtype=torch.bool)
    keep[:, ::2] = True
    known = Known(tokens(), keep)
    films: list[Tensor] = []
    got = model.sample(asked, knobs, linear(2.0), [1, 2, 3], known, lambda i, n, x: films.append(x))
    assert torch.equal(got[keep], known.latents[keep])
    other = Known((known.latents + 1) % 11, keep)
    changed = model.sample(asked, knobs, linear(2.0), [1, 2, 3], other)
    assert not torch.equal(got[~keep], changed[~keep])
    everything = Known(known.latents, torch.ones_like(keep))
    assert torch.equal(
        model.sample(asked, knobs, linear(2.0), [1, 2, 3], everything), known.latents
    )
    assert [int((film >= 0).sum()) for film in films] == [3, 9, 27, 63]
    assert all(
        torch.equal(film[:, :end], got[:, :end]) for film, end in zip(films, ENDS, strict=True)
    )


def test_on_step_counts_scales() -> None:
    model, calls = make(), []
    model.sample(Condition(2), model.Knobs(), constant(1.0), [0, 1], None,
                 lambda done, total, latents: calls.append((done, total)))  # fmt: skip
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ---- training


def test_loss_is_the_mean_cross_entropy_with_smoothing() -> None:
    given, asked = tokens(), condition()
    for smoothing in (0.0, 0.1):
        model = make(num_classes=3, label_dropout=0.0, label_smoothing=smoothing)
        chances = model.logits(given, asked).log_softmax(dim=-1)
        right = chances.gather(-1, given[..., None])[..., 0]
        wanted = -((1 - smoothing) * right + smoothing * chances.mean(dim=-1)).mean()
        torch.testing.assert_close(model.loss(given, asked).total, wanted)
    assert not model.loss(given, asked).parts["cross_entropy"].requires_grad


def test_conditions_are_withheld_in_the_loss_alone_and_once() -> None:
    model, given, asked = make(num_classes=3, label_dropout=1.0), tokens(), condition()
    withheld = model.bits(given, asked.null()).mean() * math.log(2) / SPEC.length
    torch.testing.assert_close(model.loss(given, asked).total, withheld)
    for mode in (True, False):  # neither the logits nor the bits depend on the mode
        assert not torch.allclose(
            model.train(mode).bits(given, asked), model.bits(given, asked.null())
        )
        assert torch.equal(model.logits(given, asked), model.logits(given, asked))
    model.label_dropout, labels = 0.5, []
    model.condition.embedding.register_forward_pre_hook(lambda m, x: labels.append(x[0]))
    torch.manual_seed(0)
    model.loss(tokens(2000), Condition.of_labels(torch.zeros(2000, dtype=torch.long)))
    assert len(labels) == 1  # twice would withhold 3 of 4
    assert abs(float((labels[0] == 3).float().mean()) - 0.5) < 0.05


def test_training_needs_no_process_group_and_patches_nothing() -> None:
    model = new()
    model.loss(tokens(), condition()).total.backward()
    assert not torch.distributed.is_initialized()
    for layer in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Embedding):
        assert layer.reset_parameters.__module__.startswith("torch.nn.modules"), layer
    torch.manual_seed(0)
    first = nn.Linear(4, 4).weight
    torch.manual_seed(0)
    assert torch.equal(first, nn.Linear(4, 4).weight) and float(first.detach().abs().sum()) > 0


def test_a_new_model_is_almost_uniform_and_its_gates_almost_shut() -> None:
    for shared in (False, True):
        model = new(shared_modulation=shared).eval()
        bits = model.bits(tokens(), condition())
        torch.testing.assert_close(
            bits, torch.full((3,), SPEC.length * math.log2(11)), rtol=1e-2, atol=0
        )
        block = model.transformer.blocks[0]
        rows = block.offset.weight if shared else block.modulation.weight
        gates, others = rows.detach().unflatten(0, (6, -1)).split((2, 4))
        assert float(gates.std()) == pytest.approx(2e-3 * float(others.std()), rel=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_but_the_pyramid(kind: str) -> None:
    model = make(**KINDS[kind], label_dropout=0.0).train()
    asked = condition(kind)
    if kind != "unconditional":
        asked = Condition.of_labels(torch.tensor([0, 1, 2]))
        asked = Condition(3, labels=asked.labels, dropped=torch.tensor([False, False, True]))
    model.loss(tokens(), asked).total.backward()
    for name, parameter in model.named_parameters():
        got = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert got != name.startswith("pyramid."), name


def test_the_pyramid_is_a_copy_that_travels_with_the_weights() -> None:
    given = pyramid()
    model = VAR(SPEC, pyramid=given, width=16, depth=1, heads=1)
    given.codes.zero_()
    assert float(model.pyramid.codes.abs().sum()) > 0
    other = VAR(SPEC, pyramid=given, width=16, depth=1, heads=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.pyramid.codes, model.pyramid.codes)
    assert torch.equal(
        other.eval().bits(tokens(), Condition(3)), model.eval().bits(tokens(), Condition(3))
    )


def test_tables_scales_and_offsets_do_not_decay() -> None:
    model = new(shared_modulation=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = adamw(model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1).param_groups
    free = {names[id(p)].split("transformer.")[-1] for p in others["params"]}
    tables = {f"inputs.{name}.weight" for name in ("start", "level", "position")}
    tables |= {"blocks.0.offset.weight", "blocks.0.attention.log_scale", "head.out.bias"}
    assert tables <= free
    kept = {names[id(p)] for p in decayed["params"]}
    assert "transformer.blocks.0.attention.qkv.weight" in kept
    assert all(p.ndim == 2 for p in decayed["params"])
    assert not any(name.startswith("pyramid.") for name in kept | free)


def test_progressive_training_brings_the_scales_in_and_resumes_exactly() -> None:
    model, given, asked = new(progressive_steps=8, label_dropout=0.0).eval(), tokens(), condition()
    seen, state = [], {}
    for call in range(10):
        losses = model.loss(given, asked)
        scales = int(losses.parts["scales"])
        seen.append(scales)
        wanted = model.logits(given, asked)[:, : ENDS[scales - 1]].flatten(0, 1)
        target = given[:, : ENDS[scales - 1]].flatten()
        torch.testing.assert_close(losses.total, F.cross_entropy(wanted, target))
        if call == 4:
            state = copy.deepcopy(model.state_dict())
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    resumed = new(progressive_steps=8, label_dropout=0.0).eval()
    resumed.load_state_dict(state)
    assert [int(resumed.loss(given, asked).parts["scales"]) for _ in range(3)] == [3, 4, 4]


def test_scales_that_are_not_in_yet_are_neither_read_nor_trained() -> None:
    model = make(num_classes=3, progressive_steps=1000).train()
    model.calls += 400  # two of four
    model.loss(tokens(), condition()).total.backward()
    table = model.transformer.inputs.position.weight.grad
    assert table is not None and (table.abs().sum(dim=1) > 0).tolist() == [True] * 3 + [False] * 18


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    model = new(depth=4)
    rates = [block.drop[1].rate for block in model.transformer.blocks]
    assert rates == pytest.approx([0.0, 0.1 / 24 * 4 / 3, 0.1 / 24 * 8 / 3, 0.1 / 24 * 4])
    torch.manual_seed(0)
    heavy, given, asked = make(num_classes=3, drop_path=0.9), tokens(), condition()
    steady = heavy.logits(given, asked)
    assert torch.equal(heavy.logits(given, asked), steady)
    assert not torch.equal(heavy.train().logits(given, asked), steady)


def test_sizes_follow_from_the_depth() -> None:
    with torch.device("meta"):
        net = VAR(SPEC, pyramid=pyramid(), depth=5).transformer
    assert net.head.out.in_features == 320 and net.heads == 5 and net.head_width == 64


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_one_batch(kind: str) -> None:
    torch.manual_seed(0)
    settings = {"label_dropout": 0.0, "num_classes": 0, "drop_path": 0.0, **KINDS[kind]}
    model = new(**settings, gate_init=0.1)
    given, asked = tokens(2), condition(kind, 2)
    given[:, 0] = torch.tensor([1, 1]) if kind == "unconditional" else torch.tensor([1, 2])
    if kind == "unconditional":
        given[:, 1:3] = given[0, 1:3]
        given[:, 3:] = given[0, 3:]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(given, asked).total.backward()
        optimizer.step()
    assert model.eval().bits(given, asked).mean().item() < 0.2
    drawn = model.sample(asked, model.Knobs(temperature=0.5), constant(1.0), [0, 1])
    assert torch.equal(drawn, given)


# ---- refusals


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (FeatureSpec(4, 8, 8), "needs tokens of several scales, got continuous features of 4 x 8"),
        (
            TokenSpec(8, ((4, 4),)),
            r"several scales, got one scale .*prior=llamagen, or train a mult",
        ),
    ],
)
def test_latents_that_do_not_fit_are_refused(spec: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence + r"|python train_stage1.py tokenizer=var") as e:
        VAR.check(spec)
    assert "python train_stage1.py tokenizer=var" in str(e.value)
    with pytest.raises(ValueError, match=sentence):
        VAR(spec, pyramid=pyramid(), depth=1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": 0}, "prior.depth as a whole number of at least 1, got 0; type prior.depth=1"),
        ({"progressive_steps": -5}, "prior.progressive_steps as a whole number of at least 0"),
        ({"label_dropout": 1.5}, "prior.label_dropout from 0 to 1, got 1.5"),
        ({"label_smoothing": 2}, "prior.label_smoothing from 0 to 1, got 2"),
        ({"drop_path": -0.1}, "prior.drop_path from 0 to below 1, got -0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        new(**settings)


def test_the_other_prior_refuses_a_pyramid() -> None:
    with pytest.raises(ValueError, match=r"needs tokens of one scale, got 4 .*type prior=var"):
        LlamaGen.check(SPEC)


def test_wrong_questions_are_refused() -> None:
    model, knobs, off, asked = make(num_classes=3), VAR.Knobs(), constant(1.0), condition()
    with pytest.raises(ValueError, match=r"class labels from 0 to 2, got \[0, 3\]"):
        model.sample(Condition.of_labels(torch.tensor([0, 3])), knobs, off, [0, 1])
    with pytest.raises(ValueError, match="3 class labels, got none; give classes= 0 to 2"):
        model.sample(Condition(3), knobs, off, [0, 1, 2])
    with pytest.raises(ValueError, match="one seed for each of 3 images, got 2"):
        model.sample(asked, knobs, off, [0, 1])
    for latents, sentence in (
        (torch.zeros(3, 4, dtype=torch.long), r"known tokens of shape \[3, 21\], got \[3, 4\]"),
        (torch.full((3, 21), 11), "known tokens from 0 to 10, got 11 to 11"),
        (torch.full((3, 21), -1), "known tokens from 0 to 10, got -1 to -1"),
    ):
        known = Known(latents, torch.ones_like(latents, dtype=torch.bool))
        with pytest.raises(ValueError, match=sentence):
            model.sample(asked, knobs, off, [0, 1, 2], known)
    with pytest.raises(ValueError, match="prior is unconditional"):
        make().sample(asked, knobs, off, [0, 1, 2])
    with pytest.raises(ValueError, match="label_dropout=0; type guidance=1"):
        make(num_classes=3, label_dropout=0.0).sample(asked, knobs, constant(2.0), [0, 1, 2])
