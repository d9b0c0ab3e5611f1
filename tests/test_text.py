"""Captions to conditions with a tiny random T5, and a text-to-image prior that listens to them."""

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.evaluation import runs
from tests.test_bad_input import ARCHITECTURE, PRIOR, stage2_run, typed
from vqgen import build, checkpoint, pipeline, text
from vqgen.contracts import Condition
from vqgen.evaluation.subject import Subject
from vqgen.pipeline import Pipeline
from vqgen.priors.llamagen import LlamaGen

transformers = pytest.importorskip("transformers")

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "green", "bird", "fish", "two"]
DIM, LENGTH = 16, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of one layer and nine words, saved as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("t5")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    transformers.T5EncoderModel(config).save_pretrained(path)
    return path


def test_real_tokens_are_last_and_padding_is_zero(folder: Path) -> None:
    encode = text.t5(str(folder), length=LENGTH)
    made = encode(["a red bird", "fish", "a a a a a a a a a a"])
    assert made.text is not None and made.mask is not None
    assert made.text.shape == (3, LENGTH, DIM) and made.mask.dtype == torch.bool
    counts = [4, 2, 7]  # words and the end mark; cut at the length
    assert made.mask.sum(dim=1).tolist() == counts
    for row, count in enumerate(counts):
        assert made.mask[row, LENGTH - count :].all()
        assert not made.text[row, : LENGTH - count].any()
    network = transformers.T5EncoderModel.from_pretrained(folder)
    plain = network(input_ids=torch.tensor([[3, 4, 6, 1]])).last_hidden_state[0]
    torch.testing.assert_close(made.text[0, -4:], plain, atol=1e-5, rtol=1e-5)


def test_a_caption_does_not_depend_on_its_batch(folder: Path) -> None:
    encode = text.t5(str(folder), length=LENGTH)
    together, alone = encode(["a bird", "two red fish"]), encode(["two red fish"])
    assert together.text is not None and alone.text is not None
    assert torch.equal(together.text[1], alone.text[0])


def test_the_cache_is_used_mended_and_of_these_weights_only(folder: Path, tmp_path: Path) -> None:
    encode = text.t5(str(folder), length=LENGTH, cache=tmp_path)
    first = encode(["a bird", "fish"])
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    network, encode.network = encode.network, torch.nn.Identity()  # would fail if it was asked
    again = encode(["a bird", "fish"])
    assert first.text is not None and again.text is not None
    assert torch.equal(first.text, again.text)
    encode.network = network
    for file in files:
        file.write_bytes(file.read_bytes()[:50])
    mended = encode(["a bird", "fish"])
    assert mended.text is not None and torch.equal(first.text, mended.text)
    encode.mark = "others"
    encode(["fish"])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_caption_that_is_cut_is_said_once(folder: Path, tmp_path: Path) -> None:
    encode = text.t5(str(folder), length=LENGTH, cache=tmp_path)
    fits, long = "a red bird a red bird", "a red bird a red bird two fish"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode([fits])  # 6 words and the end mark: 7
    with pytest.warns(
        UserWarning, match="the first 7 tokens of a caption; of 9 .*two fish"
    ) as said:
        encode([fits, long, long])
        encode([long])
    assert len(said) == 1
    with pytest.warns(UserWarning, match="of 9"):  # out of the cache too, in the next program
        text.t5(str(folder), length=LENGTH, cache=tmp_path)([long])


def test_a_text_prior_samples_what_its_captions_say(folder: Path) -> None:
    encode = text.t5(str(folder), length=LENGTH)
    tokenizer = tiny.tokenizer()
    torch.manual_seed(3)
    prior = LlamaGen(tokenizer.spec, width=32, depth=2, heads=2, text_length=LENGTH, text_dim=DIM)
    torch.nn.init.normal_(prior.head.weight)
    pipe = Pipeline(tokenizer, prior)
    both = pipe.sample_latents(text=encode(["a bird", "two red fish"]), seeds=[5, 5], guidance=3.0)
    alone = pipe.sample_latents(text=encode(["two red fish"]), seeds=[5], guidance=3.0)
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
    with pytest.raises(ValueError, match="wanted text embeddings"):
        pipe.sample_latents(n=1)
    with pytest.raises(ValueError, match="agree on the number"):
        pipe.sample_latents(text=encode(["fish"]), seeds=[1, 2])
    assert isinstance(encode(["fish"]), Condition)


