"""The dashboard's spec: it reads back whole, and asks for nothing that training does not log."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning import seed_everything

from scripts import dashboard
from tests import tiny
from tests.test_bad_input import ARCHITECTURE, typed
from vqgen.training import launch, opening
from vqgen.training.stage1 import Stage1

SETTINGS: dict[str, Any] = {"entity": None, "project": "vqgen", "name": "vqgen"}
# logged by stage 2 and by LPIPS, which the tiny tokenizer's run does not have
ELSEWHERE = {"train/cross_entropy", "train/norm", "train/perceptual", "val/lpips"}


def test_the_specs_read_back_as_they_were(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("scripts.dashboard", [f"out={tmp_path}"], monkeypatch) == 0
    workspace = json.loads((tmp_path / "workspace.json").read_text())
    named = [s["name"] for s in workspace["spec"]["section"]["panelBankConfig"]["sections"]]
    wanted = ["Losses", "GAN health", "Codebook", "Samples", "Likelihood", "Performance"]
    assert [name for name in named if name in wanted] == wanted
    assert named[-1] == "Comparison of runs"
    text = (tmp_path / "report.json").read_text()
    assert "The trilemma" in text and "comparison/trilemma" in text


def test_a_spec_that_loses_a_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dashboard.workspace(SETTINGS)
    type_of = type(made)
    again = type_of._from_model

    def forgetful(model: Any) -> Any:
        found = again(model)
        found.sections = found.sections[1:]
        return found

    monkeypatch.setattr(type_of, "_from_model", forgetful)
    with pytest.raises(ValueError, match="the spec reads back as"):
        dashboard.checked(made)


def test_every_line_is_one_that_training_logs(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module = Stage1(
        tiny.tokenizer(), tiny.loss(), tiny.recipe(6), architecture=ARCHITECTURE, facts={}
    )
    options: dict[str, Any] = {"boards": [], "precision": "32-true"}
    launch.train(module, tiny.data(), opening.Run(tmp_path), tiny.settings(), **options)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = {row["name"] for row in csv.DictReader(file)}
    asked = {name for panels in dashboard.LINES.values() for y in panels for name in y}
    bits = {name for name in asked if name.startswith("val/bits_")}  # of stage 2: test_training
    assert asked - ELSEWHERE - bits <= logged
    pictures = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "samples").glob("*.png")}
    assert "samples_reconstructions" in pictures


def test_the_small_distance_has_a_panel_whatever_its_network_and_count() -> None:
    """Its name holds both (vqgen/evaluation/small.py), so the panel is by a pattern."""
    for name in ("val/fd_efficientnet_lite0_n256", "val/rfd_timm_resnet50_n64"):
        assert re.fullmatch(dashboard.SMALL_FD, name)
    made = [dashboard.workspace(SETTINGS), dashboard.report(SETTINGS)]
    assert all(json.dumps(dashboard.SMALL_FD) in json.dumps(dashboard.checked(m)) for m in made)


def test_publishing_needs_a_name(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("scripts.dashboard", ["publish=true"], monkeypatch) == 2
    assert "entity=NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("project=null", "wanted project as a word, got None; type project=vqgen"),
        ("name=''", "wanted name as a word, got ''"),
        ("project=a/b", "without /\\#?%:, got the letters '/'; type project=vqgen"),
        ("entity=" + "e" * 129, "got 129 letters"),
        ("out=null", "wanted out as a text, got None"),
        ("~out", "out cannot be taken away; leave ~out out"),
        ("out=5", "wanted out as a text, got 5"),
        (
            "out=/dev/null/x",
            "nothing can be written to /dev/null/x (Not a directory); type out=DIR",
        ),
    ],
)
def test_bad_names(word: str, answer: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("scripts.dashboard", [word], monkeypatch) == 2
    assert answer in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_server_that_takes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    def save(thing: Any) -> None:
        raise RuntimeError("No API key configured.\nMore")

    monkeypatch.setattr(type(dashboard.workspace(SETTINGS)), "save", save)
    words = [f"out={tmp_path}", "publish=true", "entity=me"]
    assert typed("scripts.dashboard", words, monkeypatch) == 2
    assert "did not take it (RuntimeError: No API key configured.)" in capsys.readouterr().err
    assert (tmp_path / "workspace.json").is_file()
