"""init=DIR: a training starts from saved weights; other classes, and what is refused."""

from pathlib import Path

import pytest
import torch

from tests.importing import small
from vqgen import build, checkpoint, finetune, pipeline
from vqgen.contracts import Condition


def text_pair(folder: Path) -> Path:
    """A small pair whose prior reads captions."""
    tokenizer, prior = small.PAIRS["llamagen-vq", "llamagen-gpt"]
    small.save_tokenizer(folder, tokenizer)
    made, _, mark = pipeline.load_tokenizer(folder / "tokenizer")
    node = {**prior, "text_length": 4, "text_dim": 8}
    model = build.prior(node, made, num_classes=0)
    facts = {"class_names": [], "num_classes": 0, "tokenizer_fingerprint": mark}
    checkpoint.save_model(folder / "prior", model, kind="prior", architecture=node, facts=facts)
    return folder


@pytest.mark.parametrize("families", list(small.PAIRS), ids=str)
def test_the_start_is_the_saved_model(families: tuple[str, str], tmp_path: Path) -> None:
    folder = small.save(tmp_path / "pair", *small.PAIRS[families])
    saved = pipeline.load(folder)
    settings = {"init": str(folder)}
    tokenizer = finetune.begin_tokenizer(settings, ["data.size=16"], [16, 16])
    prior = finetune.begin_prior(settings, [], saved.tokenizer, 3)
    for start, want in ((tokenizer, saved.tokenizer), (prior, saved.prior)):
        assert start.facts["init"] == str(folder)
        own = want.state_dict()
        assert all(torch.equal(own[n], value) for n, value in start.model.state_dict().items())
        assert any(parameter.requires_grad for parameter in start.model.parameters())


@pytest.mark.parametrize("families", list(small.PAIRS), ids=str)
def test_other_classes_start_as_no_class(families: tuple[str, str], tmp_path: Path) -> None:
    folder = small.save(tmp_path / "pair", *small.PAIRS[families])
    saved = pipeline.load(folder)
    prior = finetune.begin_prior({"init": str(folder)}, [], saved.tokenizer, 7).model.eval()
    tokens = torch.randint(48, (2, saved.prior.spec.length))  # type: ignore[union-attr]
    with torch.no_grad():
        null = saved.prior.bits(tokens, Condition.of_labels(torch.tensor([0, 1])).null())
        for labels in ([0, 6], [3, 3]):
            got = prior.bits(tokens, Condition.of_labels(torch.tensor(labels)))
            torch.testing.assert_close(got, null)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = small.save(tmp_path / "pair", *small.PAIRS["llamagen-vq", "llamagen-gpt"])
    settings = {"init": str(folder)}
    with pytest.raises(ValueError, match=r"tokenizer=vqvae was typed as well; leave out"):
        finetune.begin_tokenizer(settings, ["tokenizer=vqvae"], [16, 16])
    tokenizer = pipeline.load(folder).tokenizer
    with pytest.raises(ValueError, match=r"prior\.depth=3 was typed as well"):
        finetune.begin_prior(settings, ["prior.depth=3"], tokenizer, 3)
    with pytest.raises(ValueError, match="does not exist"):
        finetune.begin_tokenizer({"init": str(tmp_path / "no")}, [], [16, 16])
    with pytest.raises(ValueError, match=r"is a text-to-image model, and training one on needs"):
        finetune.begin_prior({"init": str(text_pair(tmp_path / "text"))}, [], tokenizer, 3)
    (tmp_path / "pair" / "prior" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="with a prior in it"):
        finetune.begin_prior(settings, [], tokenizer, 3)
