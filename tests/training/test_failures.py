"""What goes wrong on real machines, made to happen: nothing that was saved is lost."""

import os
import pickle
import resource
import signal
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests import tiny
from tests.training.test_training import STAGES, run, stage1, weights
from vqgen import build, runs
from vqgen.data.store import ImageSet, Kept
from vqgen.training import launch, opening
from vqgen.training.opening import Run
from vqgen.training.recipe import Counters


def at_step(module: Any, step: int, action: Any) -> None:
    """Call `action()` in the middle of a training, when so many steps are done."""
    training_step = module.training_step

    def watched(*args: Any) -> Any:
        if module.counters.step == step:
            action()
        return training_step(*args)

    module.training_step = watched


@contextmanager
def file_size_limit() -> Iterator[Any]:
    """A quota: call what is yielded, and no file can grow above 100 kB any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def ends_as_if_nothing_had_happened(
    folder: Path, kind: str, reference: Path, **settings: Any
) -> None:
    """Resume, and compare everything that decides how training goes on."""
    whole, data = STAGES[kind](reference, 6)
    run(reference / "whole", whole, data, **settings)
    resumed, data = STAGES[kind](reference, 6)
    run(folder, resumed, data, Run(folder, *opening.read_counters(folder)), **settings)
    expected, got = weights(reference / "whole"), weights(folder)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def test_disk_full_while_saving(tmp_path: Path) -> None:
    module, data = STAGES["ema"](tmp_path, 6)
    with file_size_limit() as full:
        at_step(module, 3, full)
        with pytest.raises(OSError, match=r"could not write .*last\.ckpt.*untouched"):
            run(tmp_path / "run", module, data, save_every=2)
    assert opening.read_counters(tmp_path / "run")[1].step == 2
    assert not list((tmp_path / "run").rglob("*.writing"))
    ends_as_if_nothing_had_happened(tmp_path / "run", "ema", tmp_path)


def test_a_run_folder_that_cannot_be_written() -> None:
    """The superuser may write anywhere: for this test it becomes nobody for a moment."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            with pytest.raises(OSError, match=r"cannot make the run folder.*run\.root=DIR"):
                runs.new(Path(name), "stage1", "x")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)


def test_a_run_folder_that_has_become_read_only(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        module, data = stage1(tmp_path, 2)
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            with pytest.raises(OSError, match=r"cannot write in the run folder.*train\.resume="):
                run(Path(name), module, data)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    """Else every kill would cost the disk space of a checkpoint, until nothing can be saved."""
    module, data = stage1(tmp_path, 2)
    left = [tmp_path / "run" / name for name in ("checkpoints", "tokenizer")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / ".last.ckpt.12345.writing").write_bytes(b"half")
    run(tmp_path / "run", module, data)
    assert {path.name for folder in left for path in folder.iterdir()} == {
        *("last.ckpt", "model.safetensors", "model.json")
    }


def settings_of(root: Path, **train: Any) -> dict[str, Any]:
    """The settings that deciding about a resume reads."""
    trainer = {"strategy": "auto", "devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    options = {"resume": "auto", "lr": 1.0, "accumulate": 1, **train}
    names = {"run": {"root": str(root), "name": "x"}, "data": {"workers": None}}
    return {**names, "train": options, "trainer": trainer}


def test_an_export_outlives_its_checkpoints(tmp_path: Path) -> None:
    """Where no checkpoint can be read, the sentence says what still works."""
    module, data = stage1(tmp_path, 2)
    folder = tmp_path / "run"
    run(folder, module, data, save_every=1)
    for name in runs.CHECKPOINTS:
        (folder / "checkpoints" / name).write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=rf"cannot resume.*tokenizer still works.*init={folder}"):
        opening.read_counters(folder)


def test_the_command_to_go_on_has_what_was_added_and_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "my runs")
    typed = ["train.lr=1", "run.name=x"]
    first = opening.open_run(settings, typed, None, stage="stage2", name="x")
    trainer = settings["trainer"]
    resume = f"\"train.resume='{first.folder}'\""  # a blank in the path
    assert first.again(trainer) == f"python train_stage2.py {resume}"
    monkeypatch.setattr(opening, "read_counters", lambda run: (None, Counters()))
    more = [*typed, "train.resume=auto", "train.max_steps=9", "train.accumulate=2"]
    second = opening.open_run(settings, more, first.folder, stage="stage2", name="x")
    expected = f"train_stage2.py {resume} train.max_steps=9 train.accumulate=4"
    assert second.again(trainer, "train.accumulate=4") == f"python {expected}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert second.again(trainer).startswith("torchrun --nproc_per_node=2 train_stage2.py ")
    assert second.again({**trainer, "devices": 2}).startswith("python train_stage2.py ")


