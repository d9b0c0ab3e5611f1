"""SIGKILL at random points, twenty times and then some for every prior, resumed each time: the same
bits as never killed."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.training.test_training import STAGES, run, weights
from vqgen.training import opening
from vqgen.training.opening import Run

KILLS = {"ema": 10, "llamagen": 10, "var": 3, "absorbing": 3, "flow": 3, "diffusion": 3}
MOST_STEPS = 5  # between the start and the kill
# children are forked from a server that has imported everything: starting one takes no seconds
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.test_training"])


def train(folder: Path, kind: str) -> None:
    """Start or resume, in a process of its own."""
    torch.set_num_threads(1)
    with (folder.parent / "printed.txt").open("a") as printed, contextlib.redirect_stdout(printed):
        torch.manual_seed(os.getpid() if (folder / "checkpoints").exists() else 0)
        begun = any((folder / "checkpoints").glob("*.ckpt"))
        opened = Run(folder, *opening.read_counters(folder)) if begun else Run(folder)
        module, data = STAGES[kind](folder.parent, KILLS[kind] * MOST_STEPS + 10)
        if not begun:
            torch.manual_seed(0)
        run(folder, module, data, resume=opened, save_every=2, validate_every=7)


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.csv"
    return path.read_text().count("train/total") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_kills_change_no_bit(tmp_path: Path, kind: str) -> None:
    draw = random.Random(kind)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = CONTEXT.Process(target=train, args=(tmp_path / "whole" / "run", kind))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    folder = tmp_path / "cut" / "run"
    for _ in range(KILLS[kind]):
        target = steps_logged(folder) + draw.randint(0, MOST_STEPS)
        process = CONTEXT.Process(target=train, args=(folder, kind))
        process.start()
        while process.is_alive() and steps_logged(folder) < target:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))  # anywhere in a step, or in the writing of a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = CONTEXT.Process(target=train, args=(folder, kind))
    last.start()
    last.join()
    assert last.exitcode == 0
    expected, got = weights(tmp_path / "whole" / "run"), weights(folder)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
