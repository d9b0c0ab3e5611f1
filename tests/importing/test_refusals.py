"""What a user typed wrong at the import, and the one sentence they get, with what to type."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.importing import small
from tests.parity import golden
from vqgen.contracts import TokenSpec
from vqgen.importing import settings
from vqgen.importing.convert import Latents, Published
from vqgen.importing.export import export
from vqgen.importing.family import Description, Hints
from vqgen.importing.llamagen import LLAMAGEN_GPT
from vqgen.importing.pairs import Beside, check_grids

LLAMAGEN, VAR = ("llamagen-vq", "llamagen-gpt"), ("var-vae", "var")
Files = tuple[Path, Path]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Files]:
    """A small pair of each kind as files of the peer, their settings beside them."""
    found = {}
    for families, nodes in small.PAIRS.items():
        folder = tmp_path_factory.mktemp(families[1])
        saved = small.save(folder / "ours", *nodes)
        files = folder / "tokenizer.safetensors", folder / "prior.safetensors"
        for part, family, file in zip(("tokenizer", "prior"), families, files, strict=True):
            export(saved, part, file, family)
        found[families] = files
    return found


def words(files: Files, config: Path | None = None) -> list[Any]:
    """As typed for a pair; `config` instead of the prior's own."""
    return [
        *files,
        *("--config", files[0].with_suffix(".json")),
        *("--config", config or files[1].with_suffix(".json")),
    ]


WRONG = [
    (LLAMAGEN, {"n_head": "four"}, "wanted n_head in", "as a whole number above 0, got 'four'"),
    (LLAMAGEN, {"n_head": True}, "a whole number above 0, got True", '"n_head": 16'),
    (LLAMAGEN, {"n_head": 5}, "5 heads do not fit a model of width 32", "correct n_head"),
    (LLAMAGEN, {"rope_base": "1e4"}, "a number above 0, got '1e4'", "without quotes", "1.0e+04"),
    (LLAMAGEN, {"block_size": 20}, "wanted block_size in", "a square number", "got 20"),
    (LLAMAGEN, {"token_dropout_p": 1.5}, "a number from 0 to 1", "got 1.5"),
    (LLAMAGEN, {"n_heads": 4}, "'n_heads', which no published model takes; did you mean n_head?"),
    (LLAMAGEN, {"block_size": 10**12}, "at most 4096 pixels a side, got 4000000x4000000 of"),
    (LLAMAGEN, {"block_size": 10**400 + 1}, "wanted block_size in", "a square number"),
    (LLAMAGEN, {"rope_base": float("inf")}, "wanted rope_base in", "got inf"),
    (LLAMAGEN, {"commit_loss_beta": -1}, "commit_loss_beta in", "a number of at least 0, got -1"),
    (LLAMAGEN, {"entropy_loss_ratio": -0.5}, "a number of at least 0, got -0.5"),
    (VAR, {"beta": -0.25}, "wanted beta in", "a number of at least 0, got -0.25"),
    (LLAMAGEN, {"codebook_l2_norm": "yes"}, "as true or false, got 'yes'"),
    (VAR, {"v_patch_nums": 4}, "a list of at least two whole numbers", "got 4", "[1, 2, 4]"),
    (VAR, {"v_patch_nums": []}, "wanted v_patch_nums in", "got []"),
    (VAR, {"patch_nums": ["1", "2"]}, "wanted patch_nums in", "got ['1', '2']"),
    (VAR, {"patch_nums": [1, 2]}, "the 21 tokens of prior.safetensors, got [1, 2], which make 5"),
    (VAR, {"num_heads": 7}, "wanted num_heads that divide the width 32", "got 7"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: str(case[1]))
def test_settings_of_another_kind(case: tuple, made, refused: Refused, tmp_path: Path) -> None:
    families, wrong, *sentences = case
    files: Files = made[families]
    if "num_heads" in wrong:  # the file itself tells them where queries and keys are normalized
        tensors = load_file(files[1])
        kept = {n: v for n, v in tensors.items() if not n.endswith("scale_mul_1H11")}
        files = files[0], tmp_path / "prior.safetensors"
        save_file(kept, files[1])
    settings_of = made[families][1].with_suffix(".json")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(settings_of.read_text()), **wrong}))
    typed = [*files, "--config", made[families][0].with_suffix(".json"), "--config", config]
    said = refused(*typed)
    assert len(said.splitlines()) == 2  # the sentence, and where the traceback is
    for sentence in sentences:
        assert sentence in said


