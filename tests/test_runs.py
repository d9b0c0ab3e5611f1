"""Run folders: names, the newest fitting one, and what is said when none fits."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from vqgen import runs


def test_two_runs_in_one_second_get_two_folders_in_order(tmp_path: Path) -> None:
    made = [runs.new(tmp_path, "stage1", "first") for _ in range(3)]
    assert len(set(made)) == 3
    assert list(runs.newest_first(tmp_path, "stage1", "first")) == made[::-1]
    assert list(runs.newest_first(tmp_path, "stage1", "other")) == []


def test_a_clock_that_was_set_back_changes_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour (the end of summer time) or to 1970: the newest run stays the newest."""

    class Clock(datetime):
        hours = iter([12, 11, 12, -400_000])

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 10, 25) + timedelta(hours=next(cls.hours))

    monkeypatch.setattr(runs, "datetime", Clock)
    made = [runs.new(tmp_path, "stage1", f"run{i}") for i in range(4)]
    assert list(runs.newest_first(tmp_path, "stage1")) == made[::-1]
    assert made[2].name == "20261025_120002_run2"


def test_folders_of_other_names_are_no_runs(tmp_path: Path) -> None:
    made = runs.new(tmp_path, "stage1", "first")
    for name in ("old_copy_first", "zz_top", ".git", f"{made.name}.bak/x"):
        (tmp_path / "stage1" / name).mkdir(parents=True)
    (tmp_path / "stage1" / "99999999_999999_digits").mkdir()
    assert runs.new(tmp_path, "stage1", "second").name.endswith("_second")
    assert next(runs.newest_first(tmp_path, "stage1", "first")) == made


@pytest.mark.parametrize("name", ["", "a/b", "two words"])
def test_a_name_has_to_be_a_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"run\.name=first"):
        runs.new(tmp_path, "stage1", name)


def export(run: Path) -> Path:
    folder = run / "tokenizer"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def test_newest_export_skips_unfinished_and_refused_runs(tmp_path: Path) -> None:
    good = export(runs.new(tmp_path, "stage1", "good"))
    refused = export(runs.new(tmp_path, "stage1", "refused"))
    runs.new(tmp_path, "stage1", "unfinished")

    def refusal(folder: Path) -> str | None:
        return "wrong scales" if folder == refused else None

    assert runs.newest_export(tmp_path, "stage1", refusal, "command") == good
    good.joinpath("model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"(?s)refused: wrong scales.*Type: command"):
        runs.newest_export(tmp_path, "stage1", refusal, "command")


def test_no_run_at_all_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)no stage1 run fits:.*there is none under .*Type: python train"
    ):
        runs.newest_export(tmp_path, "stage1", lambda _: None, "python train_stage1.py")
