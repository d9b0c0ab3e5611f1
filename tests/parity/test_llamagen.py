"""LlamaGen's transformer and sampler against outputs of the published system."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity import llamagen_peer as peer
from tests.parity.golden import Fixture, assert_matches, fixtures
from tests.parity.peer import assert_round_trip, load
from vqgen.contracts import Condition
from vqgen.nn.transformer import swiglu_width
from vqgen.priors.llamagen import LlamaGen
from vqgen.sampling.guidance import constant
from vqgen.sampling.logits import filter_logits

GPT = fixtures("llamagen_gpt")


class Case:
    """A fixture's model, inputs and outputs."""

    def __init__(self, fixture: Fixture) -> None:
        self.config = fixture.config
        self.inputs, self.outputs = fixture.tensors("inputs"), fixture.tensors("outputs")
        self.fixture, self.imported = fixture, load(fixture)
        self.model = self.imported.module
        self.tokens = self.inputs["idx"]
        self.condition = peer.condition(self.inputs)
        labels = "generation_labels" if "generation_labels" in self.inputs else "labels"
        self.to_generate = peer.condition(self.inputs, labels)
        self.steps = self.model.spec.length

    def runs(self, folder: str = "gen") -> list[str]:
        """Names of the generation runs that the outputs hold."""
        return [name.split(".tokens")[0] for name in self.outputs
                if name.startswith(folder) and name.endswith(".tokens")]  # fmt: skip


@pytest.fixture(params=GPT)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def valid_loss(model: LlamaGen, tokens: Tensor, condition: Condition, valid: Tensor) -> Tensor:
    """The peer's loss over valid samples: their nats over the number of their tokens."""
    nats = model.bits(tokens, condition) * torch.tensor(2.0).log()
    return (nats * valid).sum() / (valid.sum() * tokens.shape[1]).clamp(min=1)


def test_hidden_width(case: Case) -> None:
    model = case.config["model"]
    got = swiglu_width(
        model["dim"], multiple_of=model["multiple_of"], multiplier=model["ffn_dim_multiplier"]
    )
    assert got == case.config["ffn_hidden"]


def test_export_gives_the_peers_file_back(case: Case) -> None:
    assert_round_trip(case.imported, case.fixture.tensors("weights"))


def test_rotary_table(case: Case) -> None:
    assert_matches(case.model.rotary, case.outputs["rope_table"])


def test_condition_embedding(case: Case) -> None:
    outputs, given = case.outputs, peer.dropped(case.to_generate, case.inputs)
    forced = next(outputs[name] for name in outputs if name.endswith("embedding_forced_drop"))
    assert_matches(case.model.condition(given), forced)
    if "caption_embedding" in outputs:
        assert_matches(case.model.condition(case.condition), outputs["caption_embedding"])


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("prefix", ["train", "train_nomask"])
def test_logits_and_losses(case: Case, prefix: str, mode: bool) -> None:
    if f"{prefix}.logits" not in case.outputs:
        pytest.skip("the fixture has no such run")
    condition = peer.condition(case.inputs, masked=prefix == "train")
    case.model.train(mode).label_dropout = 0.0
    with torch.no_grad():
        logits = case.model.logits(case.tokens, condition)
        loss = case.model.loss(case.tokens, condition).total
        valid = valid_loss(case.model, case.tokens, condition, case.inputs["valid"])
    assert_matches(logits, case.outputs[f"{prefix}.logits"], "logits")
    assert_matches(loss, case.outputs[f"{prefix}.loss"], "loss")
    assert_matches(valid, case.outputs[f"{prefix}.loss_valid"], "loss of the valid samples")


def test_eval_logits(case: Case) -> None:
    if "eval_full.logits" not in case.outputs:
        pytest.skip("the fixture has no such run")
    start = case.model.condition.length - 1
    wanted = case.outputs["eval_full.logits"][:, start : start + case.steps]
    assert_matches(case.model.logits(case.tokens, case.condition), wanted)


def test_gradients(case: Case) -> None:
    case.model.label_dropout = 0.0
    case.model.loss(case.tokens, case.condition).total.backward()
    gradients = case.imported.gradients()
    for name, norm in case.config["grad_norms"].items():
        assert_matches(gradients[name].norm(), torch.tensor(norm), f"gradient norm of {name}")
    for name, wanted in case.outputs.items():
        if name.startswith("train.grad."):
            name = name.removeprefix("train.grad.")
            assert_matches(gradients[name], wanted, f"gradient of {name}")


