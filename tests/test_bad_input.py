"""What a user did, and the one sentence they get: never a traceback, exit code 2, nothing
damaged."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from tests import tiny
from vqgen import checkpoint
from vqgen.data import extract
from vqgen.training import devices

ARCHITECTURE: dict[str, Any] = {
    "_target_": "vqgen.tokenizers.autoencoder.Autoencoder",
    "image_size": list(tiny.SIZE),
    "z_channels": 32,
    "encoder": {
        "_target_": "vqgen.nn.autoencoder.Encoder",
        "_partial_": True,
        "channels": 32,
        "multipliers": [1, 1],
        "blocks": 1,
        "patch": 4,
        "attention_levels": [],
    },
    "decoder": {
        "_target_": "vqgen.nn.autoencoder.Decoder",
        "_partial_": True,
        "channels": 32,
        "multipliers": [1, 1],
        "blocks": 1,
        "patch": 4,
        "attention_levels": [],
    },
    "bottleneck": {
        "_target_": "vqgen.tokenizers.vq.VectorQuantizer",
        "codebook": {"_target_": "vqgen.tokenizers.codebook.Codebook", "size": 32, "dim": 8},
    },
}
KL_ARCHITECTURE = ARCHITECTURE | {
    "encoder": {**ARCHITECTURE["encoder"], "multipliers": [1]},
    "decoder": {**ARCHITECTURE["decoder"], "multipliers": [1]},
    "bottleneck": {"_target_": "vqgen.tokenizers.gaussian.GaussianBottleneck", "channels": 4},
}
PRIOR = {"_target_": "vqgen.priors.llamagen.LlamaGen", "width": 32, "depth": 2, "heads": 2}


def typed(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an entry point as if `python <program>.py <words>` was typed; returns the exit code."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(program).main()
        sys.exit(0)
    return int(left.value.code or 0)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> Callable[..., str]:
    """Call with a program and words; asserts exit code 2 and one sentence; returns it."""
    monkeypatch.chdir(tmp_path)

    def run(program: str, *words: str) -> str:
        assert typed(program, list(words), monkeypatch) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        assert printed.err.startswith("vqgen: ")
        return printed.err

    return run


def picture(path: Path, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 60)).save(path)


def folder_of_pictures(root: Path, count: int = 8) -> Path:
    for i in range(count):
        picture(root / f"{i}.png")
    return root


def stage1_run(root: Path, name: str = "20260101_000000_tiny", *, kl: bool = False) -> Path:
    """A finished stage-1 run of the tiny tokenizer, of tokens or (never standardized) KL."""
    run = root / "stage1" / name
    facts = {"class_names": ["a", "b", "c"]}
    checkpoint.save_model(
        run / "tokenizer",
        tiny.kl() if kl else tiny.tokenizer(),
        kind="tokenizer",
        architecture=KL_ARCHITECTURE if kl else ARCHITECTURE,
        facts=facts,
    )
    return run


def begun(
    folder: Path, config: str = "tokenizer: {}\nloss: {}\n", overrides: str | None = ""
) -> None:
    """What a run to resume was started with."""
    run = folder / "runs" / "stage1" / "20260101_000000_tiny"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(config)
    if overrides is not None:
        (run / "overrides.txt").write_text(overrides)


def multiscale_run(root: Path) -> Path:
    """A finished stage-1 run of the tiny pyramid."""
    run = root / "stage1" / "20260101_000000_pyramid"
    codebook = {"_target_": "vqgen.tokenizers.codebook.Codebook", "size": 32, "dim": 8}
    bottleneck = {
        "_target_": "vqgen.tokenizers.multiscale.MultiScaleQuantizer",
        "codebook": codebook,
        "scales": [1, [1, 2], [2, 3]],
    }
    checkpoint.save_model(
        run / "tokenizer",
        tiny.multiscale(),
        kind="tokenizer",
        architecture={**ARCHITECTURE, "bottleneck": bottleneck},
        facts={"class_names": ["a", "b", "c"]},
    )
    return run


def stage2_run(root: Path, mark: str | None = None) -> Path:
    """A finished stage-2 run of the tiny pair; with `mark`, of another tokenizer."""
    run = root / "stage2" / "20260101_000000_tiny"
    export = stage1_run(root) / "tokenizer"
    checkpoint.copy_model(export, run / "pipeline" / "tokenizer")
    facts = {
        "class_names": ["a", "b", "c"],
        "num_classes": 3,
        "tokenizer_fingerprint": mark or checkpoint.read_header(export)["fingerprint"],
    }
    prior = run / "pipeline" / "prior"
    checkpoint.save_model(prior, tiny.prior(), kind="prior", architecture=PRIOR, facts=facts)
    return run


def absorbing_run(root: Path, kernel: str = "absorbing") -> Path:
    """The same with a prior that samples in steps."""
    run, prior = stage2_run(root), tiny.absorbing_for(tiny.tokenizer().spec, kernel=kernel)
    folder = run / "pipeline" / "prior"
    facts = checkpoint.read_header(folder)["facts"]
    node = {**PRIOR, "_target_": "vqgen.priors.absorbing.Absorbing", "kernel": kernel}
    checkpoint.save_model(folder, prior, kind="prior", architecture=node, facts=facts)
    return run


def reference(
    path: Path, size: tuple[int, int] = tiny.SIZE, classes: int = 3, count: int = 12
) -> None:
    """An npz in the ADM layout."""
    pixels = np.zeros((count, *size, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels, arr_1=np.arange(count) * (classes - 1) // (count - 1))


EVALUATE = "scripts.evaluate"
# (what the user did, what has to be there before, program, words, what the sentence must say)
TINY_PICTURES = ["data.size=[16,24]", "logger=files", "train.max_steps=1"]
QUICK = ["logger=files", "train.max_steps=1", "loss.perceptual=none", "loss.gan=none"]
CASES: list[tuple[str, Callable[[Path], object], str, list[str], str]] = [
    ("misspelt a key", lambda p: None, "train_stage1", ["train.lrr=1"], "did you mean train.lr?"),
    (
        "left a prior no noise step",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.noise_steps=0", *TINY_PICTURES],
        "prior.noise_steps=1000",
    ),
    (
        "misspelt the weight of a loss",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.weight=elob", *TINY_PICTURES],
        "elbo, uniform, maskgit",
    ),
    (
        "gave a weight below 0",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.weight=-1", *TINY_PICTURES],
        "elbo, uniform, maskgit",
    ),
    (
        "gave a number that no tokenizer has: tokenizer.bottleneck.commitment_weight=-1",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.commitment_weight=-1"],
        "tokenizer.bottleneck.commitment_weight of at least 0, got -1",
    ),
    (
        "gave a number that no tokenizer has: tokenizer.bottleneck.phi_strength=2",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.phi_strength=2"],
        "tokenizer.bottleneck.phi_strength from 0 to 1, got 2",
    ),
    (
        "gave a number that no tokenizer has: tokenizer.z_channels=0",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.z_channels=0"],
        "tokenizer.z_channels of at least 1, got 0",
    ),
    (
        "gave a number that no prior has: prior.ffn_multiplier=-2",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", *TINY_PICTURES, "prior.ffn_multiplier=-2"],
        "prior.ffn_multiplier above 0, got -2",
    ),
    (
        "gave a number that no prior has: prior.rope_base=0",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", *TINY_PICTURES, "prior.rope_base=0"],
        "prior.rope_base above 0, got 0",
    ),
    (
        "gave a number that no prior has: prior.drop_path=1",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", *TINY_PICTURES, "prior.drop_path=1"],
        "prior.drop_path from 0 to below 1, got 1",
    ),
    (
        "gave a number that no prior has: prior.weight=[1,-1]",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", *TINY_PICTURES, "prior.weight=[1,-1]"],
        "elbo, uniform, maskgit",
    ),
    (
        "gave a schedule that there is not",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.schedule=square", *TINY_PICTURES],
        "linear, cosine, log_linear, arc_cosine",
    ),
    (
        "gave a schedule that rises",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.schedule=[1,0.4,0.6,0]", *TINY_PICTURES],
        "falling alpha-bars, got [1, 0.4, 0.6, 0]",
    ),
    (
        "wants the uniform kernel in continuous time",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.kernel=uniform", "prior.noise_steps=null", *TINY_PICTURES],
        "prior.noise_steps=1000",
    ),
    ("misspelt a choice", lambda p: None, "train_stage1", ["data=emojy"], "did you mean emoji?"),
    ("gave no value", lambda p: None, "train_stage1", ["resume"], "'resume' without a value"),
    ("gave a word for a number", lambda p: None, "train_stage1", ["train.lr=x"], "wants a number"),
    (
        "typed a setting of stage 2",
        lambda p: None,
        "train_stage1",
        ["prior=llamagen"],
        "prior is a setting of train_stage2.py",
    ),
    *(
        (
            f"gave {word}",
            lambda p: stage1_run(p / "runs"),
            "train_stage2",
            [word, *TINY_PICTURES],
            sentence,
        )
        for word, sentence in {
            "prior.depth=0": "wanted prior.depth of at least 1, got 0",
            "prior.heads=0": "wanted prior.heads of at least 1, got 0",
            "prior.label_dropout=2": "prior.label_dropout=0.1",
            "prior.label_dropout=1": "from 0 to below 1, got 1; type prior.label_dropout=0.1",
            "prior.width=null": "wanted prior.width as a whole number, got null",
            "preview.guidance=strong": "wanted guidance as a number",
            "preview.per_class=0": "preview.per_class=8",
            "+preview.topk=3": "LlamaGen has no knob 'topk'; did you mean top_k?",
        }.items()
    ),
    ("named no folder", lambda p: None, "train_stage1", ["data=folder"], "data.root=DIR"),
    (
        "named a folder that is not there",
        lambda p: None,
        "train_stage1",
        ["data=folder", "data.root=nowhere"],
        "nowhere",
    ),
    (
        "named an empty folder",
        lambda p: (p / "empty").mkdir(),
        "train_stage1",
        ["data=folder", "data.root=empty"],
        "empty",
    ),
    (
        "has a text file among the images",
        lambda p: (folder_of_pictures(p / "d") / "notes.txt").write_text("hello"),
        "train_stage1",
        ["data=folder", "data.root=d"],
        "notes.txt",
    ),
    (
        "has a cut-off image",
        lambda p: (folder_of_pictures(p / "d") / "bad.png").write_bytes(
            (p / "d" / "0.png").read_bytes()[:60]
        ),
        "train_stage1",
        ["data=folder", "data.root=d"],
        "bad.png",
    ),
    (
        "has an image that is too small",
        lambda p: picture(folder_of_pictures(p / "d") / "tiny.png", (3, 3)),
        "train_stage1",
        ["data=folder", "data.root=d"],
        "tiny.png",
    ),
    ("gave a size of 0", lambda p: None, "train_stage1", ["data.size=0"], "data.size"),
    (
        "gave a size the encoder cannot halve",
        lambda p: None,
        "train_stage1",
        ["data.size=30", *QUICK],
        "data.size=[32,32]",
    ),
    (
        "asked for a batch larger than the set",
        lambda p: None,
        "train_stage1",
        ["train.global_batch=9999"],
        "train.global_batch",
    ),
    (
        "asked for accumulation that does not divide the batch",
        lambda p: None,
        "train_stage1",
        ["train.global_batch=7", "train.accumulate=2", *QUICK],
        "train.global_batch=8",
    ),
    (
        "gave no limit at all",
        lambda p: None,
        "train_stage1",
        ["train.max_steps=null", "train.max_minutes=null"],
        "train.max_minutes",
    ),
    (
        "gave a negative learning rate",
        lambda p: None,
        "train_stage1",
        ["train.lr=-1", *QUICK],
        "wanted train.lr as a number of at least 0, got -1",
    ),
    *(
        (f"gave {word}", lambda p: None, "train_stage1", [word, *QUICK], sentence)
        for word, sentence in {
            "train.log_every=0": "wanted train.log_every as a number of at least 1, got 0",
            "train.save_every=0": "wanted train.save_every as a number of at least 1, got 0",
            "train.validate_every=null": "wanted train.validate_every as a number",
            "train.lr=0": "wanted train.lr > 0",
            "train.lr=null": "wanted train.lr as a number of at least 0, got None",
            "train.seed=-1": "wanted train.seed as a number of at least 0, got -1",
            "train.weight_decay=-1": "wanted train.weight_decay as a number of at least 0",
            "train.clip=-1": "train.clip=null to switch it off",
            "train.betas=[0.9]": "wanted train.betas as two numbers",
            "train.betas=[0.9,1.5]": "got [0.9, 1.5]",
            "train.betas=0.9": "wanted train.betas as two numbers",
            "train.lr=nan": "wanted train.lr as a number of at least 0, got nan",
            "train.lr=[1]": "wanted train.lr as a number of at least 0, got [1]",
            "train.weight_decay=nan": "train.weight_decay as a number of at least 0, got nan",
            "train.lr_end=inf": "wanted train.lr_end as a number of at least 0, got inf",
            "train.clip=[1]": "train.clip=null to switch it off",
            "train.clip=nan": "train.clip=null to switch it off",
            "train.betas=[nan,0.9]": "wanted train.betas as two numbers",
            "train.max_minutes=[5]": "wanted train.max_minutes above 0, got",
            "train.max_minutes=nan": "wanted train.max_minutes above 0",
            "loss.pixel_weight=-1": "wanted loss.pixel_weight of at least 0, got -1",
            "loss.pixel_weight=nan": "wanted loss.pixel_weight as a number, got nan",
            "loss.perceptual_weight=null": "wanted loss.perceptual_weight as a number, got null",
            "loss.pixel={l1:1,l2:-1}": "wanted loss.pixel.l2 (a weight) of at least 0, got -1",
            "tokenizer.z_channels=[8]": "wanted tokenizer.z_channels as a whole number, got [8]",
            "tokenizer.encoder.patch=0": "wanted tokenizer.encoder.patch of at least 1, got 0",
            "tokenizer.encoder.multipliers=[]": "tokenizer.encoder.multipliers=[1,2]",
            "tokenizer.bottleneck.codebook.size=0": "codebook.size as a whole number of at least 1",
            "tokenizer.bottleneck.codebook.dim=0": "codebook.dim as a whole number of at least 1",
            "tokenizer.bottleneck.codebook.ema_decay=2": "codebook.ema_decay as a number from 0",
            "trainer.precision=16-mixed": "wanted trainer.precision as auto, 32-true or bf16-mixed",
            "trainer.devices=0": "wanted trainer.devices as a number or auto",
            "trainer.devices=-2": "wanted trainer.devices as a number or auto, got -2",
            "trainer.num_nodes=0": "type trainer.num_nodes=1",
            "trainer.accelerator=gpuu": "type trainer.accelerator=auto",
            "trainer.limit_val_batches=2": "type +trainer.limit_val_batches=2",
            "train.seed=1e30": "type train.seed=0",
            "train.max_minutes=-1": "wanted train.max_minutes above 0, got -1",
            "+trainer.acelerator=gpu": "lightning.Trainer has no argument trainer.acelerator",
            "+data.siez=3": "there is no setting 'data.siez'; did you mean data.size?",
            "+train.lrr=1": "there is no setting 'train.lrr'; did you mean train.lr?",
        }.items()
    ),
    (
        "started the GAN after the end",
        lambda p: None,
        "train_stage1",
        ["loss.gan.start=40000"],
        "loss.gan.start",
    ),
    (
        "gave the GAN images that are too small",
        lambda p: None,
        "train_stage1",
        ["data.size=16", "loss.gan.layers=3", "loss.perceptual=none"],
        "layers",
    ),
    (
        "named LPIPS weights that are not there",
        lambda p: None,
        "train_stage1",
        ["loss.perceptual.weights=nothing.pth"],
        "nothing.pth",
    ),
    (
        "resumes a run that is not there",
        lambda p: None,
        "train_stage1",
        ["train.resume=runs/nothing", *QUICK],
        "runs/nothing",
    ),
    (
        "named the run with a space",
        lambda p: None,
        "train_stage1",
        ["run.name=my run", *QUICK],
        "plain word",
    ),
    (
        "put the runs where a file is",
        lambda p: (p / "file").write_text("x"),
        "train_stage1",
        ["run.root=file", *QUICK],
        "run.root",
    ),
    ("started with stage 2", lambda p: None, "train_stage2", [], "python train_stage1.py"),
    (
        "named a tokenizer that is not there",
        lambda p: None,
        "train_stage2",
        ["tokenizer=runs/stage1/no"],
        "does not exist",
    ),
    (
        "trains a prior at another image size",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["data.size=32"],
        "data.size=[16,24]",
    ),
    (
        "has a truncated tokenizer",
        lambda p: truncate(stage1_run(p / "runs") / "tokenizer"),
        "train_stage2",
        ["data.size=[16,24]"],
        "damaged",
    ),
    (
        "trains a next-scale prior on tokens of one scale",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=var", "tokenizer=runs/stage1/20260101_000000_tiny", "data.size=[16,24]"],
        "prior=var needs tokens of several scales, got one scale of 2 x 3; type prior=llamagen, "
        "or train a multi-scale tokenizer: python train_stage1.py tokenizer=var",
    ),
    (
        "has no multi-scale tokenizer yet",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=var"],
        "python train_stage1.py tokenizer=var",
    ),
    (
        "gave the prior heads that do not divide its width",
        lambda p: multiscale_run(p / "runs"),
        "train_stage2",
        ["prior=var_d4", "prior.heads=3", "data.size=[16,24]", "logger=files"],
        "change prior.heads",
    ),
    (
        "trains a raster prior on a pyramid",
        lambda p: multiscale_run(p / "runs"),
        "train_stage2",
        ["prior=llamagen", "tokenizer=runs/stage1/20260101_000000_pyramid", "data.size=[16,24]"],
        "prior=llamagen needs tokens of one scale, got 3 scales",
    ),
    (
        "named no cache",
        lambda p: None,
        "train_stage2",
        ["data=cache"],
        "type data.root=DIR, made by: python scripts/cache_latents.py tokenizer=RUN out=DIR",
    ),
    (
        "named a cache that is not there",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["data=cache", "data.root=emoij"],
        "got data.root=emoij, which does not exist; type data.root=DIR of one, or make it: "
        "python scripts/cache_latents.py tokenizer=RUN out=emoij",
    ),
    (
        "plans with a cache that is not there",
        lambda p: None,
        "train_stage2",
        ["data=cache", "data.root=emoij", "plan=true"],
        "python scripts/cache_latents.py tokenizer=RUN out=emoij",
    ),
    (
        "misspelt the root of a cache",
        lambda p: a_cache(p / "c", "0123"),
        "train_stage2",
        ["data=cache", "data.rot=c"],
        "did you mean data.root?",
    ),
    (
        "named a folder that is no cache",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["data=cache", "data.root=runs"],
        "got data.root=runs, which holds no manifest.json",
    ),
    (
        "trains on the cache of another tokenizer",
        lambda p: (stage1_run(p / "runs"), a_cache(p / "c", "0123")),
        "train_stage2",
        [
            "data=cache",
            "data.root=c",
            "tokenizer=runs/stage1/20260101_000000_tiny",
            "train.global_batch=4",
        ],
        "type tokenizer=runs/stage1/lost, where it was then",
    ),
    (
        "has no tokenizer for the cache",
        lambda p: (stage1_run(p / "runs"), a_cache(p / "c", "0123")),
        "train_stage2",
        ["data=cache", "data.root=c"],
        "is not the one that made the cache (0123)",
    ),
    (
        "has the tokenizer of the cache elsewhere",
        lambda p: a_cache(p / "c", "0123"),
        "train_stage2",
        ["data=cache", "data.root=c"],
        "Type: tokenizer=runs/stage1/lost",
    ),
    (
        "shards a tokenizer",
        lambda p: None,
        "train_stage1",
        ["trainer=fsdp", *QUICK],
        "type trainer=ddp",
    ),
    (
        "misspelt the strategy",
        lambda p: None,
        "train_stage1",
        ["trainer.strategy=dpp", *QUICK],
        "trainer=ddp or trainer=fsdp",
    ),
    *(
        (
            f"plans {words[0]}",
            lambda p: stage1_run(p / "runs"),
            program,
            ["plan=true", *words],
            text,
        )
        for program, words, text in (
            ("train_stage1", ["trainer=fsdp"], "type trainer=ddp"),
            ("train_stage1", ["data=cache", "data.root=c"], "stage 1 needs images"),
            ("train_stage1", ["trainer.strategy=dpp"], "trainer=ddp or trainer=fsdp"),
            ("train_stage1", ["trainer.devices=[0,1]"], "CUDA_VISIBLE_DEVICES=0,1"),
            (
                "train_stage1",
                ["train.save_every=0"],
                "wanted train.save_every as a number of at least 1",
            ),
            ("train_stage2", ["data.size=64"], "type data.size=[16,24]"),
            ("train_stage2", ["init=nowhere"], "which does not exist"),
        )
    ),
    (
        "starts more devices than the batch has parts",
        lambda p: None,
        "train_stage1",
        ["debug=fast", "trainer.devices=3", "trainer.accelerator=cpu"],
        "type train.global_batch=6",
    ),
    (
        "types a batch that the devices cannot share",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["train.global_batch=4", "trainer.devices=3", "trainer.accelerator=cpu"],
        "type train.global_batch=6",
    ),
    *(
        (what, before, "train_stage1", ["train.resume=runs/stage1/20260101_000000_tiny"], sentence)
        for what, before, sentence in (
            (
                "resumes a run whose config is cut short",
                lambda p: begun(p, config="tokenizer: {}\na: [1,\n"),
                "config.yaml is damaged",
            ),
            (
                "resumes a run whose config is cut short, with an export",
                lambda p: (stage1_run(p / "runs"), begun(p, config="")),
                "type init=runs/stage1/20260101_000000_tiny instead of train.resume",
            ),
            (
                "resumes a run without its overrides",
                lambda p: begun(p, overrides=None),
                "has lost its overrides.txt",
            ),
            (
                "resumes a run whose overrides are cut short",
                lambda p: begun(p, overrides="tokenizer=var\ntrain.lr"),
                "overrides.txt is damaged: it holds 'train.lr'",
            ),
        )
    ),
    (
        "has a damaged image that was not looked for",
        lambda p: (folder_of_pictures(p / "d") / "bad.png").write_bytes(
            (p / "d" / "0.png").read_bytes()[:60]
        ),
        "train_stage1",
        [
            *("data=folder", "data.root=d", "data.verify=false", "data.size=32", "data.workers=0"),
            *("debug=fast", "trainer=default", "tokenizer.encoder.channels=32", *QUICK[1:]),
            *("tokenizer.decoder.channels=32", "data.val_fraction=0.2", "train.max_steps=4"),
        ],
        "bad.png cannot be decoded",
    ),
    *(
        (
            f"named a file for a cache: {out}",
            lambda p: (stage1_run(p / "runs"), (p / "README.md").write_text("mine")),
            "scripts.cache_latents",
            ["data.size=[16,24]", f"out={out}"],
            "is a file or lies in one; type another out=DIR",
        )
        for out in ("README.md", "README.md/cache")
    ),
    (
        "wants several machines and starts none",
        lambda p: None,
        "train_stage1",
        ["trainer.num_nodes=2", "trainer.accelerator=cpu", *QUICK],
        "from torchrun or srun",
    ),
    (
        "plans a batch that the devices cannot share",
        lambda p: None,
        "train_stage1",
        ["plan=true", "trainer.devices=3", "trainer.accelerator=cpu", "train.global_batch=16"],
        "train.global_batch=18",
    ),
    (
        "trains a continuous prior on tokens",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=flow", "data.size=[16,24]", "logger=files"],
        "as_features=true",
    ),
    (
        "gave a prior over tokens a path",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["path=vp", "data.size=[16,24]", "logger=files"],
        "path= is for prior=flow and prior=diffusion",
    ),
    (
        "trains a flow on tokens",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=flow", "data.size=[16,24]"],
        "type as_features=true",
    ),
    (
        "trains LlamaGen on continuous latents",
        lambda p: stage1_run(p / "runs", kl=True),
        "train_stage2",
        ["tokenizer=runs/stage1/20260101_000000_tiny", "data.size=[16,24]"],
        "type prior=flow, or train a single-scale tokenizer",
    ),
    (
        "trains LlamaGen on features",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["as_features=true", "data.size=[16,24]"],
        "but LlamaGen reads tokens; leave as_features out, or type prior=flow",
    ),
    (
        "wants features of continuous latents",
        lambda p: stage1_run(p / "runs", kl=True),
        "train_stage2",
        ["prior=flow", "as_features=true", "data.size=[16,24]"],
        "leave as_features out",
    ),
    (
        "has latents that were standardized on other images",
        lambda p: stage1_run(p / "runs", kl=True),
        "train_stage2",
        ["prior=flow_tiny", "data.size=[16,24]"],
        "near zero mean and unit variance",
    ),
    (
        "misspelt what latents are",
        lambda p: None,
        "train_stage1",
        ["tokenizer=kl", "tokenizer.bottleneck.latents=mode", *QUICK],
        "tokenizer.bottleneck.latents=mean",
    ),
    ("samples without a run", lambda p: None, "sample", [], "python train_stage2.py"),
    (
        "samples from a folder that is not there",
        lambda p: None,
        "sample",
        ["pipeline=runs/none"],
        "does not exist",
    ),
    (
        "samples from a tokenizer",
        lambda p: stage1_run(p / "runs"),
        "sample",
        ["pipeline=runs/stage1/20260101_000000_tiny"],
        "python train_stage2.py",
    ),
    (
        "asks for a class that is not there",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["classes=[dogs]"],
        "0 a, 1 b, 2 c",
    ),
    (
        "asks for a class index that is not there",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["classes=[7]"],
        "0 a, 1 b, 2 c",
    ),
    (
        "asks for a fraction of an image",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["n=1.5"],
        "n wants a whole number",
    ),
    ("samples in batches of 0", lambda p: stage2_run(p / "runs"), "sample", ["batch=0"], "batch=8"),
    ("names no class", lambda p: stage2_run(p / "runs"), "sample", ["classes=[]"], "classes=all"),
    (
        "gave top-k in words",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["top_k=abc"],
        "top_k of at least 1, got abc",
    ),
    (
        "switched the temperature off",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["temperature=null"],
        "temperature wants a number like 1.0",
    ),
    ("gave top-k no number", lambda p: stage2_run(p / "runs"), "sample", ["top_k=true"], "top_k"),
    (
        "misspelt auto",
        lambda p: None,
        "train_stage1",
        ["train.resume=atuo"],
        "train.resume=auto or a run folder, got atuo",
    ),
    (
        "misspelt the way the codebook learns",
        lambda p: None,
        "train_stage1",
        ["tokenizer.bottleneck.codebook.update=emaa", *QUICK],
        "tokenizer.bottleneck.codebook.update=learned",
    ),
    (
        "gave scales that end before the latent grid",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.scales=[1,2,4]", *QUICK],
        "latent grid of 8 x 8, got scales that end at 4 x 4; "
        "type tokenizer.bottleneck.scales=[1,2,4,8]",
    ),
    (
        "gave scales that exceed the latent grid",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.scales=[1,4,16]", *QUICK],
        "exceed it with 16 x 16; type tokenizer.bottleneck.scales=[1,4,8]",
    ),
    (
        "gave scales that decrease",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.scales=[1,4,2,8]", *QUICK],
        "from coarse to fine, got 2 x 2 after 4 x 4; type tokenizer.bottleneck.scales=[1,2,4,8]",
    ),
    (
        "gave scales in words",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.scales=all", *QUICK],
        "tokenizer.bottleneck.scales=auto",
    ),
    (
        "wants a codebook per scale of scales not listed",
        lambda p: None,
        "train_stage1",
        [
            "tokenizer=var",
            "tokenizer.bottleneck.scales=auto",
            "tokenizer.bottleneck.own_codebooks=true",
            *QUICK,
        ],
        "wanted a list of scales",
    ),
    (
        "misspelt the distance of the codes",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "tokenizer.bottleneck.distance=l3", *QUICK],
        "tokenizer.bottleneck.distance=l2",
    ),
    (
        "gave a pyramid a size that its encoder cannot halve",
        lambda p: None,
        "train_stage1",
        ["tokenizer=var", "data.size=30", *QUICK],
        "data.size=[32,32]",
    ),
    ("asks for no image", lambda p: stage2_run(p / "runs"), "sample", ["n=0"], "at least 1"),
    ("gave n a list", lambda p: stage2_run(p / "runs"), "sample", ["n=[3]"], "at least 1, got [3]"),
    ("gave n no value", lambda p: stage2_run(p / "runs"), "sample", ["n=null"], "at least 1"),
    (
        "gave a temperature below 0",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["temperature=-1"],
        "temperature",
    ),
    ("gave top-k of 0", lambda p: stage2_run(p / "runs"), "sample", ["top_k=0"], "top_k"),
    ("gave top-p above 1", lambda p: stage2_run(p / "runs"), "sample", ["top_p=1.5"], "top_p"),
    (
        "gave guidance in words",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["guidance=strong"],
        "guidance=linear:4.0",
    ),
    (
        "gave a seed below 0",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["seed=-1"],
        "seeds from 0 to 2**63 - 1, got -1",
    ),
    (
        "gave a seed that overflows",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["seed=9223372036854775808"],
        "seeds from 0 to 2**63 - 1, got 9223372036854775808",
    ),
    (
        "wants a uniform prior to choose by confidence",
        lambda p: absorbing_run(p / "runs", kernel="uniform"),
        "sample",
        ["sampler=confidence"],
        "kernel=uniform samples ancestrally",
    ),
    (
        "asks for no step",
        lambda p: absorbing_run(p / "runs"),
        "sample",
        ["steps=0"],
        "wanted steps as a whole number of at least 1, got 0; type steps=16",
    ),
    (
        "asks for half a step",
        lambda p: absorbing_run(p / "runs"),
        "sample",
        ["steps=2.5"],
        "wanted steps as a whole number of at least 1, got 2.5",
    ),
    (
        "wants another kind of picture",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["out=a.jpg"],
        "out=NAME.png",
    ),
    (
        "edits without a picture",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["edit=inpaint", "box=[0,0,1,0.5]"],
        "needs image=PATH and exactly one of mask=PATH and box=",
    ),
    (
        "edits a picture that is not there",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["edit=inpaint", "image=no.png", "box=[0,0,1,0.5]"],
        "image=no.png does not exist",
    ),
    (
        "edits a text file",
        lambda p: (stage2_run(p / "runs"), (p / "a.png").write_text("x")),
        "sample",
        ["edit=inpaint", "image=a.png", "box=[0,0,1,0.5]"],
        "image=a.png is not an image",
    ),
    (
        "edits everything outside of everything",
        lambda p: (stage2_run(p / "runs"), Image.new("RGB", (9, 9)).save(p / "a.png")),
        "sample",
        ["edit=outpaint", "image=a.png", "box=[0,0,1,1]"],
        "leaves nothing to paint at 16 x 24 pixels; what is outside of the box",
    ),
    (
        "edits two pictures at once",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["edit=inpaint", "image=[a.png,b.png]", "box=[0,0,1,0.5]"],
        "wanted image=FILE, one path",
    ),
    (
        "wants no picture at all",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["out=null"],
        "wanted out=NAME.png, got out=None",
    ),
    (
        "misspelt the way to edit",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["edit=inpant", "image=a.png", "box=[0,0,1,1]"],
        "edit=inpaint or edit=outpaint, got edit=inpant",
    ),
    (
        "gave a picture and forgot the edit",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["image=a.png", "box=[0,0,1,1]"],
        "type edit=inpaint or edit=outpaint",
    ),
    *(
        (
            f"would lose the {what} for out={out}",
            lambda p: (picture(p / "c_film.png"), (p / "a.png").symlink_to(p / "c_film.png")),
            "sample",
            ["edit=inpaint", *words, f"out={out}"],
            f"out={Path(out)} would overwrite {what}",
        )
        for what, out, *words in (
            ("image=c_film.png", "a.png", "image=c_film.png", "box=[0,0,1,1]"),
            ("image=a.png", "c.png", "image=a.png", "box=[0,0,1,1]", "film=true"),
            ("mask=c_film.png", "./a.png", "image=other.png", "mask=c_film.png"),
        )
    ),
    (
        "samples where no file can be",
        lambda p: None,
        "sample",
        ["out=/proc/x.png"],
        "type out=NAME.png in a folder you may write",
    ),
    (
        "counts frames of no film",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["frames=5"],
        "type film=true with it",
    ),
    (
        "pastes without an edit",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["paste=false"],
        "paste=false is for edits",
    ),
    (
        "films with no frame",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["film=true", "frames=0"],
        "wanted frames of at least 1",
    ),
    (
        "gave a temperature in words",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["temperature=hot"],
        "temperature wants a number",
    ),
    (
        "wants a device that is not there",
        lambda p: stage2_run(p / "runs"),
        "sample",
        ["device=tpu"],
        "device=tpu",
    ),
    (
        "chose no experiment",
        lambda p: None,
        "train_stage2",
        ["experiment=null"],
        "experiment=null chooses nothing; leave it out for its default, type '~experiment'",
    ),
    (
        "typed a knob of sampling to training",
        lambda p: None,
        "train_stage2",
        ["prior=absorbing", "sampler=halton"],
        "it is a knob of sampling; type sampler=halton to sample.py, once the model is trained",
    ),
    (
        "typed a knob of sampling to the evaluation",
        lambda p: None,
        EVALUATE,
        ["steps=8"],
        "it is a knob of sampling; type 'protocol.knobs={steps:8}'",
    ),
    (
        "misspelt the kernel",
        lambda p: stage1_run(p / "runs"),
        "train_stage2",
        ["prior=absorbing", "prior.kernel=unifrom", *TINY_PICTURES],
        "got unifrom; did you mean uniform?",
    ),
    (
        "misspelt a sampler",
        lambda p: absorbing_run(p / "runs"),
        "sample",
        ["sampler=haltom"],
        "got haltom; did you mean halton?",
    ),
    *(
        (f"evaluated with a protocol that makes no sense: {word}", before, EVALUATE, [word], wanted)
        for before, word, wanted in (
            (
                lambda p: absorbing_run(p / "runs"),
                "protocol.knobs={sampler:haltom}",
                "mean halton?",
            ),
            (lambda p: absorbing_run(p / "runs"), "protocol.knobs={steps:0}", "type steps=16"),
            (lambda p: absorbing_run(p / "runs"), "protocol.knobs={remask:2}", "type remask=0.05"),
            (
                lambda p: None,
                "protocol.knobs=[steps]",
                "protocol.knobs={temperature:0.9}",
            ),
            (lambda p: None, "protocol.validation_images=-1", "of at least 0, or null"),
            (lambda p: None, "protocol.validation_images=true", "of at least 0, or null"),
            (lambda p: None, "protocol.bound_samples=true", "bound_samples of at least 1, or null"),
            (
                lambda p: stage2_run(p / "runs"),
                "protocol.bound_samples=8",
                "(absorbing), got 8 with",
            ),
        )
    ),
    ("evaluated nothing", lambda p: None, EVALUATE, ["model=null"], "model=RUN or samples="),
    ("evaluated no run", lambda p: None, EVALUATE, ["model=nowhere"], "nowhere does not exist"),
    (
        "evaluated a run without its data",
        lambda p: stage2_run(p / "runs"),
        EVALUATE,
        [],
        "protocol.reference.npz=PATH",
    ),
    (
        "gave a reference of another size",
        lambda p: (stage2_run(p / "runs"), reference(p / "r.npz", (8, 8))),
        EVALUATE,
        ["protocol.reference.npz=r.npz", "protocol.classes=balanced", "protocol.samples=9"],
        "samples are images of [16, 24], but r.npz holds images of [8, 8]",
    ),
    (
        "gave a reference of other classes",
        lambda p: (stage2_run(p / "runs"), reference(p / "r.npz", classes=1000)),
        EVALUATE,
        ["protocol.reference.npz=r.npz", "protocol.classes=balanced", "protocol.samples=9"],
        "class mismatch: r.npz has class 999",
    ),
    (
        "asked for a count that its classes do not divide",
        lambda p: (stage2_run(p / "runs"), reference(p / "r.npz")),
        EVALUATE,
        ["protocol.reference.npz=r.npz", "protocol.classes=balanced", "protocol.samples=50"],
        "type protocol.samples=48",
    ),
    (
        "gave another reference file than the protocol's",
        lambda p: (stage2_run(p / "runs"), reference(p / "r.npz")),
        EVALUATE,
        ["protocol.reference.npz=r.npz", "protocol.reference.sha256=00ff"],
        "the protocol wants 00ff",
    ),
    (
        "left the reference of a protocol out",
        lambda p: stage2_run(p / "runs"),
        EVALUATE,
        ["protocol=gfid-adm"],
        "VIRTUAL_imagenet256_labeled.npz",
    ),
    (
        "evaluated an empty folder",
        lambda p: (p / "empty").mkdir(),
        EVALUATE,
        ["samples=empty"],
        "holds no pictures",
    ),
    (
        "evaluated fewer samples than neighbours",
        lambda p: (reference(p / "few.npz", count=4), reference(p / "r.npz")),
        EVALUATE,
        ["samples=few.npz", "protocol.reference.npz=r.npz"],
        "need more samples than that, got 4",
    ),
    (
        "named features that are not there",
        lambda p: reference(p / "r.npz"),
        EVALUATE,
        ["samples=r.npz", "protocol.reference.npz=r.npz", "protocol.features=fid"],
        "features=fid is not known",
    ),
    (
        "asked for features of an unknown kind beside the protocol",
        lambda p: reference(p / "r.npz"),
        EVALUATE,
        ["samples=r.npz", "protocol.reference.npz=r.npz", "features=timm:resnet5O"],
        "did you mean timm:resnet50?",
    ),
    *(
        (f"{what} drawn by scripts.{script}", before, f"scripts.{script}", words, wanted)
        for script, words, other in (
            ("absorbing_figure", ["runs/stage2/20260101_000000_tiny"], "wanted a run of prior=abs"),
            (
                "solver_figure",
                ["o", "runs/stage2/20260101_000000_tiny"],
                "wanted a run of prior=fl",
            ),
        )
        for what, before, wanted in (
            ("no run", lambda p: None, "20260101_000000_tiny does not exist"),
            ("another family", lambda p: stage2_run(p / "runs"), other),
        )
    ),
    (
        "a prior without masks drawn by scripts.absorbing_figure",
        lambda p: absorbing_run(p / "runs", kernel="uniform"),
        "scripts.absorbing_figure",
        ["runs/stage2/20260101_000000_tiny"],
        "got Absorbing with kernel=uniform in",
    ),
    ("compared nothing", lambda p: None, "scripts.compare", [], "wanted runs to compare"),
    (
        "mixed two runs in one folder",
        lambda p: stage2_run(p / "runs", mark="0123456789abcdef"),
        "sample",
        [],
        "another tokenizer",
    ),
]


def a_cache(out: Path, mark: str) -> None:
    """The tiny data as a cache of the tokenizer with this fingerprint."""
    data, tokenizer = tiny.data(batch=1), tiny.tokenizer().eval()
    planned = extract.plan(data, tokenizer, fingerprint=mark, path="runs/stage1/lost")
    extract.extract(planned, data, tokenizer, str(out))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("before", "program", "words", "sentence"),
    [pytest.param(*case[1:], id=case[0].replace(" ", "-")) for case in CASES],
)
def test_one_sentence(
    before: Callable[[Path], object],
    program: str,
    words: list[str],
    sentence: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    before(tmp_path)
    assert sentence in refused(program, *words)


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 25


def test_a_logger_that_is_not_installed(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vqgen.training.wandb_board", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for program in ("train_stage1", "train_stage2"):
        assert "type logger=files" in refused(program, "logger=wandb")
    assert not Path("runs").exists()


@pytest.mark.parametrize("when", ["overrides.check", "build.data"])
def test_ctrl_c_before_training_is_one_line(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def pressed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"vqgen.{when}", pressed)
    assert typed("train_stage1", QUICK, monkeypatch) == 130
    assert capsys.readouterr().err == "vqgen: stopped before anything was trained\n"


def test_all_devices_may_be_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"strategy": "auto", "devices": -1, "num_nodes": 1, "accelerator": "cpu"}
    devices.check(node)
    assert devices.trainer(node, logger=False, enable_checkpointing=False).num_devices == 1


def test_no_space_left_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage1_run(tmp_path)
    before = checkpoint.read_header(run / "tokenizer")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    model = torch.nn.Linear(2, 2)
    with pytest.raises(OSError, match=r"No space left.*untouched"):
        checkpoint.save_model(run / "tokenizer", model, kind="tokenizer", architecture={}, facts={})
    assert checkpoint.read_header(run / "tokenizer") == before


def test_sampling_works_from_the_same_fixture(tmp_path: Path, monkeypatch, capsys) -> None:
    """The cases above fail for their own reason: without it, the very same runs sample."""
    stage2_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert typed("sample", ["n=2", "classes=[a,2]"], monkeypatch) == 0
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "samples.npz").is_file()
    words = ["n=3", "classes=[b]", "film=true", "frames=4", "edit=outpaint", "image=samples.png"]
    assert typed("sample", [*words, "box=[0,0,0.5,0.5]", "out=e.png"], monkeypatch) == 0
    with Image.open(tmp_path / "e_film.gif") as film:
        assert getattr(film, "n_frames") == 4  # noqa: B009 (Pillow's stubs leave it out)
    assert (tmp_path / "e.png").is_file() and (tmp_path / "e_film.png").is_file()
    printed = capsys.readouterr().out
    assert printed.endswith("e.png, e.npz, e_film.gif, e_film.png\n") and "film has" not in printed
    with Image.open(tmp_path / "e_film.png") as strip, np.load(tmp_path / "e.npz") as arrays:
        frames = np.asarray(strip)  # the first image: its first frame keeps the pixels, its last
        last = np.kron(arrays["arr_0"][0], np.ones((2, 2, 1), dtype=np.uint8))  # is the saved one
    cell = last.shape[0] + 4, last.shape[1] + 4
    cells = [frames[2 : cell[0] - 2, i * cell[1] + 2 : (i + 1) * cell[1] - 2] for i in range(4)]
    assert np.array_equal(cells[-1], last)
    kept = slice(0, last.shape[0] // 2), slice(0, last.shape[1] // 2)
    assert np.array_equal(cells[0][kept], last[kept])


def test_a_film_says_that_there_are_fewer_steps_than_frames(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    stage2_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert typed("sample", ["n=1", "film=true", "frames=100"], monkeypatch) == 0
    assert "the film has 6 frames, one for each step of the samp" in capsys.readouterr().out


def test_a_plan_is_of_what_training_will_find(tmp_path: Path, monkeypatch, capsys) -> None:
    """The recipe of the tokenizer's own data, a wrapped tokenizer, the sizes of a prior to go on
    from; nothing is left behind."""
    run = stage1_run(tmp_path / "runs")
    (run / "overrides.txt").write_text("data=folder\ndata.root=mine\ndata.size=[16,24]\n")
    monkeypatch.chdir(tmp_path)
    assert typed("train_stage2", ["plan=true"], monkeypatch) == 0
    assert "100,000 steps" in capsys.readouterr().out, "not the recipe of the emoji"
    words = ["plan=true", "as_features=true", "prior=flow_tiny", "prior.network.patch=1"]
    assert typed("train_stage2", words, monkeypatch) == 0
    capsys.readouterr()
    other = stage2_run(tmp_path / "other")
    saved = checkpoint.read_model(other / "pipeline" / "prior", "prior").tensors
    words = ["plan=true", f"init={other}", "data.size=[16,24]"]
    assert typed("train_stage2", words, monkeypatch) == 0
    assert f" {sum(value.numel() for value in saved.values()):,}" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "stage2").exists()
