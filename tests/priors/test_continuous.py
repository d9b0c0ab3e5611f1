"""The flow and the diffusion prior: loss, sampler and likelihood agree with each other."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgen.contracts import Condition, FeatureSpec, Known, Prior, TokenSpec
from vqgen.nn.dit import DiT
from vqgen.priors.diffusion import NOISE_WEIGHTS, Diffusion
from vqgen.priors.flow import PAIRINGS, Flow, optimal_pairs
from vqgen.sampling.guidance import constant, interval
from vqgen.sampling.knobs import SOLVERS
from vqgen.sampling.paths import OT, VE, VP, WEIGHTS
from vqgen.sampling.times import TRAINING_TIMES

SPEC = FeatureSpec(4, 2, 3)  # not square, on purpose
NETWORK = partial(DiT, width=32, depth=2, heads=2)
FAMILIES: dict[str, Any] = {
    "flow-ot": partial(Flow, path=OT()),
    "flow-vp": partial(Flow, path=VP()),
    "flow-ve": partial(Flow, path=VE(sigma_max=5.0)),
    "diffusion-vp": partial(Diffusion, path=VP()),
    "diffusion-ve": partial(Diffusion, path=VE(sigma_max=5.0)),
}
families = pytest.mark.parametrize("family", FAMILIES)


def make(family: str = "flow-ot", *, classes: int = 3, **changes: Any) -> Any:
    """A small model in eval mode whose every matrix matters (gates and head start at zero)."""
    torch.manual_seed(0)
    model = FAMILIES[family](SPEC, network=NETWORK, num_classes=classes, **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def latents(batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, 2, 3, generator=torch.Generator().manual_seed(seed))


def asked(batch: int = 4) -> Condition:
    return Condition.of_labels(torch.arange(batch) % 3)


def quick(model: Prior, **knobs: Any) -> Any:
    return model.Knobs(**{"steps": 4, **knobs})


@families
def test_guidance_one_is_the_conditional_model_and_zero_the_null(family: str) -> None:
    model, seeds = make(family), [0, 1, 2, 3]
    seen: list[int] = []
    model.denoiser.network.embed.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    plain = model.sample(asked(), quick(model), constant(1.0), seeds)
    assert set(seen) == {4}  # no second branch
    late = model.sample(asked(), quick(model), interval(1.0, 0.0, 1.0), seeds)
    assert torch.equal(plain, late)
    null = model.sample(asked().null(), quick(model), constant(1.0), seeds)
    zero = model.sample(asked(), quick(model), constant(0.0), seeds)
    torch.testing.assert_close(zero, null)
    assert not torch.allclose(plain, null)
    strong = model.sample(asked(), quick(model), constant(3.0), seeds)
    assert not torch.allclose(plain, strong)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_is_the_same_in_any_batch(solver: str, guidance: float) -> None:
    wanted = SOLVERS[solver].path or "vp"
    model = make(f"diffusion-{wanted}")
    tolerance = {"tolerance": 0.05} if solver == "dopri5" else {}
    steps = 8 if solver == "langevin" else 2
    knobs = quick(model, solver=solver, steps=steps, **tolerance)
    seeds, scale = list(range(50, 62)), constant(guidance)
    together = model.sample(asked(12), knobs, scale, seeds)
    for size in (1, 5):
        parts = []
        for start in range(0, 12, size):
            rows = slice(start, start + size)
            part = asked(12).map(lambda values, rows=rows: values[rows])
            parts.append(model.sample(part, knobs, scale, seeds[rows]))
        assert torch.equal(torch.cat(parts), together), f"batch {size}"
    other = model.sample(asked(12), knobs, scale, [seed + 1 for seed in seeds])
    assert not torch.allclose(other, together)


@families
@pytest.mark.parametrize("solver", ["heun", "ancestral"])
def test_known_latents_are_kept_and_heard(family: str, solver: str) -> None:
    model, given = make(family), latents()
    keep = torch.zeros_like(given, dtype=torch.bool)
    keep[..., :2] = True
    frames: list[tuple[int, int, Tensor]] = []
    knobs = quick(model, solver=solver, resample=2)
    args = (asked(), knobs, constant(2.0), [0, 1, 2, 3])
    got = model.sample(*args, Known(given, keep), lambda *frame: frames.append(frame))
    assert torch.equal(got[keep], given[keep])
    other = model.sample(*args, Known(latents(seed=2), keep))
    assert not torch.allclose(other[~keep], got[~keep])
    assert [frame[:2] for frame in frames] == [(i, 4) for i in (1, 2, 3, 4)]
    assert torch.equal(frames[-1][2], got)
    assert all(frame[2].shape == got.shape for frame in frames)


@pytest.mark.parametrize("bad", [latents() * float("nan"), latents().long()], ids=["nan", "long"])
def test_known_latents_are_finite_numbers(bad: Tensor) -> None:
    model = make()
    known = Known(bad, torch.zeros_like(bad, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"known latents (as floating-point|that are finite)"):
        model.sample(asked(), quick(model), constant(2.0), [0, 1, 2, 3], known)


def test_a_film_shows_estimates_of_the_clean_latents() -> None:
    """The first frame is not noise: at t = 0 the estimate of a new model is the data's mean."""
    torch.manual_seed(0)
    model = Flow(SPEC, network=NETWORK, predict="data").eval()
    frames: list[Tensor] = []
    model.sample(Condition(2), quick(model, solver="euler"), constant(1.0), [0, 1], None,
                 lambda done, total, x: frames.append(x))  # fmt: skip
    assert len(frames) == 4 and float(frames[0].abs().max()) == 0


