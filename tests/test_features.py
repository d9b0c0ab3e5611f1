"""as_features=true: saved and loaded as one tokenizer; on the command line, tokens to samples."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.test_bad_input import ARCHITECTURE, stage1_run, typed
from tests.training.test_latents import encoded
from vqgen import checkpoint, features, pipeline
from vqgen.tokenizers.features import AsFeatures
from vqgen.training import latents


def test_features_are_saved_and_loaded_as_one_tokenizer(tmp_path: Path) -> None:
    inner = tiny.tokenizer()
    inner(tiny.images(4).float() / 127.5 - 1)
    facts = {"class_names": ["a"]}
    export = tmp_path / "inner"
    options = {"kind": "tokenizer", "architecture": ARCHITECTURE, "facts": facts}
    mark = checkpoint.save_model(export, inner, **options)  # type: ignore[arg-type]
    wrapped, got, same = features.load(export)
    assert got == facts and same == mark and isinstance(wrapped, AsFeatures)
    latents.standardize_(wrapped, tiny.data())
    new = features.save(tmp_path / "wrapped", wrapped, export)
    loaded, got, read = pipeline.load_tokenizer(tmp_path / "wrapped")
    assert got == facts and read == new != mark
    assert torch.equal(encoded(loaded), encoded(wrapped))
    with torch.no_grad():
        assert torch.equal(loaded.decode(encoded(loaded)), inner.decode(encoded(inner)))


@pytest.mark.slow
def test_a_flow_over_the_features_of_tokens(tmp_path: Path, monkeypatch, capsys) -> None:
    """Stage 2 finds the tokens, writes them wrapped, goes on where it stopped, and samples."""
    export = stage1_run(tmp_path / "runs") / "tokenizer"
    monkeypatch.chdir(tmp_path)
    words = [
        *("prior=flow_tiny", "as_features=true", "debug=fast", "data.size=[16,24]"),
        *("prior.network.width=32", "prior.network.depth=1", "prior.likelihood_steps=1"),
        *("preview.per_class=1", "trainer.limit_val_batches=1", "run.name=trial"),
    ]
    assert typed("train_stage2", words, monkeypatch) == 0
    (run,) = (tmp_path / "runs" / "stage2").iterdir()
    loaded = pipeline.load(run)
    assert isinstance(loaded.tokenizer, AsFeatures)
    inner = checkpoint.read_model(export, "tokenizer").tensors
    for name, value in loaded.tokenizer.tokenizer.state_dict().items():
        assert torch.equal(value, inner[name]), name
    assert not torch.equal(loaded.tokenizer.scaling.deviation, torch.ones(8))
    before = (run / "tokenizer" / "model.safetensors").read_bytes()
    again = [*words, "train.resume=auto", "train.max_steps=3"]
    assert typed("train_stage2", again, monkeypatch) == 0
    assert (run / "tokenizer" / "model.safetensors").read_bytes() == before
    assert pipeline.load(run).facts["steps"] == 3
    images = pipeline.load(run).sample([0, 1], seeds=[0, 1], steps=2)
    assert images.shape == (2, 3, 16, 24) and images.dtype == torch.uint8
