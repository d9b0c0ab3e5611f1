"""What cannot be asked of the flow and the diffusion prior on the command line: one sentence each,
with a cure."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.test_bad_input import (  # noqa: F401  (refused is a fixture)
    KL_ARCHITECTURE,
    refused,
    stage1_run,
)
from vqgen import build, checkpoint
from vqgen.training import latents

TINY = ["data.size=[16,24]", "logger=files", "train.max_steps=1", "prior.network.width=32"]


def standardized(root: Path) -> Path:
    """A stage-1 run of the tiny KL tokenizer, as it is exported."""
    run, tokenizer = stage1_run(root, kl=True), tiny.kl()
    latents.standardize_(tokenizer, tiny.data())
    facts = {"class_names": ["a", "b", "c"]}
    options: dict[str, Any] = {"kind": "tokenizer", "architecture": KL_ARCHITECTURE}
    checkpoint.save_model(run / "tokenizer", tokenizer, facts=facts, **options)
    return run


def trained(root: Path, path: str) -> None:
    """A stage-2 run of prior=diffusion on this path over it."""
    export = standardized(root) / "tokenizer"
    run = root / "stage2" / "20260101_000000_tiny"
    checkpoint.copy_model(export, run / "pipeline" / "tokenizer")
    network = {"_target_": "vqgen.nn.dit.DiT", "_partial_": True}
    node: dict[str, Any] = {
        "_target_": "vqgen.priors.diffusion.Diffusion",
        "network": {**network, "width": 32, "depth": 1, "heads": 2},
        "path": {"_target_": f"vqgen.sampling.paths.{path.upper()}"},
    }
    prior = build.prior(node, tiny.kl(), num_classes=3)
    facts = {
        "class_names": ["a", "b", "c"],
        "num_classes": 3,
        "tokenizer_fingerprint": checkpoint.read_header(export)["fingerprint"],
    }
    options: dict[str, Any] = {"kind": "prior", "architecture": node, "facts": facts}
    checkpoint.save_model(run / "pipeline" / "prior", prior, **options)


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["solver=ddim"], "needs path=vp, this prior has path=ve; type solver=euler"),
        (["steps=0"], "steps as a whole number of at least 1, got 0; type steps=10"),
        (["solver=huen"], "solver as one of heun, .*, got huen; did you mean heun"),
        (["stochasticity=0.5"], "type solver=euler_maruyama or leave stochasticity out"),
        (
            ["snr=0.2", "solver=heun"],
            "snr is for solver=predictor_corrector, langevin, got snr=0.2",
        ),
        (["solver=langevin", "steps=5"], "a factor of 5.49 with steps=5; type steps=9"),
        (["solver=langevin", "steps=10", "corrector_steps=3"], "corrector_steps of at least 4, or"),
        (["resample=4"], "got resample=4 without; leave resample out"),
        (["guidance=interval:3:0.8:0.2"], "0 <= start <= stop <= 1, got 0.8 to 0.2"),
        (["top_k=5"], "top_k"),
    ],
)
def test_sampling_of_a_path_is_refused(
    words: list[str],
    cure: str,
    refused: Callable[..., str],  # noqa: F811
    tmp_path: Path,
) -> None:
    trained(tmp_path / "runs", "ve")
    assert re.search(cure, refused("sample", *words))


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (
            ["prior=flow_tiny", "path=ve", "prior.path.sigma_min=5", "prior.path.sigma_max=5"],
            "sigma_min < sigma_max <= 1e\\+06, .*type prior.path.sigma_min=0.01",
        ),
        (
            ["prior=diffusion_tiny", "path=ve", "prior.path.sigma_min=60"],
            "sigma_min < sigma_max <= 1e\\+06, .*type prior.path.sigma_min=0.01",
        ),
        (
            ["prior=diffusion_tiny", "prior.network.patch=0"],
            "prior.network.patch of at least 1, got",
        ),
        (
            ["prior=flow_tiny", "prior.network.patch=-1"],
            "prior.network.patch of at least 1, got -1",
        ),
        (
            ["prior=flow_tiny", "prior.network.patch=[1,5]"],
            r"prior.network.patch as a whole number, got \[1, 5\]; leave it out",
        ),
        (["prior=flow_tiny", "prior.network.patch=null"], "patch as a whole number, got null"),
        (["prior=flow_tiny", "prior.network.depth=[2]"], "prior.network.depth as a whole number"),
        (
            ["prior=diffusion_tiny", "path=ve", "prior.path.sigma_max=[3,4]"],
            r"prior.path.sigma_max as a number, got \[3, 4\]",
        ),
        (["prior=diffusion_tiny", "path=vp", "prior.path.beta_max=nan"], "as a number, got nan"),
        (
            ["prior=flow_tiny", "prior.predict=null"],
            "predict as one of velocity, .* got None; type",
        ),
        (["prior=flow_tiny", "prior.network.heads=3"], "heads=3; change prior.network.heads"),
        (["prior=flow_tiny", "prior.label_dropout=1"], "to below 1, got 1; type prior.label_drop"),
        (["prior=diffusion_tiny", "path=ot"], "^vqgen: wanted path .* or prior=flow for path=ot"),
    ],
)
def test_training_on_a_path_is_refused(
    words: list[str],
    cure: str,
    refused: Callable[..., str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """The numbers of a path before any data is read."""
    standardized(tmp_path / "runs")
    assert re.search(cure, refused("train_stage2", *words, *TINY))
