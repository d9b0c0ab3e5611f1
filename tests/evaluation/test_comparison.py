"""The comparison: names, ranks, ticks and files; and one command over two real runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation import runs
from vqgen.evaluation import comparison, plots
from vqgen.evaluation.comparison import Row, plain_name

ROOT = Path(__file__).resolve().parents[2]


def row(family: str, fd: float, recall: float, seconds: float, **more: Any) -> Row:
    numbers = {"FD": fd, "recall": recall, "seconds per image": seconds, "precision": 0.5}
    options: dict[str, Any] = {"steps": None, "likelihood": "exact", "n": 12, "ceiling": False}
    return Row(more.pop("name", family), family, numbers=numbers, **{**options, **more})


ROWS = [
    row("diffusion", 10.0, 0.8, 1.0),
    row("flow", 20.0, 0.5, 0.1),
    row("flow", 15.0, 0.5, 0.4, name="flow, 8 steps", steps=8),
    row("tokenizer", 5.0, 0.9, 0.0, ceiling=True),
]


def test_names_lose_what_cards_add() -> None:
    assert plain_name("ceiling FD-efficientnet_lite0@2000") == "FD"
    assert plain_name("FID") == plain_name("FID@50") == "FD"
    assert plain_name("sFD-timm:resnet50") == "sFD"
    assert plain_name("bits per dimension (exact)") == "bits per dimension"
    assert plain_name("full bound, bits per dimension (exact + decoder)").startswith("full bound")


def test_ranks_are_among_priors_only() -> None:
    ranks = comparison.ranks(ROWS)
    assert ranks["diffusion"] == {"quality": 1, "coverage": 1, "speed": 3}
    assert ranks["flow"] == {"quality": 3, "coverage": 2, "speed": 1}
    assert ranks["flow, 8 steps"]["coverage"] == 2 and ranks["tokenizer"] == {}


def test_ticks_stand_beside_ranks() -> None:
    text = comparison.markdown(ROWS)
    line = next(x for x in text.splitlines() if x.startswith("| diffusion | ✓"))
    assert line.startswith("| diffusion | ✓ 1. | ? 1. | ✗ 3. | ✗ |")
    table = list(csv.DictReader(comparison.as_csv(ROWS).splitlines()))
    assert [r["run"] for r in table] == [r.name for r in ROWS] and table[1]["FD"] == "20.0"


def test_plots_are_pictures(tmp_path: Path) -> None:
    written = plots.draw(ROWS, tmp_path)
    assert {p.name for p in written} == {
        f"{n}.{e}" for n in ("front", "triangle") for e in ("png", "pdf")
    }
    for path in written:
        if path.suffix == ".png":
            assert len(Image.open(path).convert("RGB").getcolors(10**6) or []) > 10
        else:
            assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_one_command_compares_two_runs(tmp_path: Path) -> None:
    prior, tokenizer = runs.stage2(tmp_path), tmp_path / "stage1" / "20260101_000000_tiny"
    words = ["protocol.samples=12", "protocol.neighbors=2", "protocol.perceptual=null"]
    words += [f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", "steps=[4]"]
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), str(prior), str(tokenizer)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for printed in ("", "reusing"):
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert printed in done.stdout and "| llamagen (tiny) |" in done.stdout
    card = json.loads((prior / "evaluation" / "emoji-2k" / "card.json").read_text())
    table = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert float(table[0]["FD"]) == card["numbers"]["FD-efficientnet_lite0@12"]["value"]
    assert table[1]["family"] == "tokenizer" and (tmp_path / "out" / "front.png").is_file()
