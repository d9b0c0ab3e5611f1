"""A pipeline out of one folder: what users call, and the promises about seeds, guidance and known
tokens."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vqgen
from tests import tiny
from tests.test_bad_input import stage1_run, stage2_run, typed
from vqgen import checkpoint, pictures
from vqgen.importing.folder import imagenet_classes
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.pipeline import Pipeline
from vqgen.priors.diffusion import Diffusion
from vqgen.priors.flow import Flow
from vqgen.priors.llamagen import LlamaGen
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.vq import VectorQuantizer


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A tiny pair whose prior is not uniform: its head is random."""
    prior = tiny.prior()
    torch.manual_seed(3)
    nn.init.normal_(prior.head.weight, std=0.5)
    return Pipeline(tiny.tokenizer(), prior, facts={"class_names": ["a", "b", "c"]})


def test_the_readme_example(tmp_path: Path) -> None:
    p = vqgen.load(stage2_run(tmp_path))
    images = p.sample(labels=[0, 1, 2], guidance=2.0, seeds=[0, 1, 2])
    assert images.shape == (3, 3, *tiny.SIZE) and images.dtype == torch.uint8
    again = p.reconstruct(images)
    assert again.shape == images.shape and again.dtype == torch.uint8
    tokens = p.encode(images)
    assert tokens.shape == (3, p.tokenizer.spec.length) and tokens.dtype == torch.long
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    keep[:, :3] = True
    kept = p.sample_latents([0, 1, 2], seeds=[7, 8, 9], known=vqgen.Known(tokens, keep))
    assert torch.equal(kept[:, :3], tokens[:, :3])


def test_image_i_does_not_depend_on_the_batch(pipeline: Pipeline) -> None:
    labels, seeds = [i % 3 for i in range(32)], [100 + i for i in range(32)]
    options = {"guidance": 3.0, "temperature": 0.9, "top_k": 20}
    together = pipeline.sample(labels, seeds=seeds, batch=32, **options)
    alone = pipeline.sample(labels, seeds=seeds, batch=1, **options)
    backwards = pipeline.sample(labels[::-1], seeds=seeds[::-1], batch=7, **options)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards.flip(0))
    assert len({tuple(image.flatten().tolist()) for image in together}) > 8, "seeds matter"


def test_pixels_do_not_depend_on_the_batch() -> None:
    """As the emoji models have it: a wider decoder, a larger grid; there one image alone differed
    from two, and 17 from 8."""
    torch.manual_seed(5)
    decoder = {"channels": 64, "multipliers": (1, 2), "blocks": 2, "attention_levels": ()}
    wide = Autoencoder(
        image_size=(32, 32),
        encoder=partial(Encoder, **decoder, patch=2),
        decoder=partial(Decoder, **decoder, patch=2),
        bottleneck=VectorQuantizer(codebook=tiny.codebook("learned")),
        z_channels=64,
    )
    images = torch.rand(33, 3, 32, 32) * 2 - 1
    for layout in (torch.contiguous_format, torch.channels_last):
        p = Pipeline(wide.to(memory_format=layout))  # type: ignore[call-overload]
        for network, batch in ((wide.hidden, images), (wide.decoder, torch.randn(33, 64, 8, 8))):
            whole = p._in_pieces(network, batch)
            for size in (1, 2, 17, 32):
                parts = torch.cat([p._in_pieces(network, part) for part in batch.split(size)])
                assert torch.equal(parts, whole), (layout, size)


def test_guidance_of_one_is_the_conditional_model(pipeline: Pipeline) -> None:
    labels = [0, 1, 2, 0]
    plain = pipeline.sample_latents(labels)
    assert torch.equal(plain, pipeline.sample_latents(labels, guidance="linear:1"))
    assert not torch.equal(plain, pipeline.sample_latents(labels, guidance=4.0))


def test_guidance_of_zero_is_the_null_condition(pipeline: Pipeline) -> None:
    guided = pipeline.sample_latents([0, 1, 2, 0], guidance=0.0)
    assert torch.equal(guided, pipeline.sample_latents(n=4))


def test_sampling_has_no_dropout_whatever_was_trained_since(pipeline: Pipeline) -> None:
    before = pipeline.sample_latents([0, 1, 2, 0])
    pipeline.prior.train()
    assert torch.equal(pipeline.sample_latents([0, 1, 2, 0]), before)