def test_greedy_generation(case: Case) -> None:
    for run in case.runs():
        settings = case.config["cfg_runs"][run.removeprefix("gen.").removesuffix("_nomask")]
        schedule = peer.guidance(settings["cfg_scale"], settings["cfg_interval"], case.steps)
        condition = case.to_generate
        if run.endswith("_nomask"):
            condition = peer.condition(case.inputs, masked=False)
        logits = []

        def choose(row: Tensor, step: int, seen: list[Tensor] = logits) -> Tensor:
            seen.append(row)
            return row.argmax(dim=-1)

        tokens = case.model.generate(condition, choose, schedule)
        assert_matches(tokens, case.outputs[f"{run}.tokens"], run)
        assert_matches(torch.stack(logits, dim=1), case.outputs[f"{run}.logits"], run)


def test_unguided_logits_of_both_branches(case: Case) -> None:
    for run in case.runs():
        if f"{run}.raw" in case.outputs:
            raw, tokens = case.outputs[f"{run}.raw"], case.outputs[f"{run}.tokens"]
            conditions = (case.to_generate, case.to_generate.null())[: len(raw) // len(tokens)]
            with torch.no_grad():
                got = torch.cat([case.model.logits(tokens, part) for part in conditions])
            assert_matches(got, raw, run)


def test_sampled_generation(case: Case) -> None:
    if "sampled_runs" not in case.config:
        pytest.skip("the fixture has no sampled runs")
    for name, run in case.config["sampled_runs"].items():
        top_k, top_p = run["top_k"] or None, run["top_p"] if run["top_p"] < 1 else None
        generator = torch.Generator().manual_seed(run["seed"])
        logits = []

        def choose(row: Tensor, step: int, seen=logits, run=run, k=top_k, p=top_p,
                   generator=generator) -> Tensor:  # fmt: skip
            seen.append(row)
            chances = F.softmax(filter_logits(row, run["temperature"], k, p), dim=-1)
            return torch.multinomial(chances, 1, generator=generator)[:, 0]

        schedule = peer.guidance(run["cfg"], run["interval"], case.steps)
        tokens = case.model.generate(case.to_generate, choose, schedule)
        assert_matches(tokens, case.outputs[f"sampled.{name}.tokens"], name)
        assert_matches(torch.stack(logits, dim=1), case.outputs[f"sampled.{name}.logits"], name)


def test_sampling_with_temperature_zero_is_greedy(case: Case) -> None:
    knobs = case.model.Knobs(temperature=0.0)
    seeds = range(case.to_generate.batch)
    for run in case.runs():
        settings = case.config["cfg_runs"].get(run.removeprefix("gen."))
        if settings and settings["cfg_interval"] == -1:
            scale = constant(settings["cfg_scale"])
            tokens = case.model.sample(case.to_generate, knobs, scale, list(seeds))
            assert_matches(tokens, case.outputs[f"{run}.tokens"], run)


@pytest.mark.parametrize("fixture", fixtures("llamagen_sampler"))
def test_filters(fixture: Fixture) -> None:
    outputs = fixture.tensors("outputs")
    logits = outputs["logits"][:, -1]
    has_ties = torch.tensor([len(row.unique()) < len(row) for row in logits])
    for index, run in enumerate(fixture.config["settings"]):
        top_k = run["top_k"] if run["top_k"] > 0 else None
        top_p = run["top_p"] if run["top_p"] < 1 else None
        got = F.softmax(filter_logits(logits, run["temperature"], top_k, top_p), dim=-1)
        wanted = outputs[f"{index}.probs"]
        assert_matches(got.sort(dim=-1).values, wanted.sort(dim=-1).values, f"setting {index}")
        assert (got > 0).sum(dim=-1).tolist() == run["n_kept"], f"setting {index}"
        assert_matches(got[~has_ties], wanted[~has_ties], f"setting {index}")
        first = got.argmax(dim=-1, keepdim=True)
        assert_matches(first[~has_ties], outputs[f"{index}.argmax"][~has_ties])
        generator = torch.Generator().manual_seed(run["multinomial_seed"])
        drawn = torch.multinomial(got, 1, generator=generator)
        assert_matches(drawn[~has_ties], outputs[f"{index}.multinomial"][~has_ties])