@families
def test_bits_repeat_and_depend_on_their_image_alone(family: str) -> None:
    model = make(family)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.inference_mode():
        bits = model.bits(latents(), asked())
    assert torch.equal(state, torch.get_rng_state())
    alone = [
        model.bits(latents()[i : i + 1], asked().map(lambda v, i=i: v[i : i + 1])) for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(alone), bits, rtol=1e-4, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.bits(latents(), asked()), bits)
        assert model.loss(latents(), asked()).total.dtype == torch.float32


def test_probes_estimate_the_exact_trace() -> None:
    exact = make("flow-ot", likelihood_probes=0)
    guessed = make("flow-ot", likelihood_probes=100)
    wanted, got = (model.bits(latents(), asked()) for model in (exact, guessed))
    assert float((wanted - got).abs().max()) / 24 < 0.07


@pytest.mark.parametrize("path", [OT(), VP(), VE()], ids=["ot", "vp", "ve"])
def test_the_bits_of_a_new_flow_are_the_standard_normals(path: Any) -> None:
    """Its residual is 0, so the flow is that of standard normal data, by fixed steps and by
    adaptive ones."""
    given = latents()
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(given).flatten(1).sum(dim=1)
    for steps in (10, 0):
        options: Any = {"path": path, "predict": "residual", "likelihood_steps": steps}
        model = Flow(SPEC, network=NETWORK, **options).eval()
        bits = model.bits(given, Condition(4))
        torch.testing.assert_close(bits, -normal / math.log(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", [OT(), VP(), VE(sigma_max=5.0)], ids=["ot", "vp", "ve"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_kind_of_prediction_trains(path: Any, kind: Any) -> None:
    torch.manual_seed(0)
    model = Flow(SPEC, network=NETWORK, path=path, predict=kind)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    losses = model.loss(latents(), Condition(4))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("times", TRAINING_TIMES)
@pytest.mark.parametrize("weighting", NOISE_WEIGHTS)
def test_diffusion_weightings_are_their_formulas(weighting: str, times: str) -> None:
    """The loss, against the squared error of the score at the same draws, written out."""
    changes = {"weighting": weighting, "times": times, "label_dropout": 0.0}
    model, path, given = make("diffusion-vp", **changes), VP(), latents(64)
    torch.manual_seed(3)
    loss = model.loss(given, asked(64)).total
    torch.manual_seed(3)
    t = 0.999 * TRAINING_TIMES[times](64)  # the path ends there
    noise = torch.randn_like(given)
    x, value = model.denoiser.at(given, noise, t, asked(64))
    guess = path.convert(value, x, t, "residual", "score")
    score = path.target("score", given, noise, t)
    squared = (guess - score).square().flatten(1).mean(dim=1).double()
    a, b, g = path.mean(t), path.deviation(t), path.diffusion(t)
    factor = {
        "uniform": torch.ones_like(b),
        "1/lambda": b**2,
        "likelihood": g**2,
        "min_snr": (a**2 / b**2).clamp(max=5) * b**4 / a**2,  # data error = b^2 / a score error
    }[weighting]
    torch.testing.assert_close(loss.double(), (factor * squared).mean(), rtol=1e-3, atol=1e-5)


def test_plain_flow_matching_is_the_slides_loss() -> None:
    model = make("flow-ot", weighting="uniform", label_dropout=0.0)
    torch.manual_seed(3)
    got = model.loss(latents(), asked()).total
    torch.manual_seed(3)
    t, noise = torch.rand(4, dtype=torch.float64), torch.randn(4, 4, 2, 3)
    at = t.float().reshape(-1, 1, 1, 1)
    x = at * latents() + (1 - at) * noise
    guess = model.denoiser(x, t, model.denoiser.embed(asked()))
    plain = (latents() - noise - guess).square().mean()
    torch.testing.assert_close(got, plain)
    model.weighting = "1/lambda"  # of a target x_1 - e, whose mean square is 2 at every t
    torch.manual_seed(3)
    torch.testing.assert_close(model.loss(latents(), asked()).total, plain / 2)


def test_labels_are_dropped_in_the_loss_alone() -> None:
    model = make("diffusion-vp", label_dropout=1.0)
    torch.manual_seed(3)
    dropped = model.loss(latents(), asked()).total
    torch.manual_seed(3)
    assert torch.equal(dropped, model.loss(latents(), asked().null()).total)
    assert not torch.allclose(model.bits(latents(), asked()), model.bits(latents(), asked().null()))


def test_optimal_pairs_are_nearer_and_stay_in_their_class() -> None:
    data, noise, labels = latents(30), latents(30, seed=9), asked(30)
    got = optimal_pairs(data, noise, labels)
    assert (got - data).square().sum() < (noise - data).square().sum()
    for label in range(3):
        rows = labels.labels == label
        sums = [part[rows].flatten(1).sum(dim=1).sort().values for part in (got, noise)]
        assert torch.equal(*sums)
    free = optimal_pairs(data, noise, Condition(30))
    assert (free - data).square().sum() <= (got - data).square().sum()
    assert torch.isfinite(make(pairing="optimal").loss(data, labels).total)
    assert PAIRINGS["random"](data, noise, labels) is noise


def test_a_new_transformer_is_zero_and_takes_any_size() -> None:
    for size, patch in (((2, 3), 1), ((4, 6), 2), ((4, 8), 4)):
        network = DiT(channels=3, size=size, width=16, depth=1, heads=2, patch=patch)
        x = torch.randn(2, 3, *size)
        out = network(x, torch.rand(2), torch.randn(2, 16))
        assert out.shape == x.shape and not out.any()
        torch.nn.init.normal_(network.head.out.weight)
        moved = network(x, torch.rand(2), torch.randn(2, 16)) - network(
            x.roll(patch, dims=3), torch.rand(2), torch.randn(2, 16)
        ).roll(-patch, dims=3)
        assert moved.abs().max() > 1e-3  # places matter


def test_patches_go_out_as_they_come_in() -> None:
    """With blocks that do nothing, a number of the input reaches its own patch of the output."""
    network = DiT(channels=2, size=(4, 6), width=16, depth=1, heads=2, patch=2)
    torch.nn.init.normal_(network.head.out.weight)
    x, t, condition = torch.randn(1, 2, 4, 6), torch.zeros(1), torch.zeros(1, 16)
    changed = x.clone()
    changed[0, 1, 3, 2] += 1
    moved = (network(x, t, condition) - network(changed, t, condition)).abs().sum(dim=1)[0] > 1e-7
    assert bool(moved[2:, 2:4].any()) and not bool(moved[:2].any())
    assert not bool(moved[2:, :2].any() | moved[2:, 4:].any())


@families
def test_a_copy_of_the_weights_is_the_model(family: str) -> None:
    model, other = make(family), make(family)
    other.load_state_dict(model.state_dict())
    assert not any("places" in name for name in model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin.bits(latents(), asked()), model.bits(latents(), asked()))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flow-ot", "diffusion-vp", "diffusion-ve"])
def test_one_batch_is_overfitted(family: str) -> None:
    """Samples of class i become latent i."""
    torch.manual_seed(0)
    model = FAMILIES[family](SPEC, network=NETWORK, num_classes=3, label_dropout=0.0)
    given, labels = latents(3), asked(3)
    before = float(model.eval().bits(given, labels).mean())
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(500):
        optimizer.zero_grad()
        model.loss(given.repeat(16, 1, 1, 1), asked(48)).total.backward()
        optimizer.step()
    drawn = model.eval().sample(labels, model.Knobs(steps=30), constant(1.0), [0, 1, 2])
    assert float((drawn - given).square().mean()) < 0.05
    assert float(model.bits(given, labels).mean()) < before - 24


def test_latents_that_do_not_fit_are_refused() -> None:
    for family, name in ((Flow, "flow"), (Diffusion, "diffusion")):
        for scales in (((2, 3),), ((1, 1), (2, 2))):
            sentence = rf"prior={name} needs .* got tokens .* as_features=true .*train_stage1\.py"
            with pytest.raises(ValueError, match=sentence):
                family.check(TokenSpec(8, scales))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"predict": "epsilon"}, "predict as one of velocity, .*, got epsilon; type prior.predict"),
        ({"weighting": "snr"}, "weighting as one of uniform, 1/lambda, got snr; type prior.weig"),
        ({"times": "cosine"}, "times as one of uniform, logit_normal, got cosine; type prior.t"),
        ({"pairing": "ot"}, "pairing as one of random, optimal, got ot; type prior.pairing=rand"),
        ({"likelihood_steps": -1}, "at least 0, got -1; type prior.likelihood_steps=32"),
        ({"likelihood_probes": 0.5}, "at least 0, got 0.5; type prior.likelihood_probes=1"),
        ({"network": partial(NETWORK, patch=2)}, "divides the latents' 2 x 3, got 2; type prior"),
    ],
)
def test_impossible_settings_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Flow(SPEC, **{"network": NETWORK, **change})