def test_classes_by_name_and_index(pipeline: Pipeline) -> None:
    assert pipeline.class_indices(torch.tensor([1, 0])) == [1, 0]
    assert pipeline.class_indices(["B", 2, "0"]) == [1, 2, 0]


def test_unconditional(tmp_path: Path) -> None:
    unconditional = Pipeline(tiny.tokenizer(), tiny.prior(num_classes=0))
    assert unconditional.sample(n=2).shape[0] == 2
    with pytest.raises(ValueError, match="unconditional, leave classes out"):
        unconditional.sample([0])


def test_steps_are_reported(pipeline: Pipeline) -> None:
    seen = []
    pipeline.sample_latents(n=2, on_step=lambda done, total, z: seen.append((done, total, z)))
    assert [done for done, _, _ in seen] == list(range(1, 7))
    assert all(total == 6 for _, total, _ in seen)
    assert [int((z == -1).sum()) for _, _, z in seen] == [10, 8, 6, 4, 2, 0]


def test_a_film_ends_with_the_sample_and_shows_what_is_missing(pipeline: Pipeline) -> None:
    options = {"seeds": [3, 4, 5], "guidance": 2.0}
    film = pipeline.film([0, 1, 2], frames=3, batch=2, **options)
    assert film.shape == (3, 3, 3, *tiny.SIZE)
    assert torch.equal(film[-1], pipeline.sample([0, 1, 2], **options))
    # two of six tokens are there in the first frame: squares 0 and 1 of a 2 x 3 grid
    assert bool((film[0][:, :, 8:] == pictures.UNDECIDED).all())
    assert not bool((film[0][:, :, :8, :16] == pictures.UNDECIDED).all())
    assert pipeline.film(n=1, frames=100).shape[0] == 6, "no more frames than steps"


@pytest.fixture(scope="module")
def pyramid_pipeline() -> Pipeline:
    """The same of a pyramid of 1 x 1, 1 x 2 and 2 x 3 tokens, its codes apart."""
    tokenizer = tiny.multiscale()
    tokenizer(tiny.images(8).float() / 127.5 - 1)  # starts the codes
    prior = tiny.var(tokenizer)
    for name, parameter in prior.named_parameters():
        if name in ("condition.embedding.weight", "transformer.head.modulation.weight"):
            nn.init.normal_(parameter)  # the class matters
    nn.init.normal_(prior.transformer.head.out.weight, std=0.5)
    return Pipeline(tokenizer, prior, facts={"class_names": ["a", "b", "c"]})


def test_a_film_of_a_pyramid_shows_the_picture_after_each_scale(pyramid_pipeline: Pipeline) -> None:
    options = {"seeds": [3, 4, 5], "guidance": "linear:3"}
    film = pyramid_pipeline.film([0, 1, 2], frames=12, batch=2, **options)
    tokens = pyramid_pipeline.sample_latents([0, 1, 2], batch=2, **options)
    assert film.shape == (3, 3, 3, *tiny.SIZE), "one frame per scale"
    for frame, done in zip(film, (1, 3, 9), strict=True):
        so_far = tokens.clone()
        so_far[:, done:] = -1
        assert torch.equal(frame, pyramid_pipeline.decode(so_far))
    assert not torch.equal(film[0], film[1]) and not torch.equal(film[1], film[2])


def test_an_edit_of_a_pyramid_keeps_the_outside_of_a_box(pyramid_pipeline: Pipeline) -> None:
    """A new class inside: the coarse tokens that are mostly outside stay, and so do the pixels."""
    images = tiny.images(2)
    paint = torch.zeros(2, *tiny.SIZE, dtype=torch.bool)
    paint[:, :, :12] = True  # the left one of the 1 x 2 tokens; 4 of the 2 x 3
    known = pyramid_pipeline.known(images, paint)
    assert known.keep.tolist() == [[True, False, True, *2 * [False, False, True]]] * 2
    drawn = pyramid_pipeline.sample_latents([2, 0], seeds=[5, 6], known=known)
    assert torch.equal(drawn[known.keep], pyramid_pipeline.encode(images)[known.keep])
    edited = pyramid_pipeline.edit(images, paint, [2, 0], seeds=[5, 6])
    outside = ~paint[:, None].expand_as(images)
    assert torch.equal(edited[outside], images[outside])
    assert torch.equal(edited[~outside], pyramid_pipeline.decode(drawn)[~outside])
    other = pyramid_pipeline.edit(images, paint, [1, 1], seeds=[5, 6], guidance=3.0)
    assert not torch.equal(edited, other), "the class matters"