def test_resume_auto_passes_over_a_run_killed_in_its_first_save(tmp_path: Path, capsys) -> None:
    """A requeued job must not fail for ever because one kill came at a bad time."""
    settings = settings_of(tmp_path / "runs")
    module, data = stage1(tmp_path, 2)
    first = opening.open_run(settings, [], None, stage="stage1", name="x")
    run(first.folder, module, data)
    second = opening.open_run(settings, [], None, stage="stage1", name="x")
    half = second.folder / "checkpoints" / ".last.ckpt.12345.writing"
    half.parent.mkdir()
    half.write_bytes(b"half")
    assert opening.find_resumed(settings, stage="stage1", name="x") == first.folder
    assert f"passing over {second.folder}" in capsys.readouterr().out
    assert not half.exists()
    half.write_bytes(b"half")
    with FileLock(second.folder / ".lock"):  # not what a run that is under way writes
        opening.find_resumed(settings, stage="stage1", name="x")
    assert half.exists()
    (first.folder / "checkpoints" / "last.ckpt").unlink()
    assert opening.find_resumed(settings, stage="stage1", name="x") is None


def test_a_resume_may_change_how_batches_reach_the_devices(tmp_path: Path) -> None:
    """Fewer workers after one died, more accumulation on a smaller machine: the same experiment."""
    settings = settings_of(tmp_path / "runs")
    module, data = stage1(tmp_path, 2)
    begun = opening.open_run(settings, [], None, stage="stage1", name="x")
    run(begun.folder, module, data)
    smaller = settings_of(tmp_path / "runs", accumulate=4) | {"data": {"workers": 0}}
    resumed = opening.open_run(smaller, [], begun.folder, stage="stage1", name="x")
    assert resumed.counters.step == 2
    with pytest.raises(ValueError, match=r"train\.lr: 1\.0 -> 2\.0"):
        changed = settings_of(tmp_path / "runs", lr=2.0)
        opening.open_run(changed, [], begun.folder, stage="stage1", name="x")


