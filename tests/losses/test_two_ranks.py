"""Two processes: adaptive weight, LeCam, ActNorm, code usage and latent statistics are those of the
global batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from vqgen.losses.adversarial import LeCam, adaptive_weight
from vqgen.losses.discriminator import ActNorm
from vqgen.metrics.codebook import CodeUsage
from vqgen.metrics.latents import LatentStatistics


def measure(x: Tensor) -> dict[str, Tensor]:
    """x [batch, 2, 3, 3] -> everything that is averaged over ranks."""
    norm, lecam, usage = ActNorm(2).train(), LeCam(), CodeUsage(10)
    norm(x)
    lecam.update(x, -2 * x)
    usage.update(x.abs().flatten().clamp(max=9).long())
    latents = LatentStatistics(2)
    latents.update(x)
    last_layer = nn.Parameter(torch.ones(2, 1, 1))
    ratio = adaptive_weight(
        (x * last_layer).sin().mean(), (x * last_layer).square().mean(), last_layer, 1e4
    )
    numbers = {"ratio": ratio, "used": torch.tensor(usage.usage()), "counts": usage.counts}
    numbers |= {"latent_mean": latents.mean, "latent_deviation": latents.deviation}
    return {**norm.state_dict(), **lecam.state_dict(), **numbers}


def batch() -> Tensor:
    return 1 + 2 * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(measure(batch().chunk(2)[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = measure(batch())
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, msg=name)