CONTRADICTED = [  # settings of another model than the file's: both values are said
    (LLAMAGEN, {"n_kv_head": None}, "n_kv_head is 4 there, but the file has 2"),
    (LLAMAGEN, {"n_kv_head": 1}, "n_kv_head is 1 there, but the file has 2"),
    (LLAMAGEN, {"vocab_size": 16384}, "vocab_size is 16384 there, but the file has 48"),
    (LLAMAGEN, {"num_classes": 1000}, "num_classes is 1000 there, but the file has 3"),
    (LLAMAGEN, {"model_type": "t2i"}, "model_type is t2i there, but the file has c2i"),
    (LLAMAGEN, {"dim": 64, "n_layer": 9}, "dim is 64 there, but the file has 32; n_layer is 9"),
    (LLAMAGEN, {"multiple_of": 256}, "part of 256 at width 32, the file has 96"),
    (LLAMAGEN, {"encoder_ch_mult": [1, 1, 2]}, "encoder_ch_mult is [1, 1, 2] there, but"),
    (LLAMAGEN, {"codebook_size": 16384}, "codebook_size is 16384 there, but the file has 48"),
    (LLAMAGEN, {"num_res_blocks": 2}, "num_res_blocks is 2 there, but the file has 1"),
    (VAR, {"num_classes": 1000}, "num_classes is 1000 there, but the file has 3"),
    (VAR, {"num_heads": 4}, "num_heads is 4 there, but the file has 2"),
    (VAR, {"mlp_ratio": 3.0}, "mlp_ratio is 3.0 there, but the file has 4.0"),
    (VAR, {"shared_aln": True}, "shared_aln is True there, but the file has False"),
    (VAR, {"Cvae": 32}, "Cvae is 32 there, but the file has 16"),
    (VAR, {"share_quant_resi": 4}, "share_quant_resi is 4 in --config, but the file has 2"),
    (VAR, {"quant_resi": 0}, "quant_resi is 0 in --config, but the file has 2"),
]


@pytest.mark.parametrize("case", CONTRADICTED, ids=lambda case: str(case[1]))
def test_settings_of_another_model(case: tuple, made, refused: Refused, tmp_path: Path) -> None:
    families, wrong, sentence = case
    more = tmp_path / "more.json"
    more.write_text(json.dumps(wrong))
    said = refused(*words(made[families]), "--config", more)
    assert sentence in said and len(said.splitlines()) == 2


def test_attention_elsewhere_than_the_settings_say(refused: Refused, tmp_path: Path) -> None:
    node = small.autoencoder({**small.VQ, "codebook": small.codebook()})
    saved, file = small.save_tokenizer(tmp_path / "ours", node), tmp_path / "vqgan.safetensors"
    export(saved, "tokenizer", file, "taming-vqgan")
    more = tmp_path / "more.json"
    for given in ([16, 8], []):
        more.write_text(json.dumps({"attn_resolutions": given}))
        said = refused(file, "--config", file.with_suffix(".json"), "--config", more)
        want = f"attn_resolutions is {given} in --config, but the file has attention at [4]"
        assert want in said
    more.write_text('{"resolution": 8192}')
    said = refused(file, "--config", more)
    assert "at most 4096 pixels a side, got 8192x8192 of" in said


def test_no_attention_but_in_the_middle(run, tmp_path: Path) -> None:
    node = small.autoencoder({**small.VQ, "codebook": small.codebook()})
    for side in ("encoder", "decoder"):
        node[side] = {**node[side], "attention_levels": []}
    saved, file = small.save_tokenizer(tmp_path / "ours", node), tmp_path / "vqgan.safetensors"
    export(saved, "tokenizer", file, "taming-vqgan")
    config = file.with_suffix(".json")
    found = settings.flattened(json.loads(config.read_text()))
    assert found["attn_resolutions"] == []
    assert run("import_weights", file, "--config", config, "--out", tmp_path / "again") == 0


def test_a_width_that_var_was_not_published_with(made, refused: Refused, tmp_path: Path) -> None:
    tensors = load_file(made[VAR][1])
    file = tmp_path / "prior.safetensors"
    save_file({n: v for n, v in tensors.items() if not n.endswith("scale_mul_1H11")}, file)
    config = tmp_path / "config.json"
    config.write_text('{"patch_nums": [1, 2, 4]}')
    said = refused(made[VAR][0], file, "--config", config)
    assert "has width 32, which is no multiple of 64" in said and '{"num_heads": 2}' in said
    assert "got 0" not in said


