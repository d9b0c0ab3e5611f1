"""VAR's transformer and sampler against outputs of the published system."""

from functools import partial

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.parity import golden
from tests.parity import var_peer as peer
from tests.parity.peer import assert_round_trip, load
from vqgen.contracts import Condition
from vqgen.sampling.logits import filter_logits

assert_matches = partial(golden.assert_matches, share=2e-5)
assert_gradient_matches = partial(golden.assert_matches, share=1e-4)


class Case:
    """A fixture's model, tokenizer, inputs and outputs."""

    def __init__(self, fixture: golden.Fixture) -> None:
        self.fixture, self.config = fixture, fixture.config
        self.io = fixture.tensors("io")
        self.imported = load(fixture, beside=fixture.beside(self.config["vae"]))
        self.tokenizer, self.model = self.imported.tokenizer, self.imported.module
        self.tokens = self.io["in/gt_BL"]
        self.condition = Condition.of_labels(self.io["in/label_B"])

    def runs(self) -> dict[str, float]:
        """The greedy runs and their cfg."""
        return {f"gen_argmax_cfg{cfg}": cfg for cfg in self.config["gen"]["argmax_cfgs"]}

    def seeded(self) -> dict[str, dict]:
        """The seeded runs that this fixture holds, but for the one without tokens."""
        runs = self.config["gen"]["seeded"]
        return {
            f"gen_{name}": run
            for name, run in runs.items()
            if not run["more_smooth"] and f"out/gen_{name}/tokens_0" in self.io
        }


@pytest.fixture(params=golden.fixtures("var"))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_teacher_inputs(case: Case) -> None:
    maps = torch.cat(case.model.teacher_maps(case.tokens), dim=1)
    assert_matches(maps, case.io["in/x_BLCv_wo_first_l"])


@torch.no_grad()
def test_every_intermediate(case: Case) -> None:
    net, seen = case.model.transformer, {}

    def keep(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda m, x, y: seen.__setitem__(name, y))

    for i, block in enumerate(net.blocks):
        keep(f"hidden_after_block_{i}", block)
    keep("hidden_before_blocks", net.inputs)
    keep("block0_attn_branch_before_gamma", net.blocks[0].attention)
    keep("block0_ffn_branch_before_gamma", net.blocks[0].ffn)
    net.head.out.register_forward_hook(lambda m, x, y: seen.__setitem__("head_nm", x[0]))
    seen["logits"] = case.model.logits(case.tokens, case.condition)
    seen["cond_BD"] = case.model.condition(case.condition)[:, 0]
    if "out/shared_gss_B16C" in case.io:
        seen["shared_gss_B16C"] = net.modulation(seen["cond_BD"])[:, None]
    for name, got in seen.items():
        assert_matches(got, case.io[f"out/{name}"], name)
    assert len(seen) >= 8


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@torch.no_grad()
def test_withheld_labels(case: Case, mode: bool) -> None:
    case.model.train(mode)
    null = case.model.logits(case.tokens, case.condition.null())
    assert_matches(null, case.io["out/logits_all_labels_dropped"])
    mixed = Condition(2, labels=case.condition.labels, dropped=case.io["out/drop_mask_rate0.5"])
    got = case.model.logits(case.tokens, mixed)
    assert_matches(got, case.io["out/logits_mixed_drop_rate0.5"])


@torch.no_grad()
def test_a_tiny_input_shows_the_norms_epsilon(case: Case) -> None:
    probe = case.config["eps_probe"]
    weights = case.fixture.tensors("weights")
    weights |= {name: weights[name].float() * probe["scale"] for name in probe["keys"]}
    case.imported.replace_weights(weights)
    model = case.model
    assert_matches(model.logits(case.tokens, case.condition), case.io["out/eps_probe_logits"])


def test_loss_bits_and_gradients(case: Case) -> None:
    case.model.label_dropout = 0.0
    loss = case.model.loss(case.tokens, case.condition).total
    loss.backward()
    assert_matches(loss[None], case.io["out/loss"])
    bits = case.model.bits(case.tokens, case.condition)
    assert_matches(bits * torch.tensor(2.0).log(), case.io["out/ce_BL"].sum(dim=1))
    gradients = case.imported.gradients()
    names = [name for name in case.io if name.startswith("out/grad/")]
    assert names
    for name in names:
        wanted = case.io[name]
        got = gradients[name.removeprefix("out/grad/")].reshape(wanted.shape)
        assert_gradient_matches(got, wanted, name)
    for name, norm in case.config["info"]["grad_l2_norms"].items():
        assert_gradient_matches(gradients[name].norm(), torch.tensor(norm), f"norm of {name}")


