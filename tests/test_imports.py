"""The import rules of the house, read from the source: arrows run one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vqgen"
ROOMS = (
    *("nn", "sampling", "losses", "metrics", "tokenizers", "priors", "data", "training"),
    *("evaluation", "importing"),
)
# room or file -> what of vqgen it may import (a room may always import its own files)
ALLOWED = {
    "contracts": set(),
    "checkpoint": set(),
    "pictures": {"checkpoint"},
    "progress": set(),
    "words": set(),  # plain text: whoever refuses a name may ask it for the nearest
    "order": {"contracts", "editing", "pipeline", "progress", "text"},
    "editing": {"contracts", "data"},
    "runs": set(),
    "commands": set(),
    "together": set(),
    "arguments": {"contracts", "words"},
    "nn": set(),
    "sampling": {"words"},
    "metrics": set(),
    "losses": {"contracts"},
    "tokenizers": {"contracts", "nn"},
    "priors": {"contracts", "nn", "sampling", "words"},
    "data": {"commands", "contracts", "together"},
    "training": {
        *("commands", "contracts", "losses", "metrics", "checkpoint", "pictures", "runs"),
        "together",
    },
    "evaluation": {
        *("arguments", "contracts", "build", "checkpoint", "pipeline", "pictures", "runs"),
        *("data", "losses", "metrics", "sampling", "training"),
    },
    "build": {"contracts", "nn", "words"},
    "cli": {"overrides"},
    "overrides": {"finetune", "runs", "words"},
    "demo": {"build", "overrides", "runs", "training"},
    "pipeline": {
        *("arguments", "contracts", "build", "checkpoint", "editing", "features", "pictures"),
        *("sampling", "words"),
    },
    "features": {"contracts", "build", "checkpoint"},
    "finetune": {"contracts", "build", "checkpoint"},
    "fitting": {
        *("build", "checkpoint", "contracts", "data", "features", "finetune", "pipeline", "runs")
    },
    "planning": {"build", "checkpoint", "data", "finetune", "fitting", "training"},
    "preview": {"arguments", "contracts", "pictures", "pipeline", "sampling"},
    "importing": {"contracts", "build", "checkpoint", "nn", "words"},
    "text": {"contracts", "checkpoint"},
    "__init__": {"contracts", "pipeline"},
}
# library -> the only rooms and files that may import it
OWNERS = {
    "lightning": {"training", "data"},
    "hydra": {"build", "cli", "overrides"},
    "omegaconf": {"build", "cli", "overrides"},
    "wandb": {"training/wandb_board"},
    "datasets": {"data"},
    "lpips": {"losses"},
    "transformers": {"text"},
    "timm": {"metrics"},
    "torch_fidelity": {"metrics"},
}


def files() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """ "training" for vqgen/training/ema.py, "build" for vqgen/build.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        if name.split(".")[0] != "vqgen":
            continue
        target = name.split(".")[1]
        assert target == room or target in ALLOWED[room], f"{room} may not import {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    inside = {room_of(path), str(path.relative_to(PACKAGE).with_suffix(""))}
    for name in imported(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or owners & inside, f"{name} belongs in {owners}"


@pytest.mark.parametrize("name", ["train_stage1.py", "train_stage2.py", "sample.py"])
def test_entry_points_are_short(name: str) -> None:
    assert len((PACKAGE.parent / name).read_text().splitlines()) <= 100


def test_the_rules_know_every_room() -> None:
    assert {room_of(path) for path in files()} <= ALLOWED.keys()
    assert all((PACKAGE / room).is_dir() for room in ROOMS)