def test_an_edit_changes_what_is_painted_only(pipeline: Pipeline) -> None:
    images = tiny.images(2)
    paint = torch.zeros(2, *tiny.SIZE, dtype=torch.bool)
    paint[:, :8, :8] = True
    edited = pipeline.edit(images, paint, [0, 1], seeds=[5, 6])
    outside = ~paint[:, None].expand_as(images)
    assert torch.equal(edited[outside], images[outside])
    assert not torch.equal(edited, images)
    rendered = pipeline.edit(images, paint, [0, 1], seeds=[5, 6], paste=False)
    tokens = pipeline.tokenizer.encode(images.float() / 127.5 - 1)
    drawn = pipeline.sample_latents([0, 1], seeds=[5, 6], known=pipeline.known(images, paint))
    assert torch.equal(drawn[:, 1:], tokens[:, 1:]), "five of six squares are kept"
    assert torch.equal(rendered, pipeline.decode(drawn))
    with pytest.raises(ValueError, match=r"paint as a bool tensor \[2, 16, 24\]"):
        pipeline.edit(images, paint.float(), [0, 1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"labels": [0, 1], "seeds": [1]}, "must agree on the number of images"),
        ({"on_step": 3}, r"on_step=f for f\(done, steps, latents\), got 3"),
        ({"labels": torch.tensor(3)}, "labels as a list with one entry per image"),
        ({"n": 0}, "n as a whole number of at least 1, got 0"),
        ({"n": 1.5}, "n as a whole number of at least 1, got 1.5"),
        ({"n": "a"}, "n as a whole number of at least 1, got 'a'"),
        ({"labels": []}, "at least one image"),
        ({"n": 1, "batch": 0}, "batch as a whole number of at least 1, got 0"),
        ({"n": 1, "batch": "a"}, "batch as a whole number"),
        ({"n": 1, "known": (0, 1)}, r"known=vqgen.Known\(latents, keep\), got tuple"),
        ({"n": 1, "temperature": None}, "temperature wants a number like 1.0, got None"),
        ({"n": 1, "top_k": True}, "top_k wants no True"),
        ({"n": 1, "guidance": lambda progress: float("nan")}, "at least 0, got nan at progress 0"),
        ({"n": 1, "guidance": lambda progress: -3}, "at least 0, got -3"),
        ({"n": 1, "guidance": lambda progress: None}, "at least 0, got None"),
        ({"n": 1, "guidance": lambda progress: "x"}, "at least 0, got 'x'"),
        ({"n": 1, "steps": 5}, "has no knob 'steps'.*it has temperature"),
        ({"n": 1, "temperature": "hot"}, "temperature wants a number like 1.0, got 'hot'"),
        ({"labels": ["d"]}, "0 a, 1 b, 2 c"),
    ],
)
def test_refusals(pipeline: Pipeline, arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pipeline.sample(**arguments)


def test_what_is_no_image_and_no_token_is_refused(pipeline: Pipeline) -> None:
    tokens = torch.zeros(1, 6, dtype=torch.long)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep as a bool tensor"):
        vqgen.Known(tokens, keep.float())
    with pytest.raises(ValueError, match="known tokens from 0 to 31, got 32 to 32"):
        pipeline.sample_latents(n=1, known=vqgen.Known(tokens + 32, keep))
    with pytest.raises(ValueError, match=r"images \[n, 3, H, W\], got \[3, 16, 24\]"):
        pipeline.reconstruct(tiny.images(1)[0])
    for odd in (torch.full((1, 3, 16, 24), 5000), torch.ones(1, 3, 16, 24, dtype=torch.bool)):
        with pytest.raises(
            ValueError, match=r"images as uint8 or as floats in \[-1, 1\], got torch"
        ):
            pipeline.encode(odd)
    with pytest.raises(ValueError, match=r"images\.float\(\) / 127\.5 - 1"):
        pipeline.tokenizer.encode(tiny.images(1))


def test_a_number_is_an_index_and_a_word_a_name() -> None:
    names = {"class_names": ["0", "1", "10", "2"]}
    numbered = Pipeline(tiny.tokenizer(), tiny.prior(num_classes=4), facts=names)
    assert numbered.class_indices([2, "2", "10"]) == [2, 3, 2]


def test_a_stage1_run_reconstructs_but_does_not_sample(tmp_path: Path) -> None:
    p = vqgen.load(stage1_run(tmp_path))
    assert p.reconstruct(tiny.images(2)).shape == (2, 3, *tiny.SIZE)
    with pytest.raises(ValueError, match=r"python train_stage2\.py"):
        p.sample(n=1)


def test_loading_keeps_every_bit(tmp_path: Path) -> None:
    p = vqgen.load(stage2_run(tmp_path))
    for loaded, built in ((p.tokenizer, tiny.tokenizer()), (p.prior, tiny.prior())):
        for name, value in built.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name


IDS = torch.zeros(2, 6, dtype=torch.long)
WRONG = {
    "seed below 0": (lambda p: p.sample([0], seeds=[-1]), r"seeds from 0 to .*got -1"),
    "seed too large": (lambda p: p.sample([0], seeds=[2**63]), r"seeds from 0 to 2\*\*63 - 1"),
    "seed of a fraction": (lambda p: p.sample([0], seeds=[0.5]), r"whole numbers, got \[0.5\]"),
    "token too large": (lambda p: p.decode(IDS + tiny.CODES), r"from 0 to 31 .*got 32 to 32"),
    "token below -1": (lambda p: p.decode(IDS - 2), r"from 0 to 31 .*got -2 to -2"),
    "tokens as floats": (lambda p: p.decode(IDS.float()), r"tokens as integers \[n, 6\]"),
    "too few tokens": (lambda p: p.decode(IDS[:, :5]), r"\[n, 6\], got torch.int64 \[2, 5\]"),
    "encoding floats to 255": (
        lambda p: p.encode(tiny.images(2).float()),
        r"float images in \[-1, 1\], got up to .*hand in uint8",
    ),
    "encoding nan": (
        lambda p: p.encode(torch.full((1, 3, *tiny.SIZE), float("nan"))),
        r"float images in \[-1, 1\], got up to nan",
    ),
    "reconstructing floats to 255": (
        lambda p: p.reconstruct(tiny.images(2).float()),
        r"float images in \[-1, 1\]",
    ),
    "encoding nothing": (lambda p: p.encode(tiny.images(2)[:0]), "at least one image, got 0"),
    "decoding nothing": (lambda p: p.decode(IDS[:0]), "at least one image, got 0"),
    "nothing to paint": (
        lambda p: p.edit(tiny.images(2), torch.zeros(2, *tiny.SIZE, dtype=torch.bool), [0, 1]),
        r"True somewhere .*nothing to paint",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_handed_in_wrong_is_one_sentence(pipeline: Pipeline, name: str) -> None:
    call, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        call(pipeline)


def test_what_comes_out_may_be_changed_and_learned_from(pipeline: Pipeline) -> None:
    images = pipeline.sample([0, 1], seeds=[0, 1])
    tokens = pipeline.encode(images)
    tokens[:, 3], images[:, 0] = 0, 255
    pipeline.prior.requires_grad_()
    pipeline.prior.loss(tokens, vqgen.Condition.of_labels(torch.tensor([0, 1]))).total.backward()
    assert all(p.grad is not None for p in pipeline.prior.blocks.parameters())
    pipeline.prior.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_in_another_precision_are_read(pipeline: Pipeline, dtype: torch.dtype) -> None:
    images = (tiny.images(2).float() / 127.5 - 1).to(dtype)
    assert torch.equal(pipeline.encode(images), pipeline.encode(images.float()))


def test_what_cannot_be_loaded_or_read_is_one_sentence(pipeline: Pipeline, tmp_path: Path) -> None:
    run = stage2_run(tmp_path)
    with pytest.raises(ValueError, match="wanted device=foo, but this machine has cpu"):
        vqgen.load(run, device="foo")
    with pytest.raises(ValueError, match="wanted the path of a run or pipeline folder, got 3"):
        vqgen.load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted images as a tensor .* got ndarray"):
        pipeline.encode(tiny.images(1).numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted text as vqgen.text embeds captions.* got list"):
        pipeline.sample(text=["a cat"])


def test_continuous_latents_of_another_shape_are_refused() -> None:
    pipeline = Pipeline(tiny.kl())
    assert torch.equal(
        pipeline.decode(pipeline.encode(tiny.images(2))), pipeline.reconstruct(tiny.images(2))
    )
    with pytest.raises(ValueError, match=r"float latents \[n, 4, 4, 6\], got .* \[2, 4, 6, 4\]"):
        pipeline.decode(torch.zeros(2, 4, 6, 4))
    for bad in (float("nan"), float("inf")):
        latents = torch.zeros(2, 4, 4, 6)
        latents[1, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=r"finite latents, got 1 numbers .* guidance"):
            pipeline.decode(latents)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_damaged_statistics_of_latents_are_refused(tmp_path: Path, value: float) -> None:
    run, tokenizer = stage1_run(tmp_path, kl=True), tiny.kl()
    node = checkpoint.read_header(run / "tokenizer")["architecture"]
    assert tokenizer.standardizer is not None
    tokenizer.standardizer.deviation[1] = value
    options: dict[str, Any] = {"kind": "tokenizer", "architecture": node, "facts": {}}
    checkpoint.save_model(run / "tokenizer", tokenizer, **options)
    with pytest.raises(ValueError, match=r"deviations above 0 .* the file is damaged"):
        vqgen.load(run)


def test_undecided_tokens_can_be_decoded(pipeline: Pipeline) -> None:
    assert pipeline.decode(IDS - 1).shape == (2, 3, *tiny.SIZE)


def test_a_misspelt_class_of_many_is_one_short_sentence() -> None:
    tokenizer, names = tiny.tokenizer(), imagenet_classes()
    prior = LlamaGen(tokenizer.spec, width=32, depth=1, heads=2, num_classes=1000)
    pipe = Pipeline(tokenizer, prior, facts={"class_names": names})
    assert pipe.class_indices(["Golden Retriever", "207", 207]) == [207, 207, 207]
    with pytest.raises(ValueError, match="did you mean golden retriever") as caught:
        pipe.class_indices(["golden retreiver"])
    assert "0 tench" in str(caught.value) and "and so on to 999" in str(caught.value)
    assert len(str(caught.value)) < 700
    for wrong in (1000, -1, "1000"):
        with pytest.raises(ValueError, match="is not known"):
            pipe.class_indices([wrong])


PRIORS: dict[str, tuple[Any, Any]] = {  # tokenizer, the prior over it
    "llamagen": (tiny.tokenizer, lambda made: tiny.prior_for(made.spec)),
    "var": (tiny.multiscale, tiny.var),
    "absorbing": (tiny.tokenizer, lambda made: tiny.absorbing_for(made.spec)),
    "flow": (tiny.kl, partial(tiny.continuous, Flow)),
    "diffusion": (tiny.kl, partial(tiny.continuous, Diffusion)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_in_bf16_every_prior_samples_nearly_the_same(name: str) -> None:
    make, over = PRIORS[name]
    tokenizer = make()
    prior = over(tokenizer)
    for parameter in prior.parameters():
        if not parameter.any():  # else nothing depends on anything
            nn.init.normal_(parameter, std=0.1)
    pipe, labels = Pipeline(tokenizer, prior), [0, 1, 2]
    tokens = isinstance(tokenizer.spec, vqgen.TokenSpec)
    options: dict[str, Any] = {"guidance": 2.0, **({"top_k": 1} if tokens else {})}
    whole = pipe.sample_latents(labels, **options).float()
    pictures_before, codes = pipe.decode(pipe.encode(tiny.images(3))), pipe.encode(tiny.images(3))
    pipe.halve()
    half = pipe.sample_latents(labels, **options).float()
    if tokens:
        assert (half == whole).float().mean() > 0.6  # a token that differs changes those after it
    else:
        assert half.isfinite().all() and (half - whole).abs().mean() < 0.05 * whole.std()
    assert not torch.equal(pipe.decode(codes), pictures_before)  # the decoder is in bf16, too,
    assert (pipe.decode(codes).int() - pictures_before.int()).abs().float().mean() < 2
    assert torch.equal(pipe.encode(tiny.images(3)), codes)  # the encoder is not
    assert torch.equal(pipe.sample_latents([0], **options).float(), half[:1])


def test_the_precision_of_sampling_is_typed(tmp_path: Path, monkeypatch, capsys) -> None:
    run = stage2_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert typed("sample", ["n=2", "precision=bf16"], monkeypatch) == 0
    assert next(vqgen.load(run, precision="bf16").prior.parameters()).dtype == torch.bfloat16
    assert typed("sample", ["n=2", "precision=fp16"], monkeypatch) != 0
    assert "wanted precision=float32 or precision=bf16" in capsys.readouterr().err
