"""Finished runs of the tiny models with data of their own: what the evaluator is tested on."""

import copy
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import yaml
from PIL import Image

from tests import tiny
from tests.test_bad_input import ARCHITECTURE, KL_ARCHITECTURE, PRIOR
from vqgen import build, checkpoint, cli
from vqgen.evaluation.protocol import Protocol
from vqgen.priors.flow import Flow

FLOW: dict[str, Any] = {
    "_target_": "vqgen.priors.flow.Flow",
    "network": {
        "_target_": "vqgen.nn.dit.DiT",
        "_partial_": True,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "patch": 1,
    },
}


def pictures(root: Path, classes: int = 3, count: int = 36) -> Path:
    """A folder of smooth pictures of 16 x 24, one subfolder per class (none: flat)."""
    for i, image in enumerate(tiny.images(count, seed=3)):
        folder = root / f"class{i % classes}" if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return root


def config(run: Path, data: Path) -> None:
    """The part of a run's config.yaml that says what it was trained on."""
    node: dict[str, Any] = {
        "_target_": "vqgen.data.folders.folder",
        "root": str(data),
        "val_fraction": 0.25,
        "size": list(tiny.SIZE),
    }
    checkpoint.write_text(run / "config.yaml", yaml.safe_dump({"data": node}))


def stage1(root: Path, classes: int = 3) -> Path:
    """A stage-1 run."""
    run = root / "stage1" / "20260101_000000_tiny"
    names = [f"class{i}" for i in range(classes)]
    options: dict[str, Any] = {"kind": "tokenizer", "architecture": ARCHITECTURE}
    facts = {"class_names": names}
    checkpoint.save_model(run / "tokenizer", tiny.tokenizer(), facts=facts, **options)
    config(run, pictures(root / f"pictures{classes}", classes))
    return run


def stage2(root: Path, classes: int = 3) -> Path:
    """A stage-2 run over it."""
    export = stage1(root, classes) / "tokenizer"
    run = root / "stage2" / "20260101_000000_tiny"
    checkpoint.copy_model(export, run / "pipeline" / "tokenizer")
    facts = {
        "class_names": [f"class{i}" for i in range(classes)],
        "num_classes": classes,
        "tokenizer_fingerprint": checkpoint.read_header(export)["fingerprint"],
    }
    options: dict[str, Any] = {"kind": "prior", "architecture": PRIOR, "facts": facts}
    checkpoint.save_model(run / "pipeline" / "prior", tiny.prior(classes), **options)
    config(run, root / f"pictures{classes}")
    return run


def continuous(root: Path, **bottleneck: Any) -> Path:
    """A stage-2 run of a flow over a KL tokenizer."""
    run = root / "stage2" / "20260101_000000_flow"
    model = tiny.kl(**bottleneck)
    architecture = copy.deepcopy(KL_ARCHITECTURE)
    architecture["bottleneck"] |= bottleneck
    facts: dict[str, Any] = {"class_names": [f"class{i}" for i in range(3)], "num_classes": 3}
    options: dict[str, Any] = {"kind": "tokenizer", "architecture": architecture, "facts": facts}
    checkpoint.save_model(run / "pipeline" / "tokenizer", model, **options)
    mark = checkpoint.read_header(run / "pipeline" / "tokenizer")["fingerprint"]
    options = {"kind": "prior", "architecture": FLOW, "facts": facts}
    options["facts"] = {**facts, "tokenizer_fingerprint": mark}
    checkpoint.save_model(run / "pipeline" / "prior", tiny.continuous(Flow, model), **options)
    config(run, pictures(root / "pictures", 3))
    return run


def protocol_settings(name: str) -> dict[str, Any]:
    """A protocol of conf/evaluate/protocol as Hydra composes it."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "evaluate")):
        return build.plain(hydra.compose("evaluate", [f"protocol={name}"]))["protocol"]


def protocol(name: str = "emoji-2k", **changes: Any) -> Protocol:
    """The same, made small."""
    small: dict[str, Any] = {"samples": 12, "neighbors": 2, "perceptual": None}
    return Protocol(**{**protocol_settings(name), **small, **changes})


def npz(path: Path, count: int = 9, size: tuple[int, int] = tiny.SIZE, **more: Any) -> Path:
    """An ADM-style file of random pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels, **more)
    return path
