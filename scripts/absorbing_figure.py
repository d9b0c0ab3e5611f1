"""Samplers side by side: one figure of ancestral, confidence and Halton at 8, 16, 32 and 64 steps,
and a film: python scripts/absorbing_figure.py RUN [samplers.png] [film.png]

RUN is a stage-2 run of prior=absorbing. Every cell has the same classes and seeds."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

import vqgen
from vqgen import cli, pictures
from vqgen.pipeline import Pipeline
from vqgen.priors.absorbing import Absorbing
from vqgen.sampling.masking import Masking

SAMPLERS, STEPS = ("ancestral", "confidence", "halton"), (8, 16, 32, 64)
COUNT, GUIDANCE = 8, 2.0  # images per cell; guidance of all of them
FRAMES = 8  # of the film


def samplers(pipeline: Pipeline, out: Path) -> None:
    """A row per number of steps, a column per sampler, the same seeds everywhere."""
    figure, axes = pyplot.subplots(
        len(STEPS), len(SAMPLERS), figsize=(4 * len(SAMPLERS), 2.3 * len(STEPS))
    )
    for row, steps in zip(axes, STEPS, strict=True):
        for axis, sampler in zip(row, SAMPLERS, strict=True):
            images = pipeline.sample(
                labels(pipeline, COUNT),
                n=COUNT,
                guidance=GUIDANCE,
                sampler=sampler,
                steps=steps,
            )
            axis.imshow(pictures.grid(images, COUNT // 2))
            axis.set_title(f"{sampler}, {steps} steps", fontsize=10)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=100)


def film(pipeline: Pipeline, out: Path) -> None:
    """A row per sampler, time to the right: one image while its tokens appear."""
    rows = []
    for sampler in SAMPLERS:
        frames: list[Tensor] = []
        pipeline.sample_latents(
            labels(pipeline, 1),
            n=1,
            guidance=GUIDANCE,
            sampler=sampler,
            steps=2 * FRAMES,
            on_step=lambda done, steps, tokens, frames=frames: frames.append(tokens),
        )
        rows.append(pictures.grid(pipeline.decode(torch.cat(frames[1::2])), FRAMES))
    pyplot.imsave(out, np.concatenate(rows))


def labels(pipeline: Pipeline, count: int) -> list[int] | None:
    """Classes in turn; none for an unconditional model."""
    classes = pipeline.prior.num_classes
    return [i % classes for i in range(count)] if classes else None


def main() -> None:
    """Read the run named on the command line, write the two pictures."""
    if not 2 <= len(sys.argv) <= 4:
        sys.exit("wanted: python scripts/absorbing_figure.py RUN [samplers.png] [film.png]")
    names = (*sys.argv[2:], *("absorbing_samplers.png", "absorbing_film.png")[len(sys.argv) - 2 :])
    try:
        pipeline = load(sys.argv[1])
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        samplers(pipeline, Path(names[0]))
        film(pipeline, Path(names[1]))
    except cli.USER_ERRORS as error:
        cli.refuse(error)
    print(*names)


def load(path: str) -> Pipeline:
    """The run's pipeline. Raises ValueError unless its prior has masks to lift in any order."""
    pipeline = vqgen.load(path)
    prior = pipeline.prior
    if not isinstance(prior, Absorbing) or not isinstance(prior.process, Masking):
        kind = f"{type(prior).__name__} with kernel=uniform"
        raise ValueError(
            "wanted a run of prior=absorbing with prior.kernel=absorbing, got "
            f"{kind if isinstance(prior, Absorbing) else type(prior).__name__} in {path}; type "
            "python train_stage2.py prior=absorbing, then the run it makes"
        )
    return pipeline


if __name__ == "__main__":
    main()