UNREADABLE = [
    ("c.json", '{"n_head": 4', "cannot be read as JSON"),
    ("c.yaml", "n_head: [4\nblock: }", "cannot be read as YAML"),
    ("c.json", "[1, 2]", "wanted a dictionary of settings in"),
    ("c.yaml", "four heads", "got 'four heads'"),
    ("c.yaml", "", "got None"),
    ("c.json", '{"lr": 0.1, "epochs": 3}', "got lr, epochs; give the file that the model was made"),
    ("c.yaml", "norm_eps: 1e-5\n", "wanted norm_eps in"),
    ("c.yaml", b"\xff\xfe\x00", "is no text"),
]


@pytest.mark.parametrize("name, text, sentence", UNREADABLE, ids=lambda value: str(value)[:20])
def test_config_files_that_cannot_be_read(
    name: str, text: str | bytes, sentence: str, made, refused: Refused, tmp_path: Path
) -> None:
    config = tmp_path / name
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(*words(made[LLAMAGEN], config))
    assert sentence in said and str(config) in said and len(said.splitlines()) == 2
    assert "does not exist" in refused(*words(made[LLAMAGEN], tmp_path / "nowhere.json"))
    assert "is a folder" in refused(*words(made[LLAMAGEN], tmp_path))


def test_the_peers_own_files_are_taken_whole() -> None:
    """Nests, lists, and what stands beside the arguments: nothing of theirs is misspelt."""
    paths = [*golden.root().glob("*/*/config.json"), *golden.root().glob("*/*.config.json")]
    paths += golden.root().glob("*/manifests/*.json")
    read = 0
    for path in paths:
        flat = settings.flattened(json.loads(path.read_text()))
        if {"n_head", "z_channels", "embed_dim"} & flat.keys():
            assert settings.read([path]).items() <= flat.items()
            read += 1
    if not read:
        pytest.skip("no fixture")


@pytest.mark.parametrize(
    "families, size, sentence",
    [
        (LLAMAGEN, "32", "wanted --size 16, since"),
        (LLAMAGEN, "8x32", "4 tokens of 4 pixels a side, got --size 8x32; leave --size out"),
        (LLAMAGEN, "18", "wanted --size in multiples of 4"),
        (VAR, "32", "wanted --size 16, since"),
    ],
)
def test_a_size_that_the_prior_was_not_made_for(
    families: tuple[str, str], size: str, sentence: str, made, refused: Refused
) -> None:
    assert sentence in refused(*words(made[families]), "--size", size)


def test_the_size_is_also_that_of_the_released_name() -> None:
    """c2i_B_384.pt has the keys of c2i_B_256.pt; its name alone says what it is made for."""
    keys = {
        "tok_embeddings.weight": (16384, 768),
        "cls_embedding.embedding_table.weight": (1001, 768),
    }
    for n in range(12):
        keys[f"layers.{n}.attention.wqkv.weight"] = (3 * 768, 768)
        keys[f"layers.{n}.feed_forward.w1.weight"] = (2048, 768)
    for name, size, side in (
        ("c2i_B_384.pt", (256, 256), 24),
        ("c2i_B_256.pt", None, 16),
        ("mine.pt", (512, 512), 32),
        ("mine.pt", None, 16),
    ):
        described = LLAMAGEN_GPT.describe(keys, Hints(name=name, size=size))
        assert described.spec is not None and described.spec.scales == ((side, side),)


def test_a_tokenizer_alone_of_another_size(made, refused: Refused) -> None:
    tokenizer = made[LLAMAGEN][0]
    said = refused(tokenizer, "--size", "18x22")
    assert "wanted --size in multiples of 4" in said and "type --size 16x24" in said
    said = refused(made[VAR][0], "--config", made[VAR][0].with_suffix(".json"), "--size", 32)
    assert "wanted --size 16, since" in said


def test_weights_that_are_whole_numbers(made, refused: Refused, tmp_path: Path) -> None:
    ints = tmp_path / "ints.safetensors"
    save_file({name: v.long() for name, v in load_file(made[LLAMAGEN][0]).items()}, ints)
    assert "wanted weights as floating-point numbers, got " in refused(ints)