def test_a_folder_without_weights_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted T5 weights and tokenizer"):
        text.t5(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere is no folder; type another"):
        text.t5(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"got: no config\.json in it; type text_encoder=google/"):
        text.t5(str(tmp_path))


def test_a_tokenizer_that_is_not_there_or_another_ones(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(ValueError, match=r"no tokenizer\.json or spiece\.model in it"):
        text.t5(str(tmp_path))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    text.t5(str(tmp_path))
    config = transformers.T5Config.from_pretrained(folder)
    config.vocab_size = len(WORDS) - 1
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a tokenizer of 9 tokens for weights of 8"):
        text.t5(str(tmp_path))


def test_a_hub_out_of_reach_is_asked_once_and_not_proposed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked = []

    def fail(url: str, **_: object) -> None:
        asked.append(url)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"\(no route to the hub\); type text_encoder=FOLDER of"):
        text.t5()
    assert len(asked) == 1


def test_loading_draws_no_bars(folder: Path, capfd) -> None:
    text.t5(str(folder))
    assert capfd.readouterr().err == ""


# ---- python sample.py text=...


@pytest.fixture
def sample(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Type words after `python sample.py` in an empty folder: (exit code, what it said)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = typed("sample", list(words), monkeypatch)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.err + printed.out

    return run


def text_pipeline(folder: Path, dim: int = DIM) -> Path:
    """A pipeline of the tiny tokenizer and a text-to-image prior with nothing left at zero."""
    tokenizer = tiny.tokenizer()
    mark = checkpoint.save_model(
        folder / "tokenizer",
        tokenizer,
        kind="tokenizer",
        architecture=ARCHITECTURE,
        facts={"class_names": []},
    )
    node = {**PRIOR, "text_length": LENGTH, "text_dim": dim}
    torch.manual_seed(3)
    prior = build.prior(node, tokenizer, num_classes=0)
    torch.nn.init.normal_(prior.head.weight)
    facts = {"class_names": [], "num_classes": 0, "tokenizer_fingerprint": mark}
    checkpoint.save_model(folder / "prior", prior, kind="prior", architecture=node, facts=facts)
    return folder


def test_captions_typed_are_sampled_and_cached(folder: Path, tmp_path: Path, sample) -> None:
    pair = text_pipeline(tmp_path / "pair")
    words = [f"pipeline={pair}", f"text_encoder={folder}", "n=2", "guidance=2.0"]
    assert sample(*words, "text=[a red bird,two fish]", "out=both.png")[0] == 0
    both = np.load("both.npz")["arr_0"]
    assert both.shape == (4, *tiny.SIZE, 3) and "arr_1" not in np.load("both.npz")
    encode = text.t5(str(folder), length=LENGTH)
    condition = encode(["a red bird", "a red bird", "two fish", "two fish"])
    want = pipeline.load(pair).sample(text=condition, seeds=[0, 1, 2, 3], guidance=2.0)
    assert np.array_equal(both, want.permute(0, 2, 3, 1).numpy())
    cached = sorted(Path("runs/captions").iterdir())
    assert len(cached) == 2
    # one caption, unquoted as the shell hands it over; the other pictures have seeds 0 and 1 too
    assert sample(*words, "text=a red bird", "out=one.png")[0] == 0
    assert np.array_equal(np.load("one.npz")["arr_0"], both[:2])
    assert sorted(Path("runs/captions").iterdir()) == cached
    quoted = 'text="a bird, two fish"'
    assert sample(*words, quoted, "text_cache=null", "film=true", "frames=3")[0] == 0
    assert Path("samples_film.gif").is_file()


def test_an_evaluation_says_that_it_would_need_captions(tmp_path: Path) -> None:
    pair = text_pipeline(tmp_path / "pair")
    with pytest.raises(ValueError, match=r"is a text-to-image model, .* type model=null samples="):
        Subject(runs.protocol(), model=pair, samples=None, device="cpu")


def test_captions_are_refused_in_one_sentence(
    folder: Path, tmp_path: Path, sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = text_pipeline(tmp_path / "pair")
    run = stage2_run(tmp_path / "runs")
    encoder = f"text_encoder={folder}"
    for words, sentence in (
        ([f"pipeline={run}", "text=a bird"], "text= is for a text-to-image model, this one has"),
        (
            [f"pipeline={pair}", "text=a bird", "classes=[bird]"],
            "has no classes, it takes captions",
        ),
        ([f"pipeline={pair}", encoder], """got none; type 'text="a cat on a chair"'"""),
        ([f"pipeline={pair}", encoder, "text=[]"], "paints captions and got none"),
        ([f"pipeline={pair}", encoder, "text=[a bird,'']"], "paints captions and got none"),
        ([f"pipeline={pair}", "text=a bird"], "type text_encoder=google/flan-t5-xl"),
        (
            [f"pipeline={pair}", "text=a bird", f"text_encoder={tmp_path}"],
            "wanted T5 weights and tokenizer as .safetensors in",
        ),
        ([f"pipeline={pair}", "text=a cat, a bird", encoder], """'text="a cat, a bird"'"""),
        ([f"pipeline={pair}", "text=a cat's tail", encoder], "quotes inside quotes"),
        ([f"pipeline={pair}", "text=[a cat, 'bird", encoder], "quotes inside quotes"),
    ):
        code, said = sample(*words)
        assert code == 2 and sentence in said, said
        assert said.startswith("vqgen: ") and len(said.splitlines()) == 2
    wide = text_pipeline(tmp_path / "wide", dim=DIM + 8)
    code, said = sample(f"pipeline={wide}", "text=a bird", encoder)
    assert code == 2 and f"wanted a text encoder of width {DIM + 8}" in said
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it was not installed
    code, said = sample(f"pipeline={pair}", "text=a bird", encoder)
    assert code == 2 and "type: pip install 'vqgen[text]'" in said
