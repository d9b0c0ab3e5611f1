"""Two gloo ranks with different images: their codebooks stay equal, bit for bit."""

import datetime
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.multiscale import MultiScaleQuantizer
from vqgen.tokenizers.vq import VectorQuantizer

WORLD = 2
STEPS = 12


def _meet(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )


def _train(rank: int, folder: str, update: Literal["learned", "ema"]) -> None:
    _meet(rank, folder)
    torch.manual_seed(0)
    book = Codebook(size=33, dim=4, update=update, revive_below=0.3, usage_decay=0.7)
    model = VectorQuantizer(codebook=book)
    torch.manual_seed(100 + rank)  # other images, other random draws
    revived, first = 0.0, torch.empty(0)
    for step in range(STEPS):
        for _ in range(2):  # gradient accumulation
            model(torch.randn(3, 4, 2, 3) + rank + step)
        if step == 0:
            first = book.rows().detach().clone()
        revived += model.after_step()["codebook/revived"]
    torch.save({"first": first, "revived": revived, **book.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("update", ["ema", "learned"])
def test_codebooks_are_equal_on_both_ranks(tmp_path: Path, update: str) -> None:
    start_processes(_train, args=(str(tmp_path), update), nprocs=WORLD, start_method="spawn")
    ours, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    assert ours["revived"] == other["revived"] > 0
    for name in ours.keys() - {"revived"}:
        assert torch.equal(ours[name], other[name]), name
    means = ours["first"].mean(1)  # the start held vectors of both ranks, whose means are 0 and 1
    assert means.min() < 0 and means.max() > 1


def _train_pyramid(rank: int, folder: str, own: bool) -> None:
    _meet(rank, folder)
    torch.manual_seed(0)
    book = Codebook(size=33, dim=4, update="ema", revive_below=0.3, usage_decay=0.7)
    model = MultiScaleQuantizer(
        codebook=book, scales=[1, [2, 3]], own_codebooks=own, scale_dropout=0.5
    )
    torch.manual_seed(100 + rank)
    revived = 0.0
    for step in range(STEPS):
        model(torch.randn(3, 4, 2, 3) + rank + step)
        revived += model.after_step()["codebook/revived"]
    torch.save({"revived": revived, **model.codebooks.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_codebooks_of_a_pyramid_are_equal_on_both_ranks(tmp_path: Path, own: bool) -> None:
    start_processes(_train_pyramid, args=(str(tmp_path), own), nprocs=WORLD, start_method="spawn")
    ours, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    assert ours["revived"] == other["revived"] > 0
    for name in ours.keys() - {"revived"}:
        assert torch.equal(ours[name], other[name]), name
