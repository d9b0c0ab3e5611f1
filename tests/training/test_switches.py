"""recompute and compile change no result; plan=true tells what a run takes."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.training.test_training import STAGES, run, stage2
from vqgen.contracts import Condition
from vqgen.priors.llamagen import LlamaGen
from vqgen.training import devices, plan, switches, trial
from vqgen.training.stage1 import Stage1

TOKENS = torch.randint(tiny.CODES, (4, 6), generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of one training loss; "loss" is the loss itself."""
    torch.manual_seed(3)
    condition = Condition.of_labels(torch.tensor([0, 1, 2, 0]))
    total = model.loss(TOKENS, condition).total  # type: ignore[operator]
    total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": total.detach()}


def test_recomputed_activations_give_the_same_bits_with_dropout() -> None:
    plain, switched = tiny.prior().train(), tiny.prior().train()
    switches.apply_(switched, recompute=True)
    expected, got = gradients(plain), gradients(switched)
    assert (
        expected.keys() == got.keys() and plain.state_dict().keys() == switched.state_dict().keys()
    )
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def test_recomputing_keeps_less() -> None:
    """Bytes that the graph of the loss holds on to, besides the weights."""

    def held(recompute: bool) -> int:
        model, sizes = tiny.prior(), {}
        switches.apply_(model, recompute=recompute)

        def pack(value: Tensor) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = model.loss(TOKENS, Condition.of_labels(torch.zeros(4, dtype=torch.long)))
        assert loss.total.requires_grad
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for place, size in sizes.items() if place not in weights)

    assert held(True) < 0.6 * held(False)


def one_block() -> LlamaGen:
    """In eval mode: compiled code drops other units."""
    torch.manual_seed(1)
    spec = tiny.tokenizer().spec
    return LlamaGen(spec, width=32, depth=1, heads=2, num_classes=3, label_dropout=0.0).eval()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_up_to_rounding() -> None:
    plain, switched = one_block(), one_block()
    switches.apply_(switched, compile=True)
    expected, got = gradients(plain), gradients(switched)
    assert plain.state_dict().keys() == switched.state_dict().keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_the_switches_reach_the_training(tmp_path: Path) -> None:
    """The trainer node's words switch the trained model; the run ends in the same bits."""
    ended = []
    for recompute in (False, True):
        module, data = stage2(tmp_path, 3)
        settings = tiny.settings()
        settings["trainer"]["recompute"] = recompute
        torch.manual_seed(5)
        folder = tmp_path / str(recompute)
        run(folder, module, data, settings=settings)
        assert ("forward" in vars(module.model.blocks[0])) is recompute  # type: ignore[index,arg-type]
        ended.append(module.model.state_dict())
    for name, value in ended[0].items():
        assert torch.equal(value, ended[1][name]), name


def planned(strategy: str = "ddp", world: int = 1, **train: Any) -> dict[str, str]:
    options = {"max_steps": 10, "max_minutes": None, "lr": 1e-3, "lr_end": 0.0, "warmup_steps": 0}
    options |= {"betas": [0.9, 0.95], "weight_decay": 0.0, "clip": 1.0, "ema": 0.9}
    options |= {"accumulate": 1, "log_every": 1, "global_batch": 8, "seed": 0}
    options |= {"validate_every": 5, "save_every": 5, **train}
    settings = {"train": options, "trainer": {"strategy": strategy}}
    return plan.plan(settings, tiny.prior(), devices=world, micro=8 // world, images=40)


def test_the_plan_is_what_the_checkpoint_takes(tmp_path: Path) -> None:
    module, data = stage2(tmp_path, 2)
    run(tmp_path / "run", module, data)
    parameters = plan.count(module.model)
    rows = planned()
    assert rows["parameters"] == f"{parameters:,}"
    size = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    assert rows["disk"].startswith(plan.gib(2 * 16 * parameters))
    assert size == pytest.approx(16 * parameters, rel=0.35), "tiny: names and counters weigh in"
    assert rows["images seen"] == "80, 2.0 epochs of 40"


def test_shards_divide_the_memory() -> None:
    parameters = plan.count(tiny.prior())
    assert planned("ddp", 4)["memory per device"].startswith(plan.gib(20 * parameters))
    assert planned("fsdp", 4)["memory per device"].startswith(plan.gib(5 * parameters))


def test_a_plan_refuses_what_training_would() -> None:
    with pytest.raises(ValueError, match=r"train\.lr=1e-4"):
        planned(lr=0.0)
    with pytest.raises(ValueError, match=r"train\.save_every as a number of at least 1, got 0"):
        planned(save_every=0)


def test_an_unknown_strategy_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"trainer=ddp or trainer=fsdp"):
        devices.join({"strategy": "deepspeed", "devices": 1, "accelerator": "cpu", "num_nodes": 1})


def test_a_budget_in_minutes_is_planned() -> None:
    assert planned(max_steps=None, max_minutes=7)["budget"] == "7 minutes"
    assert planned(max_steps=2000, max_minutes=None)["budget"] == "2,000 steps"


def timed(budget: dict[str, Any], accelerator: str = "auto", state: float = 1e6) -> str:
    settings = {
        "train": {"max_steps": None, "max_minutes": None, "accumulate": 2, **budget},
        "trainer": {"accelerator": accelerator, "recompute": False},
    }
    options: Any = {"device": "cpu", "precision": "32-true", "state": state, "micro": 16}
    return trial.time_row(settings, slow, **options)


def slow(images: int) -> Any:
    """A loss that takes 10 ms per image."""
    model = nn.Linear(1, 1)

    def loss() -> Tensor:
        time.sleep(0.01 * images)
        return model(torch.ones(1, 1)).sum()

    return model, loss


def test_a_plan_tells_how_long_steps_take_here() -> None:
    """Eight images on a CPU, scaled to the micro-batch of 16, twice per step: 0.32 s and more."""
    row = timed({"max_steps": 1000})
    found = re.match(r"([\d.]+) minutes for 1,000 steps: ([\d.]+) s per step, measured", row)
    assert found is not None and "this machine's cpu" in row and "8 images at once" in row
    assert 0.32 <= float(found[2]) < 0.6 and float(found[1]) == pytest.approx(
        float(found[2]) * 1000 / 60, rel=0.02
    )
    assert re.match(r"about 1\d\d steps: ", timed({"max_minutes": 1.0}))


def test_a_plan_says_why_no_time_was_measured() -> None:
    assert timed({"max_steps": 1}, state=1e18).startswith("not measured: the whole model does not")
    if not torch.cuda.is_available():
        assert timed({"max_steps": 1}, "gpu") == "not measured: there is no GPU here"


@pytest.mark.parametrize("kind", STAGES)
def test_steps_of_every_family_can_be_tried(tmp_path: Path, kind: str) -> None:
    """On random numbers: a loss with a gradient."""
    module, _ = STAGES[kind](tmp_path, 1)
    if isinstance(module, Stage1):
        made = trial.of_tokenizer(lambda: module.model, lambda: module.loss, tiny.SIZE)
    else:
        tokenizer = tiny.tokenizer()
        made = trial.of_prior(lambda: (tokenizer, module.model), 3, encodes=True)
    model, loss = made(2)
    loss().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
