"""Two gloo processes on the CPU: one run folder, equal replicas, and the result of one process."""

import contextlib
import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from tests import tiny
from vqgen import checkpoint
from vqgen.data.images import ImageData
from vqgen.pipeline import Pipeline
from vqgen.priors.flow import Flow
from vqgen.priors.llamagen import LlamaGen
from vqgen.sampling.ranks import spread
from vqgen.training import devices, launch, opening
from vqgen.training.module import TrainingModule
from vqgen.training.opening import Run
from vqgen.training.stage1 import Stage1
from vqgen.training.stage2 import Stage2

pytestmark = pytest.mark.slow
STEPS = 6


def stage1(update: str) -> Stage1:
    """With a GAN from 40 % on, a data-dependent start, and codes that die and are revived."""
    tokenizer = tiny.tokenizer(update)
    codebook = tokenizer.bottleneck.codebook  # type: ignore[attr-defined]
    codebook.revive_below, codebook.usage_decay = 0.5, 0.5
    loss: Any = tiny.loss()
    loss.gan.lecam_weight = 0.1
    return Stage1(tokenizer, loss, tiny.recipe(STEPS), architecture={}, facts={})


def stage2(folder: Path, flow: bool = False) -> Stage2:
    """Without random draws in the loss, so that nothing but the arithmetic depends on the ranks
    (but for `flow`)."""
    torch.manual_seed(1)
    drops: Any = dict.fromkeys(
        ("label_dropout", "token_dropout", "residual_dropout", "ffn_dropout"), 0.0
    )
    prior: Any = LlamaGen(tiny.tokenizer().spec, width=32, depth=2, heads=2, num_classes=3, **drops)
    prior = tiny.continuous(Flow, tiny.kl()) if flow else prior
    return Stage2(
        prior,
        tiny.recipe(STEPS),
        image_size=tiny.SIZE,
        preview=lambda prior: torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(),
        tokenizer=folder / "tokenizer",
        architecture={},
        facts={"num_classes": 3},
    )


def train(
    folder: Path,
    module: TrainingModule,
    data: Any,
    strategy: str,
    run: Run | None = None,
    precision: str = "32-true",
    recompute: bool = False,
):
    """Through launch.train, as the commands do; -> the trained model's tensors, whole."""
    settings = tiny.settings(validate_every=3, save_every=3)
    settings["trainer"] |= {"strategy": strategy, "recompute": recompute}
    opened = run or Run(folder)
    data.samples_seen = opened.counters.samples
    folder.mkdir(exist_ok=True, parents=True)
    launch.train(module, data, opened, settings, boards=[], precision=precision)
    return module.model.state_dict()


def encoded(tokenizer: Any = None) -> Any:
    data: ImageData = tiny.data(batch=8)
    return data.latents((tokenizer or tiny.tokenizer()).eval(), "")


def sampled() -> Tensor:
    """Seven images of a prior with a random head, an odd number on purpose."""
    prior = tiny.prior()
    torch.nn.init.normal_(prior.head.weight)
    pipeline = Pipeline(tiny.tokenizer().eval(), prior)
    labels = [0, 1, 2, 0, 1, 2, 0]

    def some(rows: slice) -> Tensor:
        return pipeline.sample(labels[rows], seeds=list(range(7))[rows], batch=2)

    return spread(some, 7, batch=2)


SWITCHED: dict[str, Any] = {
    "fsdp-recompute": {"recompute": True},
    "fsdp-bf16": {"precision": "bf16-mixed"},
    "fsdp-bf16-recompute": {"precision": "bf16-mixed", "recompute": True},
}