def test_a_pair_that_does_not_fit_is_told_so_before_settings_are_asked_for(
    made, refused: Refused, run, tmp_path: Path
) -> None:
    said = refused(made[LLAMAGEN][0], made[VAR][1])
    assert "does not fit this tokenizer: it wants a var-vae tokenizer" in said
    said = refused(made[VAR][0], made[LLAMAGEN][1])
    assert "it wants a llamagen-vq tokenizer, this one is var-vae" in said
    assert "--config" not in said
    tensors = load_file(made[LLAMAGEN][0])
    name = "quantize.embedding.weight"
    fewer = tmp_path / "fewer.safetensors"
    save_file({**tensors, name: tensors[name][:40].clone()}, fewer)
    assert "it knows 48 codes, the tokenizer has 40" in refused(fewer, made[LLAMAGEN][1])
    out = tmp_path / "out"
    assert run("import_weights", made[VAR][0], *words(made[VAR])[2:4], "--out", out) == 0
    assert "it wants a llamagen-vq tokenizer" in refused(made[LLAMAGEN][1], out=out)


def test_the_tokenizer_of_the_other_published_kind(tmp_path: Path) -> None:
    """Those for classes and for texts have the same keys and shapes."""
    spec = TokenSpec(48, ((4, 4),))
    for own, given, fits in (
        ("c2i_B", "vq_ds16_c2i.pt", True),
        ("c2i_B", "mine.pt", True),
        ("c2i_B", "vq_ds16_t2i.pt", False),
        ("t2i_XL", "vq_ds16_c2i.pt", False),
        (None, "vq_ds16_t2i.pt", True),
    ):
        prior = Published(LLAMAGEN_GPT, Path("gpt.pt"), "model", {})
        described = Description({}, spec=spec, facts={"published": own})
        beside = Beside("llamagen-vq", given, 4, Latents(spec))
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=given):
            check_grids(prior, described, beside)


def test_files_that_are_none_or_the_same(made, refused: Refused, tmp_path: Path) -> None:
    folder = made[LLAMAGEN][0].parent
    said = refused(folder)
    assert "is a folder; type one of the files in it: prior.safetensors, tokenizer" in said
    (tmp_path / "empty").mkdir()
    assert "is a folder; none is in it" in refused(tmp_path / "empty")
    same = tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors"
    for path in same:
        path.parent.mkdir()
        shutil.copyfile(made[LLAMAGEN][1], path)
    said = refused(*same)
    assert f"{same[0]} is llamagen-gpt, {same[1]} is llamagen-gpt" in said  # which is which
    assert "was given twice" in refused(same[0], same[0])


def test_an_output_that_cannot_be_made(made, refused: Refused, run, capsys, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "deeper"):
        said = refused(*words(made[LLAMAGEN]), out=out)
        assert f"wanted --out as a folder to make, but {file} is a file; type another --out" in said
        assert "Errno" not in said
    assert file.read_text() == "mine"


