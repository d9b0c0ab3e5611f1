"""Saved models: round trip, atomic writing, readable refusals."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vqgen import checkpoint

ARCHITECTURE = {"_target_": "vqgen.anything", "width": 3}


def save(folder: Path, model: nn.Module, architecture: dict = ARCHITECTURE) -> str:
    return checkpoint.save_model(
        folder, model, kind="prior", architecture=architecture, facts={"class_names": ["a"]}
    )


def test_round_trip_keeps_every_bit_and_fact(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    mark = save(tmp_path, model)
    saved = checkpoint.read_model(tmp_path, "prior")
    assert (saved.architecture, saved.facts) == (ARCHITECTURE, {"class_names": ["a"]})
    assert saved.fingerprint == mark
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    checkpoint.load_strict(other, saved.tensors, "file")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_fingerprint_sees_values_names_and_architecture() -> None:
    tensors = {"a": torch.arange(4.0)}
    base = checkpoint.fingerprint(tensors, ARCHITECTURE)
    assert base == checkpoint.fingerprint({"a": torch.arange(4.0)}, dict(ARCHITECTURE))
    changed = torch.arange(4.0)
    changed[3] += 1e-6
    others = [
        checkpoint.fingerprint({"a": changed}, ARCHITECTURE),
        checkpoint.fingerprint({"b": torch.arange(4.0)}, ARCHITECTURE),
        checkpoint.fingerprint({"a": torch.arange(4.0).reshape(2, 2)}, ARCHITECTURE),
        checkpoint.fingerprint(tensors, {**ARCHITECTURE, "width": 4}),
    ]
    assert base not in others and len(set(others)) == 4


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_text(path, "old")
    with pytest.raises(OSError, match="untouched"), checkpoint.atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_strict_load_lists_the_difference() -> None:
    with pytest.raises(ValueError) as caught:
        checkpoint.load_strict(
            nn.Linear(2, 3), {"weights": torch.zeros(3, 2), "bias": torch.zeros(4)}, "some.file"
        )
    text = str(caught.value)
    assert "some.file" in text and "missing  weight (3, 2)  (is it weights?)" in text
    assert "unknown  weights" in text and "model (3,), file (4,)" in text


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def not_safetensors(path: Path) -> None:
    path.write_bytes(b"something else entirely")


@pytest.mark.parametrize("damage", [cut_short, not_safetensors])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage) -> None:
    save(tmp_path, nn.Linear(2, 3))
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="damaged or cut short"):
        checkpoint.read_model(tmp_path, "prior")


def test_a_turned_bit_is_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, nn.Linear(2, 3))
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-3] ^= 1  # of a value: values end the file
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not as it was written"):
        checkpoint.read_model(tmp_path, "prior")


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.read_model(tmp_path / "nothing", "prior")
    save(tmp_path, nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"wanted a tokenizer, but .* holds a prior"):
        checkpoint.read_model(tmp_path, "tokenizer")
    with pytest.raises(ValueError, match="not written by vqgen"):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
        checkpoint.read_header(tmp_path)


def test_a_newer_format_asks_for_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save(tmp_path, nn.Linear(2, 3))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="update vqgen"):
        checkpoint.read_header(tmp_path)


def test_copy_is_exact_and_done_once(tmp_path: Path) -> None:
    save(tmp_path / "a", nn.Linear(2, 3))
    checkpoint.copy_model(tmp_path / "a", tmp_path / "b")
    before = (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns
    checkpoint.copy_model(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns == before
    assert checkpoint.read_header(tmp_path / "a") == checkpoint.read_header(tmp_path / "b")