def work(rank: int, folder: Path, port: int) -> None:
    """All that two processes do, each with its own files of results."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in place.items()})
    devices.join({"strategy": "auto", "devices": 1, "num_nodes": 1, "accelerator": "cpu"})
    results: dict[str, Any] = {"sampled": sampled()}
    settings = {"run": {"root": str(folder / "runs"), "name": None}, "train": {}}
    results["folder"] = str(opening.open_run(settings, [], None, stage="stage1", name="two").folder)
    try:
        devices.once(lambda: opening.read_counters(folder / "nowhere"))
    except ValueError as error:
        results["error"] = str(error)
    for update in ("ema", "learned"):
        module = stage1(update)
        train(folder / update, module, tiny.data(batch=8), "auto")
        results[update] = {**module.model.state_dict(), **module.average.state_dict()}
    for strategy in ("ddp", "fsdp"):
        results[strategy] = whole(train(folder / strategy, stage2(folder), encoded(), strategy))
    for kind, options in SWITCHED.items():
        trained = train(folder / kind, stage2(folder), encoded(), "fsdp", **options)
        results[kind] = whole(trained)
    run = devices.once(lambda: half_way(folder, "ddp", folder / "cut"))
    results["resumed"] = train(folder / "cut", stage2(folder), encoded(), "ddp", run)
    run = devices.once(lambda: half_way(folder, "fsdp", folder / "cut_fsdp"))
    again = train(folder / "cut_fsdp", stage2(folder), encoded(), "fsdp", run)
    results["resumed_fsdp"] = whole(again)
    for name in DRIFTING:
        spoiled = stage1("ema")
        if rank == 1:
            spoiled.average.update = drift(spoiled, name)  # type: ignore[method-assign]
        try:
            train(folder / "spoiled", spoiled, tiny.data(batch=8), "auto")
        except ValueError as error:
            results[name] = str(error)
    for kind, bad in BAD.items():
        module, data = bad(folder)
        if rank == 1:
            module.training_step = not_finite(module)  # type: ignore[method-assign]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            train(folder / kind, module, data, "ddp")
        named = [*module.named_parameters(), *module.named_buffers()]
        results[kind] = {name: value.detach().clone() for name, value in named}
        results[f"{kind}-said"] = said.getvalue()
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


BAD: dict[str, Any] = {
    "nan-stage1": lambda folder: (stage1("ema"), tiny.data(batch=8)),
    "nan-stage2": lambda folder: (stage2(folder, flow=True), encoded(tiny.kl())),
}


def not_finite(module: TrainingModule) -> Any:
    """A training step whose batch has one NaN in the fourth step (stage 1: the GAN has begun)."""
    step = module.training_step

    def spoiled(batch: dict[str, Tensor], batch_idx: int) -> None:
        if module.counters.step == 3:
            batch = {name: value.clone() for name, value in batch.items()}
            name = "images" if "images" in batch else "latents"
            batch[name][0, 0, 0, 0] = torch.nan
        step(batch, batch_idx)

    return spoiled


def half_way(folder: Path, before: str, target: Path) -> Run:
    """The run of two processes as it was after three steps, in another folder."""
    (target / "checkpoints").mkdir(parents=True)
    source = folder / before / "checkpoints" / "previous.ckpt"
    (target / "checkpoints" / "last.ckpt").write_bytes(source.read_bytes())
    run = Run(target, *opening.read_counters(target))
    assert run.counters.step == 3 and run.counters.samples == 24
    return run


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shards put together."""
    from vqgen.training import sharding

    return {name: sharding.whole(value) for name, value in tensors.items()}


DRIFTING = (
    *("model.bottleneck.codebook.weight", "average.model.bottleneck.codebook.ema_sum"),
    *("loss.gan.discriminator.main.0.weight", "loss.gan.lecam.mean_fake"),
)


def drift(module: Stage1, name: str) -> Any:
    """An average's update after which one process moves a tensor by the smallest step there is."""
    update = module.average.update

    def moved(*args: Any) -> None:
        update(*args)
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        first = tensors[name].data.view(-1)[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, 10.0)))

    return moved


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    tokenizer = tiny.tokenizer().eval()
    export = folder / "tokenizer"
    checkpoint.save_model(export, tokenizer, kind="tokenizer", architecture={}, facts={})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(work, args=(folder, port), nprocs=2, start_method="spawn")
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return folder, first, second


