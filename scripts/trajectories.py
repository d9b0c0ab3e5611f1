"""Learn two moons on each path and draw how samples travel: VE and VP curved, OT straight.
`python scripts/trajectories.py [OUT.png]` (docs/trajectories.png).

The moons are three times as wide as the noise. Where both have unit variance, as latents do, OT's
learned flow first contracts and then expands, and VP is the one that hardly moves: the straightness
of OT is that of its conditional paths, which the learned flow keeps if noise and data are paired.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot
from torch import Tensor

from vqgen.contracts import Condition, FeatureSpec
from vqgen.nn.dit import DiT
from vqgen.priors.flow import Flow
from vqgen.sampling.field import Field
from vqgen.sampling.paths import OT, VE, VP, GaussianPath
from vqgen.sampling.solvers import heun
from vqgen.sampling.times import grid

WIDTH = 3.0  # of the moons; of the noise it is 1, but for VE
# (path, pairing) by name; sigma_max is small so that one picture can hold the start of VE
PATHS: dict[str, tuple[Callable[[], GaussianPath], str]] = {
    "OT": (OT, "random"),
    "OT, optimal pairs": (OT, "optimal"),
    "VP": (VP, "random"),
    "VE": (partial(VE, sigma_min=0.05, sigma_max=15.0), "random"),
}


def two_moons(count: int, generator: torch.Generator) -> Tensor:
    """-> [count, 2, 1, 1] of mean 0 and deviation WIDTH: two half circles that reach into each
    other."""
    angle = torch.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack((x, y), dim=1) + 0.06 * torch.randn(count, 2, generator=generator)
    center, scale = torch.tensor([0.5, 0.25]), torch.tensor([0.869, 0.497])  # measured once
    return (WIDTH * (points - center) / scale)[..., None, None]


def learn(path: GaussianPath, pairing: str, *, steps: int, batch: int = 256) -> Flow:
    """A flow prior on this path; a map of one place makes the transformer a plain network. The
    residual prediction is learned as fast on all paths, so that they compare."""
    torch.manual_seed(0)
    network: Any = partial(DiT, width=64, depth=3, heads=1)
    model = Flow(
        FeatureSpec(2, 1, 1), network=network, path=path, predict="residual", pairing=pairing
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(two_moons(batch, generator), Condition(batch)).total.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def travel(model: Flow, count: int, *, steps: int = 100) -> tuple[Tensor, Tensor]:
    """-> (times [steps + 1], where samples were then [steps + 1, count, 2])."""
    path, (first, last) = model.denoiser.path, model.denoiser.span
    field: Field = model.denoiser.field(Condition(count))
    times = grid(path, "uniform", steps, first, last)
    generator = torch.Generator().manual_seed(1)
    x = float(path.deviation(times[0])) * torch.randn(count, 2, 1, 1, generator=generator)
    places = [x]
    for t, u in pairwise(times):
        places.append(heun(field.velocity, places[-1], t, u))
    return times, torch.stack(places).flatten(2)


def detour(places: Tensor) -> float:
    """How much longer the way is than the straight line between its ends: summed length / summed
    distance - 1, of places [steps + 1, count, 2]."""
    length = places.diff(dim=0).norm(dim=-1).sum()
    return float(length / (places[-1] - places[0]).norm(dim=-1).sum() - 1)


def off_line(places: Tensor) -> float:
    """How far samples are from x_0 + t (x_1 - x_0), where even motion would have them at the same
    time: the root mean square over times and samples, as a share of that of x_1 - x_0."""
    t = torch.linspace(0, 1, len(places))[:, None, None]
    line = (1 - t) * places[0] + t * places[-1]
    whole = (places[-1] - places[0]).square().sum(dim=-1).mean()
    return float(((places - line).square().sum(dim=-1).mean() / whole).sqrt())


def main() -> None:
    """Train, draw, print how curved each path is."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/trajectories.png")
    if len(sys.argv) > 2 or not out.parent.is_dir() or out.suffix != ".png":
        sys.exit("wanted: python scripts/trajectories.py [OUT.png], in a folder that is there")
    figure, axes = pyplot.subplots(1, len(PATHS), figsize=(4.5 * len(PATHS), 4.5))
    for axis, (name, (make, pairing)) in zip(axes, PATHS.items(), strict=True):
        model = learn(make(), pairing, steps=800)
        _, places = travel(model, 600)
        for i in range(60):
            axis.plot(*places[:, i].T, color="tab:blue", linewidth=0.7, alpha=0.6)
        axis.scatter(*places[0, :60].T, s=6, color="gray", label="t = 0")
        axis.scatter(*places[-1].T, s=3, color="tab:orange", label="t = 1")
        axis.set_title(f"{name}: off the straight line by {off_line(places):.0%}", fontsize=10)
        axis.set_aspect("equal")
        axis.legend(loc="upper right", fontsize=7)
        print(f"{name}  off the line {off_line(places):.3f}  detour {detour(places):.3f}")
    figure.tight_layout()
    figure.savefig(out, dpi=90)
    print(out)


if __name__ == "__main__":
    main()
