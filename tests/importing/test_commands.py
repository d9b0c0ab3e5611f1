"""Export and import as typed: the same model comes back; what does not fit is one sentence, and
leaves nothing behind."""

import json
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file, save_file

from tests.importing import small
from tests.importing.conftest import Run
from tests.importing.small import configs, exported
from vqgen import checkpoint, pipeline


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("families", list(small.PAIRS), ids=str)
def test_export_then_import_is_the_same_model(
    families: tuple[str, str], suffix: str, run: Run, tmp_path: Path
) -> None:
    files = exported(run, tmp_path, families, suffix)
    out = tmp_path / "again"
    assert run("import_weights", *files, *configs(files), "--out", out, "--size", "16") == 0
    ours, again = pipeline.load(tmp_path / "ours"), pipeline.load(out)
    for part in ("tokenizer", "prior"):
        a = checkpoint.read_model(tmp_path / "ours" / part, part).tensors
        b = checkpoint.read_model(out / part, part).tensors
        assert a.keys() == b.keys()
        for name in a:
            if not name.endswith(("started", "usage")):
                assert torch.equal(a[name], b[name]), name
    options: dict[str, Any] = {"seeds": [0, 1], "guidance": 2.0}
    assert torch.equal(ours.sample([0, 2], **options), again.sample([0, 2], **options))
    assert sorted(path.name for path in out.iterdir()) == ["prior", "tokenizer"]


@pytest.mark.parametrize("families", list(small.PAIRS), ids=str)
def test_import_then_export_is_the_same_file(
    families: tuple[str, str], run: Run, tmp_path: Path, capsys
) -> None:
    """Every key and value of a peer's file comes back, records of its training as zeros that are
    said to be so."""
    files = exported(run, tmp_path, families, ".safetensors")
    records = {
        name: value + 3  # as after a training
        for name, value in load_file(files[0]).items()
        if "codebook_used" in name or "ema_vocab_hit" in name
    }
    assert len(records) == 1
    change(files[0], **records)
    out = tmp_path / "again"
    capsys.readouterr()
    assert run("import_weights", *files, *configs(files), "--out", out) == 0
    said = capsys.readouterr().out
    assert all(f"left out: {name} (a record of its training)" in said for name in records)
    for part, file in zip(("tokenizer", "prior"), files, strict=True):
        capsys.readouterr()
        back = tmp_path / f"back_{part}.safetensors"
        assert run("export_weights", out, "--part", part, "--out", back) == 0
        said = capsys.readouterr().out
        given, got = load_file(file), load_file(back)
        assert got.keys() == given.keys()
        for name, value in given.items():
            assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
            if name in records:
                assert f"{name}: zeros, as before a training" in said and not got[name].any()
            else:
                assert torch.equal(got[name], value), name


def test_taming_comes_back_and_the_keys_that_were_left_out_are_said(
    run: Run, tmp_path: Path, capsys
) -> None:
    node = small.autoencoder({**small.VQ, "codebook": small.codebook()})
    saved = small.save_tokenizer(tmp_path / "ours", node)
    file, out = tmp_path / "last.ckpt", tmp_path / "again"
    words = [saved, "--part", "tokenizer", "--as", "taming-vqgan", "--out", file]
    assert run("export_weights", *words) == 0
    content = torch.load(file)["state_dict"]
    loss = {f"loss.discriminator.main.{n}.weight": torch.ones(2) for n in (0, 2)}
    torch.save({"state_dict": content | loss}, file)
    capsys.readouterr()
    words = [file, "--config", file.with_suffix(".json"), "--out", out]
    assert run("import_weights", *words) == 0
    said = "left out: loss.discriminator.main.0.weight and 1 more (the networks of its training"
    assert said in capsys.readouterr().out
    a, b = (checkpoint.read_model(path / "tokenizer", "tokenizer").tensors for path in (saved, out))
    learned = [name for name in a if not name.endswith(("started", "usage"))]
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in learned)


def test_a_prior_joins_a_tokenizer_that_is_there(run: Run, tmp_path: Path, capsys) -> None:
    files = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    out, more = tmp_path / "out", configs(files)
    assert run("import_weights", files[0], "--out", out, "--size", 16) == 0
    assert f"next: python train_stage2.py tokenizer={out}\n" in capsys.readouterr().out
    alone = pipeline.load(out)
    assert alone.tokenizer.spec.scales == ((4, 4),)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"train_stage2\.py tokenizer=FOLDER"):
        alone.sample(n=1)
    with pytest.raises(ValueError, match=r"import published weights again with --size 24x24"):
        alone.encode(torch.zeros(1, 3, 24, 24))
    assert run("import_weights", files[1], *more, "--out", out) == 0
    assert pipeline.load(out).sample([1], seeds=[0]).shape == (1, 3, 16, 16)