def rows(folder: Path) -> dict[tuple[int, str], float]:
    """metrics.csv."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {(int(step), name): float(value) for step, name, value in lines}


@pytest.mark.parametrize("update", ["ema", "learned"])
def test_codebooks_and_weights_are_equal_bit_for_bit(both: Any, update: str) -> None:
    folder, first, second = both
    assert first[update].keys() == second[update].keys()
    for name, value in first[update].items():
        assert torch.equal(value, second[update][name]), name
    revived = [v for (_, name), v in rows(folder / update).items() if name == "codebook/revived"]
    assert sum(revived) > 0, "the test has seen a revival"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_stage_2_ends_where_one_process_does(both: Any, tmp_path: Path, strategy: str) -> None:
    folder, first, second = both
    alone = train(tmp_path / "alone", stage2(folder), encoded(), "auto")
    for name, value in alone.items():
        assert torch.equal(first[strategy][name], second[strategy][name]), name
        # Adam divides by the gradient's size: a rounding difference of a tiny gradient shows
        torch.testing.assert_close(first[strategy][name], value, atol=2e-5, rtol=1e-4, msg=name)
    one, two = rows(tmp_path / "alone"), rows(folder / strategy)
    compared = [key for key in one if not key[1].startswith("perf/")]
    assert {name for _, name in compared} >= {"train/total", "train/norm", "val/bits_per_token"}
    for key in compared:
        assert two[key] == pytest.approx(one[key], rel=1e-4), key
    exported = [
        checkpoint.read_model(run / "pipeline" / "prior", "prior").tensors
        for run in (tmp_path / "alone", folder / strategy)
    ]
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", SWITCHED)
def test_shards_may_be_recomputed_and_in_bf16(both: Any, kind: str) -> None:
    """Recomputed: the same up to rounding. In bf16: weights stay float32, and the result is near
    that of float32."""
    folder, first, second = both
    compared = first["fsdp-bf16" if kind == "fsdp-bf16-recompute" else "fsdp"]
    for name, value in first[kind].items():
        assert torch.equal(value, second[kind][name]) and value.dtype == torch.float32, name
        if kind.endswith("recompute"):
            torch.testing.assert_close(value, compared[name], atol=2e-5, rtol=1e-4, msg=name)
    plain, switched = rows(folder / "fsdp"), rows(folder / kind)
    last = (STEPS, "val/bits_per_token")
    assert switched[last] == pytest.approx(plain[last], rel=0.01)
    if "bf16" in kind:
        same = switched[STEPS, "train/total"] == plain[STEPS, "train/total"]
        assert not same, "it was computed in bf16"


@pytest.mark.parametrize(("whole", "cut"), [("ddp", "resumed"), ("fsdp", "resumed_fsdp")])
def test_a_resumed_run_of_two_ends_in_the_same_bits(both: Any, whole: str, cut: str) -> None:
    _, first, second = both
    for found in (first, second):
        assert found[whole].keys() == found[cut].keys()
        for name, value in found[whole].items():
            assert torch.equal(found[cut][name], value), name


@pytest.mark.parametrize("before", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped(both: Any, tmp_path: Path, before: str) -> None:
    """A changed device count keeps the data order: three steps of two, three of one."""
    folder, first, _ = both
    run = half_way(folder, before, tmp_path / "run")
    ended = train(tmp_path / "run", stage2(folder), encoded(), "auto", run)
    for name, value in ended.items():
        torch.testing.assert_close(value, first["ddp"][name], atol=2e-5, rtol=1e-4, msg=name)


def test_sampling_split_over_ranks_gives_the_same_images(both: Any) -> None:
    _, first, second = both
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes do: a convolution's last bits depend on it
    alone = sampled()
    torch.set_num_threads(threads)
    assert torch.equal(first["sampled"], alone) and torch.equal(second["sampled"], alone)


def test_decisions_are_made_once(both: Any) -> None:
    folder, first, second = both
    assert first["folder"] == second["folder"]
    assert len(list((folder / "runs" / "stage1").iterdir())) == 1
    assert first["error"] == second["error"] and "holds no checkpoint" in first["error"]


@pytest.mark.parametrize("name", DRIFTING)
def test_replicas_that_drift_apart_stop_the_run(both: Any, name: str) -> None:
    for found in both[1:]:
        assert name in found[name] and "differ between the processes" in found[name]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_of_one_process_is_skipped_by_both(both: Any, kind: str) -> None:
    """Both say so, neither waits for ever, nothing is destroyed, and they go on alike."""
    folder, first, second = both
    for rank, found in enumerate((first, second)):
        assert found[f"{kind}-said"].count("ALARM step 3: the loss is not finite") == 1
        assert f"bad_batch_step3_rank{rank}.pt" in found[f"{kind}-said"]
    assert "those of another process" in first[f"{kind}-said"], "whose own batch is sound"
    assert max(step for step, _ in rows(folder / kind)) == STEPS
    assert first[kind].keys() == second[kind].keys()
    for name, value in first[kind].items():
        if not name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, second[kind][name]), name
            assert torch.isfinite(value).all(), name