@pytest.mark.parametrize("step", [4, 6], ids=["in between", "last"])
def test_a_signal_in_a_validation_leaves_at_once_and_it_comes_again(
    tmp_path: Path, step: int
) -> None:
    module, data = stage1(tmp_path, 6)
    validation_step, seen = module.validation_step, []

    def asked(*args: Any) -> None:
        if module.counters.step == step:
            seen.append(args)
            signal.raise_signal(signal.SIGTERM)
        validation_step(*args)

    module.validation_step = asked  # type: ignore[method-assign]
    folder, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    assert run(folder, module, data, validate_every=4) == 128 + signal.SIGTERM
    assert len(seen) == 1, "the rest of the validation was not waited for"
    assert signal.getsignal(signal.SIGTERM) is before
    assert opening.read_counters(folder)[1].step == step
    assert f"\n{step},val/psnr" not in (folder / "metrics.csv").read_text()
    ends_as_if_nothing_had_happened(folder, "learned", tmp_path, validate_every=4)
    rows = [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert f"{step},val/psnr" in rows and len(rows) == len(set(rows))


@pytest.mark.parametrize("step", [4, 6], ids=["due", "last"])
def test_a_validation_that_a_resume_repeats_is_told_once(tmp_path: Path, step: int) -> None:
    """Also where the run is at its end: a requeued job may start it again and again."""
    folder = tmp_path / "run"
    for steps in (step, step, 6):
        module, data = stage1(tmp_path, steps)
        begun = Run(folder, *opening.read_counters(folder)) if folder.exists() else None
        run(folder, module, data, resume=begun, validate_every=4)
    rows = [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert {"4,val/psnr", "6,val/psnr", "6,train/total"} <= set(rows)
    assert len(rows) == len(set(rows))


def test_a_checkpoint_with_a_wrong_bit_is_not_gone_on_from(tmp_path: Path, capsys) -> None:
    module, data = stage1(tmp_path, 4)
    run(tmp_path / "run", module, data, save_every=2)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(last) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    content = bytearray(last.read_bytes())
    content[content.index(largest) + len(largest) // 2] ^= 1
    last.write_bytes(content)
    found, counters = opening.read_counters(tmp_path / "run")
    assert (found.name, counters.step) == ("previous.ckpt", 2)
    assert "last.ckpt is damaged" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    module, data = stage1(tmp_path, 2)
    begun = Run(tmp_path / "run")
    opening.check_data(begun, data)
    run(begun.folder, module, data, resume=begun)
    resumed = Run(begun.folder, *opening.read_counters(begun.folder))
    opening.check_data(resumed, tiny.data())
    fewer = ImageSet(
        Kept(data.train.pixels.images[:-1], data.train.pixels.labels[:-1]),
        size=tiny.SIZE,
        skipped={},
    )
    for changed in ({"train": fewer}, {"class_names": ("a", "b", "other")}):
        other = tiny.data()
        vars(other).update(changed)
        with pytest.raises(ValueError, match=r"other data than tiny.*init="):
            opening.check_data(resumed, other)


def test_out_of_memory_in_validation(tmp_path: Path) -> None:
    """The state before each validation is on disk."""
    module, data = STAGES["llamagen"](tmp_path, 6)

    def exhausted(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (made to happen)")

    module.validation_step = exhausted  # type: ignore[method-assign]
    with pytest.raises(
        OSError, match=r"out of memory at step 4.*train\.accumulate=2.*train\.resume="
    ):
        run(tmp_path / "run", module, data, validate_every=4)
    assert opening.read_counters(tmp_path / "run")[1].step == 4
    ends_as_if_nothing_had_happened(tmp_path / "run", "llamagen", tmp_path)


def test_a_loader_process_that_dies(tmp_path: Path) -> None:
    module, data = stage1(tmp_path, 500)
    data.workers = 1

    def shoot() -> None:
        workers = [child for child in children() if "pt_data_worker" in name_of(child)]
        os.kill(int((workers or children())[-1]), signal.SIGKILL)

    at_step(module, 3, shoot)
    with pytest.raises(OSError, match=r"loader process died.*data\.workers=0.*train\.resume="):
        run(tmp_path / "run", module, data, save_every=2)
    assert opening.read_counters(tmp_path / "run")[1].step >= 2


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def name_of(process: str) -> str:
    return Path(f"/proc/{process}/comm").read_text()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    module, data = stage1(tmp_path, 2)
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(ValueError, match=r"trained by another process.*run\.name=NAME"),
    ):
        run(tmp_path / "run", module, data)
    run(tmp_path / "run", module, data)
    assert opening.read_counters(tmp_path / "run")[1].step == 2


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten years forward and back: the budget in minutes counts what has passed."""
    module, data = stage1(tmp_path, 4)
    real, jumps = time.time, iter([3e8, -3e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    run(tmp_path / "run", module, data)
    assert module.counters.step == 4 and 0 < module.counters.seconds < 300


WANDB = {"_target_": "vqgen.training.wandb_board.WandbBoard", "project": "vqgen"}


def trained_with_wandb(tmp_path: Path, at_step_3: Any = None, **node: Any) -> str:
    """The metrics.csv of a training of five steps that does not mind its W&B."""
    module, data = stage1(tmp_path, 5)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    boards = build.boards({"logger": {**WANDB, **node}}, {}, folder, {})
    if at_step_3:
        at_step(module, 3, at_step_3)
    options: Any = {"boards": boards, "precision": "32-true"}
    assert launch.train(module, data, Run(folder), tiny.settings(), **options) == 0
    with FileLock(folder / ".lock", timeout=0):
        return (folder / "metrics.csv").read_text()


def test_wandb_without_a_folder_to_write_to(tmp_path: Path, capsys) -> None:
    """A file where W&B's folder should be: the numbers are in metrics.csv, and training goes on."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("in the way")
    assert "\n5,train/total" in trained_with_wandb(tmp_path)
    assert capsys.readouterr().out.count("training goes on") == 1


@pytest.mark.slow
def test_wandb_whose_service_dies(tmp_path: Path, capsys) -> None:
    def shoot() -> None:
        services = [child for child in children() if "wandb" in name_of(child)]
        assert services, "the test has found W&B's process"
        for service in services:
            os.kill(int(service), signal.SIGKILL)

    assert "\n5,train/total" in trained_with_wandb(tmp_path, at_step_3=shoot)
    said = capsys.readouterr().out
    assert said.count("W&B does not take what it is sent") == 1 and "training goes on" in said


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", 40 * "a"], ids=["no login", "no network"])
def test_wandb_online_that_cannot_be_reached(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """It goes on offline, and says how to send the numbers later."""
    for name, value in {
        "WANDB_API_KEY": key,
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # where nobody listens
        "WANDB_INIT_TIMEOUT": "2",
        "NETRC": str(tmp_path / "netrc"),
    }.items():
        monkeypatch.setenv(name, value)
    assert "\n5,train/total" in trained_with_wandb(tmp_path, mode="online")
    said = capsys.readouterr().out
    assert said.count("W&B cannot be reached") == 1 and "wandb sync" in said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


class Attack:
    """What runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["pickle", "zip"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, how: str) -> None:
    run_folder = tmp_path / "run"
    last = run_folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    attack = {"vqgen": {"counters": Attack(tmp_path / "harm")}}
    if how == "pickle":
        last.write_bytes(pickle.dumps(attack))
    else:
        torch.save(attack, last)
    with pytest.raises(ValueError, match="cannot resume"):
        opening.read_counters(run_folder)
    assert not (tmp_path / "harm").exists()
    torch.load(last.with_suffix(".damaged"), weights_only=False) if how == "zip" else None
    assert (tmp_path / "harm").exists() == (how == "zip"), "the attack itself works"