def test_the_next_command_can_be_typed_as_it_stands(run: Run, tmp_path: Path, capsys) -> None:
    file = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))[0]
    out = tmp_path / "my models"
    assert run("import_weights", file, "--out", out, "--size", 16) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    program, name, word = shlex.split(line)
    assert (program, name) == ("python", "train_stage2.py")
    parsed = OverridesParser.create().parse_overrides([word])[0]
    assert parsed.key_or_group == "tokenizer" and parsed.value() == str(out)


def test_a_word_that_the_program_does_not_know_is_one_sentence(refused) -> None:
    said = refused("file.pt", "--weights", "best")
    assert "invalid choice: 'best'" in said and "--help" in said and "usage" not in said
    assert len(said.splitlines()) == 2


def test_settings_that_no_file_has_are_said(run: Run, tmp_path: Path, capsys) -> None:
    file = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))[0]
    more = tmp_path / "more.json"
    more.write_text('{"resolution": 64, "dropout_p": 0.1}')
    words = [file, "--config", more, "--size", 16]
    assert run("import_weights", *words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "not used of --config, since no llamagen-vq has it: resolution\n" in said


def test_the_average_comes_first_as_in_the_peers_scripts(run: Run, tmp_path: Path) -> None:
    tokenizer, _ = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    content = torch.load(tokenizer)
    moved = {name: value + 1 for name, value in content["model"].items()}
    torch.save({**content, "ema": moved}, tokenizer)
    name, key = "post_quant_conv.bias", "post_quant_conv.bias"
    for weights, want in (("auto", moved), ("ema", moved), ("model", content["model"])):
        out = tmp_path / weights
        words = [tokenizer, "--out", out, "--size", 16, "--weights", weights]
        assert run("import_weights", *words) == 0
        got = checkpoint.read_model(out / "tokenizer", "tokenizer").tensors[name]
        assert torch.equal(got, want[key])


def test_records_of_a_training_beside_the_weights_do_not_matter(run: Run, tmp_path: Path) -> None:
    import argparse

    tokenizer, _ = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    args = argparse.Namespace(lr=1e-4, name="a")
    torch.save({**torch.load(tokenizer), "args": args, "steps": 7}, tokenizer)
    assert run("import_weights", tokenizer, "--out", tmp_path / "out", "--size", 16) == 0


# ---- what is refused


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file(suffix: str, run: Run, refused, tmp_path: Path) -> None:
    tokenizer, _ = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"), suffix)
    whole = tokenizer.read_bytes()
    for share in (0.0, 0.3, 0.99):
        tokenizer.write_bytes(whole[: int(share * len(whole))])
        assert "damaged, cut short or no file of weights" in refused(tokenizer)


def test_a_tampered_file(run: Run, refused, tmp_path: Path) -> None:
    tokenizer, _ = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    content = bytearray(tokenizer.read_bytes())
    content[len(content) // 2] ^= 0x40
    tokenizer.write_bytes(content)
    assert "check sum" in refused(tokenizer)


class Attack:
    """An object that would make a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_nothing_in_a_file_is_executed(form: str, run: Run, refused, tmp_path: Path) -> None:
    trap, file = tmp_path / "trap", tmp_path / "weights.pt"
    content = {"model": {"a": torch.ones(2)}, "more": Attack(trap)}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps({"more": Attack(trap)}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    said = refused(file)
    assert not trap.exists()
    assert "could run any program" in said or "damaged" in said
    if form == "zip":
        assert "Path" in said or "touch" in said or "getattr" in said


def change(file: Path, **values: torch.Tensor | None) -> None:
    """Replace, add or (None) take away tensors of a .safetensors file."""
    tensors = {**load_file(file), **{k.replace("__", "."): v for k, v in values.items()}}  # type: ignore
    save_file({name: value for name, value in tensors.items() if value is not None}, file)


def test_keys_and_shapes_that_differ_are_listed(run: Run, refused, tmp_path: Path) -> None:
    tokenizer, _ = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"), ".safetensors")
    change(
        tokenizer,
        encoder__norm_out__bias=None,
        encoder__extra__weight=torch.ones(3),
        decoder__norm_out__bias=torch.ones(5),
    )
    said = refused(tokenizer, "--size", 16)
    assert "missing  encoder.norm_out.bias (64,)" in said
    assert "unknown  encoder.extra.weight (3,)" in said
    assert "shape    decoder.norm_out.bias: wanted (32,), the file has (5,)" in said


def test_a_file_of_something_else(run: Run, refused, tmp_path: Path) -> None:
    file = tmp_path / "else.safetensors"
    save_file({"weight": torch.ones(2)}, file)
    assert "is none of llamagen-vq, llamagen-gpt" in refused(file)
    assert "does not exist" in refused(tmp_path / "nowhere.pt")
    tokenizer, prior = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    assert "type --as llamagen-vq" in refused(tokenizer, "--as", "var")
    assert "got 'llamagen'; did you mean llamagen-vq?" in refused(tokenizer, "--as", "llamagen")
    said = refused(tokenizer, "--as", "")
    assert "wanted --as as one of auto, llamagen-vq, " in said and "got ''" in said
    said = refused(tokenizer, "--as", "auto", "--as", "auto")
    assert "got 2 for 1 file; leave all --as out, or type 1" in said
    said = refused(tmp_path / "ours" / "prior" / "model.safetensors")
    assert "is vqgen's own already" in said
    assert "was given twice" in refused(tokenizer, tokenizer)
    assert "is a prior, which samples with its tokenizer only" in refused(
        prior, "--config", prior.with_suffix(".json")
    )
    assert "the number of heads is not stored" in refused(tokenizer, prior)


def test_values_that_are_no_numbers_or_do_not_follow(run: Run, refused, tmp_path: Path) -> None:
    files = exported(run, tmp_path, ("var-vae", "var"), ".safetensors")
    good = files[1].read_bytes()
    levels = load_file(files[1])["lvl_1L"]
    change(files[1], lvl_1L=levels + 1)
    assert "lvl_1L has its shape, but its values differ" in refused(
        *files, *configs(files), "--size", 16
    )
    files[1].write_bytes(good)
    for value in ("nan", "inf"):
        change(files[1], head__bias=torch.full((48,), float(value)))
        assert "head.out.bias holds values that are infinite or no numbers" in refused(
            *files, *configs(files), "--size", 16
        )


def test_a_pair_that_does_not_belong_together(run: Run, refused, tmp_path: Path) -> None:
    one = exported(run, tmp_path / "one", ("llamagen-vq", "llamagen-gpt"), ".safetensors")
    two = exported(run, tmp_path / "two", ("var-vae", "var"), ".safetensors")
    said = refused(one[0], two[1], *configs((one[0], two[1])), "--size", 16)
    assert "does not fit this tokenizer" in said and "wants a var-vae tokenizer" in said
    rows = load_file(one[0])["quantize.embedding.weight"]
    change(one[0], quantize__embedding__weight=rows[:40].clone())
    said = refused(*one, *configs(one), "--size", 16)
    assert "it knows 48 codes, the tokenizer has 40" in said
    out = tmp_path / "out"
    assert run("import_weights", one[0], "--out", out, "--size", 16) == 0
    said = refused(one[0], "--size", 16, out=out)
    assert "tokenizer exists already; type another --out" in said


def test_an_export_that_the_peer_would_read_otherwise(run: Run, tmp_path: Path, capsys) -> None:
    tokenizer, prior = small.PAIRS["llamagen-vq", "llamagen-gpt"]
    saved = small.save(tmp_path / "ours", tokenizer, {**prior, "zero_condition_rope": False})
    file = tmp_path / "gpt.pt"
    words = [saved, "--part", "prior", "--as", "llamagen-gpt", "--out", file]
    assert run("export_weights", *words) == 2
    said = capsys.readouterr().err
    assert "zero_condition_rope is False, there it is True" in said
    assert "trained with the peer's settings, prior.zero_condition_rope=true" in said
    patched = {**tokenizer, "encoder": {**tokenizer["encoder"], "patch": 2, "kernel": 1}}
    patched["decoder"] = {**tokenizer["decoder"], "patch": 2}
    saved = small.save(tmp_path / "patched", {**patched, "image_size": [32, 32]}, prior)
    words = [saved, "--part", "tokenizer", "--as", "llamagen-vq", "--out", file]
    assert run("export_weights", *words) == 2
    assert "encoder.kernel is 1, there it is 3" in capsys.readouterr().err
    assert not file.exists() and not file.with_suffix(".json").exists()


def test_settings_beside_an_export_are_the_peers(run: Run, tmp_path: Path) -> None:
    _, prior = exported(run, tmp_path, ("llamagen-vq", "llamagen-gpt"))
    settings = json.loads(prior.with_suffix(".json").read_text())
    assert (settings["n_head"], settings["n_kv_head"], settings["block_size"]) == (4, 2, 16)
    assert settings["num_classes"] == 3  # the peer's own default is 1000


def test_what_was_taken_left_and_assumed_is_said(run: Run, tmp_path: Path, capsys) -> None:
    """A training's file: one of its parts is taken; and --config with some of the settings."""
    files = exported(run, tmp_path, ("var-vae", "var"), ".safetensors")
    vae, var = (load_file(file) for file in files)
    file = tmp_path / "ar-ckpt.pth"
    parts = {"vae_local": vae, "var_wo_ddp": var, "var_opt": {"lr": 1.0}}
    torch.save({"trainer": parts, "epoch": 3}, file)
    capsys.readouterr()
    assert run("import_weights", file, *configs(files), "--out", tmp_path / "vae") == 0
    said = capsys.readouterr().out
    left = "trainer.var_wo_ddp, trainer.var_opt"
    assert f"taken: trainer.vae_local; left in the file: epoch, {left}" in said
    assert "no key tells" not in said  # the settings beside an export are all of them
    words = [file, file, "--as", "var-vae", "--as", "var", "--out", tmp_path / "both"]
    partial = tmp_path / "partial.json"
    partial.write_text('{"patch_nums": [1, 2, 4], "cond_drop_rate": 0.1, "beta": 0.25}')
    assert run("import_weights", *words, "--config", partial) == 0
    said = capsys.readouterr().out
    assert "taken: trainer.var_wo_ddp" in said and "left in the file: epoch, trainer.vae_" in said
    assert "(--config changes it): using_znorm False, quant_resi 0.5\n" in said
    assert "(--config changes it): norm_eps 1e-06, drop_path_rate" in said
    assert pipeline.load(tmp_path / "both").sample([1], seeds=[0]).shape == (1, 3, 16, 16)


# ---- which layout an export takes


def export_of(run: Run, capsys, saved: Path, part: str, *words: Any) -> tuple[int, str]:
    """Export as typed: (exit code, what was said)."""
    capsys.readouterr()
    code = run("export_weights", saved, "--part", part, *words)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("families", list(small.PAIRS), ids=str)
def test_an_export_finds_the_layout_by_itself(
    families: tuple[str, str], run: Run, tmp_path: Path, capsys
) -> None:
    saved = small.save(tmp_path / "ours", *small.PAIRS[families])
    for part, family in zip(("tokenizer", "prior"), families, strict=True):
        code, said = export_of(run, capsys, saved, part, "--out", tmp_path / f"{part}.pt")
        assert code == 0 and f"({family}, " in said
        wrong = "var" if family == "llamagen-gpt" else "llamagen-gpt"
        code, said = export_of(run, capsys, saved, part, "--as", wrong, "--out", tmp_path / "x.pt")
        assert code == 2 and f"got {wrong}; leave --as out, or type {family}" in said
    assert not (tmp_path / "x.pt").exists()


def test_an_export_with_several_or_no_layouts(run: Run, tmp_path: Path, capsys) -> None:
    out = "--out", tmp_path / "x.pt"
    plain = small.autoencoder({**small.VQ, "codebook": small.codebook()})
    saved = small.save_tokenizer(tmp_path / "plain", plain)
    code, said = export_of(run, capsys, saved, "tokenizer", *out)
    assert code == 2 and "type --as llamagen-vq or taming-vqgan" in said
    kl = {"_target_": "vqgen.tokenizers.gaussian.GaussianBottleneck", "channels": 4}
    saved = small.save_tokenizer(tmp_path / "kl", small.autoencoder(kl))
    for words in ((), ("--as", "llamagen-vq")):
        code, said = export_of(run, capsys, saved, "tokenizer", *words, *out)
        assert code == 2 and "no published layout holds this tokenizer of class Gauss" in said
    assert not (tmp_path / "x.pt").exists()


AT = "attention_levels"
PLACES = [  # attention of encoder and decoder; the layouts that can hold it; what is said
    ([-1], [-1], ("llamagen-vq", "taming-vqgan"), ""),
    ([1, 2], [1, 2], ("taming-vqgan",), "the encoder has attention at level 1, 2 (0 is the finest"),
    ([], [], ("taming-vqgan",), "has attention at no level"),
    ([-1], [1, 2], (), "the decoder at level 1, 2, there both have the same"),
]


@pytest.mark.parametrize("encoder, decoder, able, sentence", PLACES, ids=range(len(PLACES)))
def test_attention_where_the_peers_code_would_not_look(
    encoder: list[int], decoder: list[int], able: tuple, sentence: str, run: Run, tmp_path, capsys
) -> None:
    """The names fit, but LlamaGen's code builds attention at the coarsest level and no other."""
    node = small.autoencoder({**small.VQ, "codebook": small.codebook()})
    for side, levels in (("encoder", encoder), ("decoder", decoder)):
        node[side] = {**node[side], AT: levels}
    saved = small.save_tokenizer(tmp_path / "ours", node)
    said = ""
    for family in ("llamagen-vq", "taming-vqgan"):
        file = tmp_path / f"{family}.pt"
        words = ["--as", family, "--out", file]
        code, printed = export_of(run, capsys, saved, "tokenizer", *words)
        assert (code == 0) == (family in able) == file.exists(), printed
        if code:
            assert "attention_levels" in printed and "or try --as" in printed
            said += printed
    assert sentence in said
    if len(able) == 1:  # the other one is not a choice any more
        code, printed = export_of(run, capsys, saved, "tokenizer", "--out", tmp_path / "auto.pt")
        assert code == 0 and able[0] in printed


def test_attention_and_widths_that_var_has_written_in(run: Run, tmp_path: Path, capsys) -> None:
    node = small.autoencoder(small.MULTI, quant_kernel=3)
    out = "--out", tmp_path / "vae.pt"
    saved = small.save_tokenizer(tmp_path / "good", node)
    code, said = export_of(run, capsys, saved, "tokenizer", *out)
    assert (
        code == 0 and "ch_mult is [1, 2, 2]: change the [1, 1, 2, 2, 4] in var-vae's code" in said
    )
    assert "num_res_blocks is 1: change the 2" in said
    fine = {**node, "encoder": {**node["encoder"], AT: [0]}}
    saved = small.save_tokenizer(tmp_path / "fine", fine)
    code, said = export_of(run, capsys, saved, "tokenizer", "--out", tmp_path / "x.pt")
    assert code == 2 and "the encoder has attention at level 0" in said
    wide = {**node, "decoder": {**node["decoder"], "multipliers": [1, 2, 4]}}
    saved = small.save_tokenizer(tmp_path / "wide", wide)
    code, said = export_of(run, capsys, saved, "tokenizer", "--out", tmp_path / "x.pt")
    assert code == 2 and "[1, 2, 2] times the first in the encoder and [1, 2, 4]" in said
    deep = {**node, "decoder": {**node["decoder"], "blocks": 3}}
    saved = small.save_tokenizer(tmp_path / "deep", deep)
    code, said = export_of(run, capsys, saved, "tokenizer", "--out", tmp_path / "x.pt")
    assert code == 2 and "[3, 3, 3] in the decoder, there all have the same number" in said
    assert not (tmp_path / "x.pt").exists()


def test_an_export_overwrites_nothing(run: Run, tmp_path: Path, capsys) -> None:
    saved = small.save(tmp_path / "ours", *small.PAIRS["var-vae", "var"])
    inside = saved / "prior" / "model.safetensors"
    before = inside.read_bytes()
    code, said = export_of(run, capsys, saved, "prior", "--out", inside)
    assert code == 2 and "exist already; type another --out" in said
    (tmp_path / "x.json").write_text("mine")
    code, said = export_of(run, capsys, saved, "prior", "--out", tmp_path / "x.pt")
    assert code == 2 and "x.json exists already" in said
    assert inside.read_bytes() == before and (tmp_path / "x.json").read_text() == "mine"
    code, said = export_of(run, capsys, saved, "prior", "--out", tmp_path / "x.json" / "y.pt")
    assert code == 2 and "is a file; type another --out" in said