BYTES = {
    "text": (b"hello, this is a text", "a text that begins with 'hello, this is a text'"),
    "page": (b"<!DOCTYPE html><html>", "a text that begins with '<!DOCTYPE html><html>'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "type git lfs pull"),
    "nothing": (b"", "it is empty"),
    "noise": (bytes(range(250, 0, -1)) * 9, "its first bytes are none of a file of weights"),
    "pickle": (b"\x80\x04}\x94.", "a pickle that torch.save did not write"),
    "tar": (b"a" + bytes(256) + b"ustar" + bytes(300), "a tar archive, torch.save's form before"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip archive that does not reach its end"),
}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", BYTES)
def test_files_of_something_else_are_named(
    kind: str, suffix: str, refused: Refused, tmp_path: Path
) -> None:
    """Never torch.load's own words: they advise to try again without its safety."""
    file = tmp_path / f"junk{suffix}"
    content, sentence = BYTES[kind]
    file.write_bytes(content)
    said = refused(file)
    if (kind, suffix) == ("zip", ".safetensors"):
        sentence = "a file of torch.save: give it the ending .pt"
    assert sentence in said and "weights_only" not in said and len(said.splitlines()) == 2


def test_pickle_protocols(made, refused: Refused, run, tmp_path: Path) -> None:
    """An older or newer one than torch.save's own: read without a word, or said to be unreadable,
    not damaged."""
    tensors, file = load_file(made[LLAMAGEN][0]), tmp_path / "tokenizer.pt"
    torch.save({"model": tensors}, file, pickle_protocol=4)
    said = refused(file, "--size", 16)
    assert "a newer pickle protocol" in said and "damaged" not in said
    torch.save({"model": tensors}, file, pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("import_weights", file, "--size", 16, "--out", tmp_path / "out") == 0


def test_safetensors_under_another_name_is_read(made, run, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.pt"
    shutil.copyfile(made[LLAMAGEN][0], file)
    assert run("import_weights", file, "--size", 16, "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("size", ["1000000", "0", "-16", "16x", "16x16x16", "", "1e3", "16x5000"])
def test_sizes_that_no_model_has(size: str, made, refused: Refused) -> None:
    said = refused(made[LLAMAGEN][0], f"--size={size}")
    assert "wanted --size as 1 to 4096 pixels, like 256, or HEIGHTxWIDTH like 256x384, got" in said
    assert repr(size) in said and len(said.splitlines()) == 2


BROKEN = [  # of a tokenizer or a prior: a name, what becomes of it, what is said
    (0, "quantize.embedding.weight", lambda v: v.flatten(), "with 2 axes, the file has it as (384"),
    (0, "quantize.embedding.weight", lambda v: v[:0], "holds no numbers"),
    (0, "encoder.conv_in.weight", lambda v: v.sum(), "some of its tensors have fewer axes"),
    (0, "post_quant_conv.bias", lambda v: v[:-1], "wanted (16,), the file has (15,)"),
    (1, "tok_embeddings.weight", lambda v: v.sum(), "wanted tok_embeddings.weight with 2 axes"),
    (1, "norm.weight", lambda v: v[None], "wanted (32,), the file has (1, 32)"),
    (1, "output.weight", lambda v: v.bool(), "as floating-point numbers, got head.weight as"),
]


@pytest.mark.parametrize("part, name, change, sentence", BROKEN, ids=range(len(BROKEN)))
def test_tensors_of_another_kind(
    part: int, name: str, change: Callable, sentence: str, made, refused: Refused, tmp_path: Path
) -> None:
    files = [shutil.copy(path, tmp_path) for path in made[LLAMAGEN]]
    tensors = load_file(files[part])
    assert name in tensors
    save_file({**tensors, name: change(tensors[name]).contiguous()}, files[part])
    given = files if part else files[:1]  # a pair is told first that it does not fit
    assert sentence in refused(*given, *words(made[LLAMAGEN])[2:])


@pytest.mark.parametrize("kind", ["sparse", "without its values"])
def test_tensors_that_hold_their_values_elsewhere(
    kind: str, made, refused: Refused, tmp_path: Path
) -> None:
    tensors, file = load_file(made[LLAMAGEN][0]), tmp_path / "tokenizer.pt"
    name = "quantize.embedding.weight"
    value = tensors[name].to_sparse() if kind == "sparse" else tensors[name].to("meta")
    torch.save({"model": {**tensors, name: value}}, file)
    assert f"stores {name} {kind}, which no published file does" in refused(file)


def test_names_that_no_disk_takes(made, refused: Refused, tmp_path: Path) -> None:
    said = refused(made[LLAMAGEN][0], out=tmp_path / ("x" * 300))
    assert "--out cannot be made (File name too long); type another --out" in said
    assert "/dev/null is a device or pipe; type another FILE" in refused("/dev/null")


def test_an_export_of_what_is_not_there(run, capsys, tmp_path: Path) -> None:
    words = ["--part", "prior", "--out", tmp_path / "x.pt"]
    assert run("export_weights", tmp_path / "nowhere", *words) == 2
    said = capsys.readouterr().err
    assert "holds no model.safetensors; type another folder, or the other --part" in said


def test_a_key_that_is_there_twice(made, refused: Refused, tmp_path: Path) -> None:
    tensors, file = load_file(made[LLAMAGEN][0]), tmp_path / "twice.safetensors"
    save_file({**tensors, "module.quant_conv.bias": tensors["quant_conv.bias"] + 1}, file)
    assert "has quant_conv.bias twice" in refused(file)


def test_weights_that_the_file_does_not_hold(made, refused: Refused, run, tmp_path: Path) -> None:
    tensors, file = load_file(made[LLAMAGEN][0]), tmp_path / "tokenizer.pt"
    torch.save({"model": tensors}, file)
    assert "wanted weights under ema in" in refused(file, "--weights", "ema")
    torch.save({"ema": tensors}, file)
    assert "wanted weights under model" in refused(file, "--weights", "model")
    assert run("import_weights", file, "--size", 16, "--out", tmp_path / "out") == 0  # auto
    torch.save({}, file)
    assert "which is empty" in refused(file)
