"""Killed and asked to leave, as real processes: resume ends in the same bits, nothing is
damaged."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[2]
STEPS = 12
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
WORDS = [
    *("tokenizer=vqvae", "logger=files", "trainer.accelerator=cpu", "trainer.precision=32-true"),
    *(f"train.max_steps={STEPS}", "train.max_minutes=null", "train.global_batch=4"),
    *("train.save_every=2", "train.validate_every=5", "train.log_every=1", "run.name=killed"),
    *("tokenizer.encoder.channels=32", "tokenizer.decoder.channels=32"),
]


def start(
    root: Path, *more: str, words: Sequence[str] = WORDS, under: Sequence[str] = ()
) -> subprocess.Popen:
    """`python [under] train_stage1.py ...` as a process of its own, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = str(CHECKOUT / "train_stage1.py")
    command = [sys.executable, *under, script, f"run.root={root}", *words, *more]
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run_of(root: Path) -> Path:
    """The one run under root."""
    return next((root / "stage1").iterdir())


def wait_for_steps(root: Path, count: int) -> None:
    """Until metrics.csv tells of so many steps."""
    for _ in range(1200):
        for path in root.glob("stage1/*/metrics.csv"):
            if f"\n{count},train/total" in path.read_text():
                return
        time.sleep(0.05)
    raise AssertionError(f"step {count} was not reached")


def trained(root: Path) -> dict[str, torch.Tensor]:
    """Model, average and optimizer of the last checkpoint."""
    path = run_of(root) / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["vqgen"]["counters"]["step"] == STEPS
    return saved["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS, ids=[how.name for how in SIGNALS])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, how: signal.Signals) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait() == 0
    process = start(cut)
    wait_for_steps(cut, 5)
    process.send_signal(how)
    code = process.wait()
    if how is signal.SIGKILL:
        assert code == -how
        name = ["run.name=killed", "train.resume=auto"]  # the rest of what was typed is remembered
        assert start(cut, words=name).wait() == 0
    else:
        assert code == 128 + how
        printed = process.stdout.read().decode()  # type: ignore[union-attr]
        _, *command = shlex.split(printed.partition("to go on type: ")[2].splitlines()[0])
        subprocess.run([sys.executable, *command], cwd=CHECKOUT, check=True)
    assert len(list((cut / "stage1").iterdir())) == 1, "the same run goes on"
    expected, got = trained(whole), trained(cut)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.slow
@pytest.mark.parametrize(("under", "code"), [((), 143), (TORCHRUN, 1)], ids=["devices", "torchrun"])
def test_two_processes_save_and_leave_on_sigterm(
    tmp_path: Path, under: tuple[str, ...], code: int
) -> None:
    """Sent to the process that started them: they save once, at the same step, and go on to the
    same bits. torchrun itself makes 1 of every code; started by vqgen it keeps the code."""
    two = () if under else ("trainer.devices=2",)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, *two, under=under).wait() == 0
    process = start(cut, *two, "train.save_every=100", "train.validate_every=100", under=under)
    wait_for_steps(cut, 5)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == code, printed.decode()
    assert printed.count(b"saved and left on signal 15 at step") == 1, printed.decode()
    assert b"validation at step" not in printed, "a scheduler does not wait for one"
    assert (run_of(cut) / "checkpoints" / "last.ckpt").is_file()
    name = ["run.name=killed", "train.resume=auto"]  # trainer.devices is remembered too
    assert start(cut, words=name, under=under).wait() == 0
    expected, got = trained(whole), trained(cut)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.slow
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    assert start(tmp_path).wait() == 0
    last = run_of(tmp_path) / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    process = start(tmp_path, "train.resume=auto")
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert b"last.ckpt is damaged" in printed and b"trying the one before it" in printed
    assert trained(tmp_path)
    assert last.with_suffix(".damaged").is_file(), "set aside, not kept as the good one before"
    process = start(tmp_path, "train.resume=auto")
    printed, _ = process.communicate()
    assert process.returncode == 0 and b"has used up its budget (train.max_steps=" in printed


@pytest.mark.slow
def test_resuming_another_experiment_is_refused(tmp_path: Path) -> None:
    assert start(tmp_path, "train.max_steps=2").wait() == 0
    process = start(tmp_path, "train.resume=auto", "train.lr=0.5")
    printed, _ = process.communicate()
    assert process.returncode == 2 and b"train.lr" in printed and b"-> 0.5" in printed