def test_the_straight_path_is_no_diffusion() -> None:
    with pytest.raises(ValueError, match="path as one of vp, ve, got ot; type path=vp, or prior=f"):
        Diffusion(SPEC, network=NETWORK, path=OT())


def test_a_bound_needs_an_evaluation() -> None:
    with pytest.raises(ValueError, match=r"got 0; type prior\.likelihood_evaluations=16"):
        Diffusion(SPEC, network=NETWORK, likelihood_evaluations=0)


def test_wrong_questions_are_refused() -> None:
    model, off = make("diffusion-ve"), constant(1.0)
    with pytest.raises(ValueError, match="one seed for each of 4 images, got 1"):
        model.sample(asked(), quick(model), off, [0])
    with pytest.raises(ValueError, match="wanted 2 class labels"):
        model.sample(Condition(2), quick(model), off, [0, 1])
    with pytest.raises(ValueError, match="solver=ddim needs path=vp, this prior has path=ve; type"):
        model.sample(asked(), quick(model, solver="ddim"), off, [0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=r"for edit=inpaint .*, got resample=3 without; leave resam"
    ):
        model.sample(asked(), quick(model, resample=3), off, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"known latents of shape \[4, 4, 2, 3\], got \[1, 4"):
        known = Known(latents(1), torch.ones(1, 4, 2, 3, dtype=torch.bool))
        model.sample(asked(), quick(model), off, [0, 1, 2, 3], known)
    with pytest.raises(ValueError, match="label_dropout=0; type guidance=1"):
        make(label_dropout=0.0).sample(asked(), quick(model), constant(2.0), [0, 1, 2, 3])