def test_export_gives_the_peers_file_back(case: Case) -> None:
    assert_round_trip(case.imported, case.fixture.tensors("weights"))


def test_greedy_generation(case: Case) -> None:
    for run, cfg in case.runs().items():
        logits: list[Tensor] = []

        def choose(scale: Tensor, k: int, seen: list[Tensor] = logits) -> Tensor:
            seen.append(scale)
            return scale.argmax(dim=-1)

        tokens = case.model.generate(case.condition, choose, peer.guidance(cfg))
        assert_matches(tokens, peer.by_scale(case.io, run, "tokens"), run)
        assert_matches(torch.cat(logits, dim=1), peer.by_scale(case.io, run, "logits"), run)
        raw = [case.model.logits(tokens, c) for c in (case.condition, case.condition.null())]
        assert_matches(torch.cat(raw), peer.by_scale(case.io, run, "raw_logits_2B"), run)
        check_pictures(case, run, tokens)


@torch.no_grad()
def check_pictures(case: Case, run: str, tokens: Tensor) -> None:
    """Canvas and next map after every scale, and the image."""
    pyramid, scales = case.model.pyramid, case.model.spec.scales
    canvas = pyramid.blank(len(tokens))
    for k in range(len(scales)):
        canvas = pyramid.advance(canvas, tokens[:, case.model.places(k)], k)
        assert_matches(canvas, case.io[f"out/{run}/fhat_{k}"], f"{run} canvas {k}")
        if k + 1 < len(scales):
            got = rearrange(
                pyramid.next_input(canvas, k + 1), "b (h w) c -> b c h w", h=scales[k + 1][0]
            )
            assert_matches(got, case.io[f"out/{run}/next_map_{k + 1}"], f"{run} map {k + 1}")
    images = (case.tokenizer.decode(tokens).clamp(-1, 1) + 1) / 2
    assert_matches(images, case.io[f"out/{run}/image"], run)


def test_seeded_generation_with_the_recorded_tokens(case: Case) -> None:
    if not case.seeded():
        pytest.skip("the fixture has no seeded runs")
    for run, settings in case.seeded().items():
        tokens, seen = peer.by_scale(case.io, run, "tokens"), []

        def choose(logits: Tensor, k: int, seen=seen, tokens=tokens) -> Tensor:
            seen.append(logits)
            return tokens[:, case.model.places(k)]

        case.model.generate(case.condition, choose, peer.guidance(settings["cfg"]))
        logits = torch.cat(seen, dim=1)
        assert_matches(logits, peer.by_scale(case.io, run, "logits"), run)
        masked = filter_logits(logits, 1.0, settings["top_k"] or None, settings["top_p"] or None)
        assert_same_filter(masked, peer.by_scale(case.io, run, "logits_masked"), run)
        check_pictures(case, run, tokens)


def test_generation_without_a_class(case: Case) -> None:
    tokens = case.model.generate(
        Condition.of_labels(torch.zeros(1, dtype=torch.long)).null(),
        lambda logits, scale: logits.argmax(dim=-1),
        peer.guidance(0.0),
    )
    assert_matches(tokens, peer.by_scale(case.io, "gen_uncond", "tokens"))


def assert_same_filter(got: Tensor, wanted: Tensor, what: str) -> None:
    assert torch.equal(got.isinf(), wanted.isinf()), what
    kept = wanted.isfinite()
    assert_matches(got[kept], wanted[kept], what)


@pytest.mark.parametrize("fixture", golden.fixtures("sampling_filter"))
def test_filters(fixture: golden.Fixture) -> None:
    io = fixture.tensors("io")
    for i, (top_k, top_p) in enumerate(fixture.config["combos_topk_topp"]):
        masked = filter_logits(io["in/logits"], 1.0, top_k or None, top_p or None)
        assert_same_filter(masked, io[f"out/masked_{i}"], f"top_k={top_k} top_p={top_p}")
