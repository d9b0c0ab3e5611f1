"""Every yaml composes and makes its object; the three commands run end to end."""

import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from tests import tiny
from vqgen import build, cli
from vqgen.contracts import Prior, Tokenizer
from vqgen.losses.stage1 import Stage1Loss
from vqgen.training import launch

CHECKOUT = Path(__file__).resolve().parents[1]


def options(*folder: str) -> list[str]:
    """The yaml files of a config group."""
    return sorted(path.stem for path in cli.CONF.joinpath(*folder).glob("*.yaml"))


def compose(stage: str, *words: str) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / stage)):
        return hydra.compose(f"train_{stage}", list(words))


@pytest.mark.parametrize("data", [name for name in options("data") if name != "cache"])
@pytest.mark.parametrize("tokenizer", options("stage1", "tokenizer"))
def test_every_tokenizer_is_made(tokenizer: str, data: str) -> None:
    config = build.plain(compose("stage1", f"tokenizer={tokenizer}", f"data={data}"))
    side = config["data"]["size"]  # a recipe may list scales, which fit the size of its data
    with torch.device("meta"):
        made = build.make({**config["tokenizer"], "image_size": [side, side]})
        loss = build.make(config["loss"] | {"perceptual": None})
    assert isinstance(made, Tokenizer) and isinstance(loss, Stage1Loss)
    assert launch.recipe(config["train"]).budget.progress(0, 0.0) == 0


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("prior", options("stage2", "prior"))
def test_every_prior_is_made(prior: str, data: str) -> None:
    config = build.plain(compose("stage2", f"prior={prior}", f"data={data}"))
    if "network" in config["prior"]:
        config["prior"]["network"]["patch"] = 1  # the tiny latents are 2 x 3
    tokenizer = tiny.tokenizer_for(config["prior"])
    with torch.device("meta"):
        made = build.prior(config["prior"], tokenizer, num_classes=3)
    assert isinstance(made, Prior)
    assert launch.recipe(config["train"]).budget.progress(0, 0.0) == 0


@pytest.mark.parametrize("prior", options("stage2", "prior"))
def test_every_knob_of_a_prior_can_be_typed(prior: str) -> None:
    config = build.plain(compose("stage2", f"prior={prior}"))
    knobs = hydra.utils.get_class(config["prior"]["_target_"]).Knobs.__dataclass_fields__
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF)):
        settings = hydra.compose("sample")
    assert {settings[name] for name in knobs} == {"default"}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("group", ["trainer", "logger", "debug"])
def test_every_shared_option_composes(stage: str, group: str) -> None:
    for option in options(group):
        config = compose(stage, f"{group}={option}")
        assert config.train.global_batch > 0
        assert build.precision(build.plain(config)) in ("32-true", "bf16-mixed")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_experiment_composes(stage: str) -> None:
    for option in options(stage, "experiment"):
        config = compose(stage, f"experiment={option}")
        recipe = launch.recipe(build.plain(config.train))
        assert recipe.budget.progress(0, 0.0) == 0 and recipe.schedule.lr > 0, option


def test_the_emoji_recipe_is_chosen_by_data_and_tokenizer() -> None:
    assert compose("stage1").loss.perceptual.missing == "random"
    assert compose("stage1", "data=folder").loss.perceptual.missing == "error"
    assert compose("stage1", "tokenizer=vqgan_f8").loss.perceptual.missing == "error"
    assert compose("stage1", "tokenizer=vqvae").loss.gan is None
    assert compose("stage1", "tokenizer=var").tokenizer.bottleneck.own_codebooks
    assert compose("stage1", "tokenizer=var", "data=folder").tokenizer.bottleneck.scales == "auto"


def type_in(folder: Path, program: str, *words: str) -> str:
    """Run a command from the repository root; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, f"{program}.py", *words]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_three_commands(tmp_path: Path) -> None:
    small = ("debug=fast", f"run.root={tmp_path}")
    type_in(tmp_path, "train_stage1", *small, "logger=wandb")
    type_in(tmp_path, "train_stage2", *small)
    out = tmp_path / "sheet.png"
    type_in(tmp_path, "sample", f"root={tmp_path}", f"out={out}", "n=2", "classes=[Flags,0]")
    arrays = np.load(out.with_suffix(".npz"))
    assert arrays["arr_0"].shape == (4, 32, 32, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [8, 8, 0, 0]


@pytest.mark.slow
def test_own_unconditional_pictures_that_are_not_square(tmp_path: Path) -> None:
    """A flat folder; stage 2 takes over data.root and data.size by itself."""
    rng = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i}.png")
    small = ("debug=fast", f"run.root={tmp_path / 'runs'}")
    shape = [f"tokenizer.{part}.{key}" for part in ("encoder", "decoder") for key in SMALL]
    type_in(
        tmp_path,
        "train_stage1",
        *small,
        "data=folder",
        f"data.root={tmp_path / 'mine'}",
        "data.size=[32,48]",
        *("loss.perceptual=none", "loss.gan.layers=1"),
        *shape,
    )
    printed = type_in(tmp_path, "train_stage2", *small, "prior=llamagen_tiny")
    assert "[32, 48]" in printed
    out = tmp_path / "sheet.png"
    type_in(tmp_path, "sample", f"root={tmp_path / 'runs'}", f"out={out}", "n=3")
    arrays = np.load(out.with_suffix(".npz"))
    assert arrays["arr_0"].shape == (3, 32, 48, 3) and "arr_1" not in arrays


@pytest.mark.slow
def test_two_processes_train_from_a_cache_as_typed(tmp_path: Path) -> None:
    """Stage 1, cache, plan, `torchrun --nproc_per_node=2 train_stage2.py`: one run folder."""
    small = ("debug=fast", f"run.root={tmp_path}", "trainer.accelerator=cpu")
    type_in(tmp_path, "train_stage1", *small, "tokenizer=vqvae")
    out = tmp_path / "cache"
    printed = type_in(tmp_path, "scripts/cache_latents", f"root={tmp_path}", f"out={out}")
    assert f"train_stage2.py data=cache data.root={out}" in printed
    words = (*small, "data=cache", f"data.root={out}", "prior=llamagen_tiny")
    assert "5,641,984" in type_in(tmp_path, "train_stage2", *words, "plan=true")
    assert not (tmp_path / "stage2").exists(), "a plan leaves nothing behind"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "train_stage2.py", *words],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (run,) = (tmp_path / "stage2").iterdir()
    assert (run / "pipeline" / "prior" / "model.safetensors").is_file()
    assert done.stdout.count("validation at step 2") == 1, "the first process speaks"


def test_the_submitit_launcher_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "stage2")):
        words = ["hydra/launcher=slurm", "trainer=slurm"]
        config = hydra.compose("train_stage2", words, return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.launcher.gpus_per_node == config.hydra.launcher.tasks_per_node == 8
    assert config.trainer.accelerator == "gpu" and config.trainer.strategy == "ddp"


SMALL = ("channels=32", "multipliers=[1,1]", "blocks=1", "patch=4")
