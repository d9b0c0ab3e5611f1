"""Files and W&B: what is written, offline, under the generator step, and the same W&B run after a
resume."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vqgen import build
from vqgen.training.logs import FileBoard

PICTURE = np.zeros((8, 8, 3), dtype=np.uint8)
WANDB = {"_target_": "vqgen.training.wandb_board.WandbBoard", "project": "vqgen", "mode": "offline"}


def test_the_file_board_appends(tmp_path: Path) -> None:
    FileBoard(tmp_path).log_metrics({"train/a": 1.0}, step=1)
    FileBoard(tmp_path).log_metrics({"train/a": 0.5, "val/b": 2.0}, step=2)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [("1", "train/a", "1"), ("2", "train/a", "0.5"), ("2", "val/b", "2")]


def test_a_rewound_board_has_no_row_twice(tmp_path: Path) -> None:
    """Rows after the checkpoint, and one that a kill left half written, are dropped."""
    board = FileBoard(tmp_path)
    board.rewind(0)
    for step in (1, 2, 3):
        board.log_metrics({"train/a": step / 2}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,train/b,0.12")
    board.rewind(2)
    board.log_metrics({"train/a": 7.0}, step=3)
    rows = (tmp_path / "metrics.csv").read_text().split()
    assert rows == ["step,name,value", "1,train/a,0.5", "2,train/a,1", "3,train/a,7"]


@pytest.mark.parametrize("found", [b"", b"\xff\x00rubbish\n1,train/a,1\n"])
def test_a_file_that_is_no_metrics_is_put_aside(tmp_path: Path, found: bytes, capsys) -> None:
    board = FileBoard(tmp_path)
    for number in (1, 2):
        (tmp_path / "metrics.csv").write_bytes(found)
        board.rewind(2)
        assert capsys.readouterr().out.count("\n") == 1
        assert (tmp_path / f"metrics_damaged_{number}.csv").read_bytes() == found
        board.log_metrics({"train/a": 7.0}, step=3)
        rows = (tmp_path / "metrics.csv").read_text().split()
        assert rows == ["step,name,value", "3,train/a,7"]


def test_pictures_and_counts_are_files(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    board.log_picture("samples/by_class", PICTURE, step=7)
    board.log_counts("codebook/histogram", np.array([3, 0, 1]), step=7)
    assert (tmp_path / "samples" / "samples_by_class_0000007.png").is_file()
    assert '"counts": [3, 0, 1]' in (tmp_path / "samples" / "codebook_histogram.json").read_text()


def test_a_table_is_a_file_without_its_pictures(tmp_path: Path) -> None:
    FileBoard(tmp_path).log_table("evaluation/card", ["a", "b"], [["x", 1.5], ["y", PICTURE]], 0)
    text = (tmp_path / "samples" / "evaluation_card.csv").read_text()
    assert text.split() == ["a,b", "x,1.5", "y,"]


@pytest.mark.slow
def test_wandb_runs_offline_and_goes_on_under_the_same_id(tmp_path: Path) -> None:
    facts: dict = {}
    for step in (1, 2):  # two pieces of one run: the id travels in the checkpoint's facts
        (board,) = build.boards({"logger": WANDB}, {}, tmp_path, facts)
        board.log_metrics({"train/a": 1.0}, step=step)
        board.log_picture("samples/x", PICTURE, step=step)
        board.log_counts("codebook/histogram", np.arange(1000), step=step)
        board.log_table("comparison/trilemma", ["run", "samples"], [["a", PICTURE]], step)
        board.close()
    assert list((tmp_path / "wandb").rglob("*trilemma*.table.json"))
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and all(facts["wandb_id"] in run.name for run in runs)  # -1 within one second


def test_an_unknown_wandb_mode_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger\.mode=offline or logger\.mode=online"):
        build.boards({"logger": {**WANDB, "mode": "on"}}, {}, tmp_path, {})


def test_no_logger_is_no_board(tmp_path: Path) -> None:
    assert build.boards({"logger": None}, {}, tmp_path, {}) == []
