"""Multi-scale quantizer: its law, one `advance` everywhere, gradients by hand, remedies for
collapse."""

import copy
import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity import golden
from vqgen.contracts import TokenSpec
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.multiscale import MultiScaleQuantizer
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi, pick

GRID = (3, 5)
SCALES = [[1, 1], [2, 2], [2, 4], [3, 5]]
DIM = 6
KINDS = pytest.mark.parametrize(
    "kind",
    [
        {"update": "learned"},
        {"update": "ema"},
        {"update": "learned", "own_codebooks": True},
        {"update": "ema", "own_codebooks": True},
        {"update": "learned", "distance": "cosine"},
        {"update": "learned", "phi_strength": 0.0},
        {"update": "learned", "phi_count": 0},
        {"update": "learned", "phi_count": 1},
        {"update": "ema", "scales": "auto"},
    ],
    ids=lambda kind: "-".join(str(value) for value in kind.values()),
)


def _quantizer(kind: dict | None = None, size: int = 40, **more) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    options = {"update": "learned", "scales": SCALES, **(kind or {}), **more}
    book = {name: options.pop(name) for name in ("update", "start") if name in options}
    return MultiScaleQuantizer(codebook=Codebook(size=size, dim=DIM, **book), **options)


def _hidden(seed: int = 1, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, DIM, *GRID, generator=generator).requires_grad_()


def _walk(pyramid: FrozenPyramid, tokens: Tensor) -> list[Tensor]:
    """The canvas after each scale, as a prior builds it."""
    canvas, canvases = pyramid.blank(len(tokens)), []
    lengths = [height * width for height, width in pyramid.scales]
    for scale, some in enumerate(tokens.split(lengths, dim=1)):
        canvas = pyramid.advance(canvas, some, scale)
        canvases.append(canvas)
    return canvases


# ---- laws


@KINDS
def test_embedding_the_tokens_gives_what_forward_gave(kind: dict) -> None:
    model, hidden = _quantizer(kind), _hidden()
    for _ in range(3):
        quantized, _ = model(hidden)
        tokens = model.encode(hidden)
        assert torch.equal(model.embed(tokens, GRID), quantized)
        model.after_step()
    spec = model.spec(GRID)
    assert tokens.shape == (3, spec.length) and spec.vocab_size == 40
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 40


@KINDS
def test_one_advance_everywhere(kind: dict) -> None:
    """Training, decoding and a prior's own steps over the frozen pyramid agree bit for bit."""
    model, hidden = _quantizer(kind), _hidden()
    quantized, losses = model(hidden)
    tokens = model.encode(hidden)
    canvases = _walk(model.pyramid(GRID), tokens)
    assert torch.equal(canvases[-1], quantized)
    error = torch.stack([(canvas - hidden).square().mean() for canvas in canvases]).mean()
    torch.testing.assert_close(losses["commitment"], 0.25 * error)


def test_undecided_tokens_add_nothing() -> None:
    model, hidden = _quantizer(), _hidden()
    tokens = model.encode(hidden).detach()
    canvases = _walk(model.pyramid(GRID), tokens)
    for scale, first in enumerate((1, 5, 13)):
        partly = tokens.clone()
        partly[:, first:] = -1
        assert torch.equal(model.embed(partly, GRID), canvases[scale])
    assert not model.embed(torch.full_like(tokens, -1), GRID).any()
    left = tokens.clone()
    left[:, -5:] = -1  # the last row of the last scale
    assert torch.equal(model.embed(left, GRID)[:, :, 2], canvases[2][:, :, 2])


def test_inputs_of_a_prior_are_means_over_areas() -> None:
    model = _quantizer()
    pyramid, canvas = model.pyramid(GRID), _hidden().detach()
    got = pyramid.next_input(canvas, 2)
    assert got.shape == (3, 8, DIM)
    # 3 x 5 to 2 x 4: rows 0-1 and 1-2, columns 0-1, 1-2, 2-3, 3-4
    torch.testing.assert_close(got[:, 5], canvas[:, :, 1:3, 1:3].mean((2, 3)))
    torch.testing.assert_close(pyramid.next_input(canvas, 3)[:, 7], canvas[:, :, 1, 2])


def test_each_scale_takes_the_nearest_code_to_what_is_missing() -> None:
    model, hidden = _quantizer(phi_strength=0.0), _hidden().detach()
    codes = torch.cat([book.rows() for book in model.codebooks]).detach()
    tokens = model.encode(hidden).split([1, 4, 8, 15], dim=1)
    missing = hidden
    for (height, width), some in zip(SCALES, tokens, strict=True):
        vectors = F.interpolate(missing, (height, width), mode="area").flatten(2).mT
        assert torch.equal(torch.cdist(vectors, codes.expand(3, -1, -1)).argmin(-1), some)
        maps = codes[some].mT.unflatten(2, (height, width))
        missing = missing - F.interpolate(maps, GRID, mode="bicubic")


def test_a_refitted_token_makes_up_for_another_canvas() -> None:
    """With the same canvas every token stays; with another one, each becomes the code nearest to
    what it added and what the canvas lacks against the one before."""
    quantizer = _quantizer()
    pyramid, tokens = quantizer.pyramid(GRID), quantizer.encode(_hidden())
    before, start = pyramid.blank(len(tokens)), 0
    for scale, (height, width) in enumerate(pyramid.scales):
        part = tokens[:, start : (start := start + height * width)]
        assert torch.equal(pyramid.refit(before, part, before, scale), part)
        other = before + 0.5 * torch.randn(before.shape, generator=torch.manual_seed(scale))
        rows = pyramid.codes[scale % len(pyramid.codes)]
        wanted = rows[part] + pyramid.next_input(before - other, scale)
        nearest = torch.cdist(wanted, rows).argmin(dim=-1)
        assert torch.equal(pyramid.refit(other, part, before, scale), nearest)
        assert not torch.equal(nearest, part)
        before = pyramid.advance(before, part, scale)


def test_image_i_is_the_same_in_any_batch() -> None:
    model, hidden = _quantizer({"update": "ema"}), _hidden(batch=7)
    model(hidden)
    tokens = model.encode(hidden)
    assert torch.equal(torch.cat([model.encode(one) for one in hidden.split(1)]), tokens)


# ---- phi


def test_phi_is_picked_as_published() -> None:
    assert [pick(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [pick(k, 5, 4) for k in range(5)] == [0, 1, 2, 2, 3]
    assert [pick(k, 4, 1) for k in range(4)] == [0, 0, 0, 0]
    assert pick(0, 1, 4) == 0
    for scales in range(2, 20):
        assert [pick(k, scales, scales) for k in range(scales)] == list(range(scales))


def test_phi_table() -> None:
    path = golden.root() / "var" / "phi_pick.json"
    if not path.is_file():
        pytest.skip("no fixtures")
    for row in json.loads(path.read_text())["table"]:
        scales = row["num_scales"]
        got = [pick(k, scales, row["K"]) for k in range(scales)]
        assert got == row["phi_index"], (row["K"], scales)


@pytest.mark.parametrize("strength", [0.5, -0.3])
def test_phi_blends(strength: float) -> None:
    torch.manual_seed(0)
    phi, x = Phi(DIM, count=2, strength=strength), torch.randn(2, DIM, *GRID)
    share = abs(strength)
    want = (1 - share) * x + share * phi.convolutions[1](x)
    torch.testing.assert_close(phi(x, 3, 4), want)
    assert not list(Phi(DIM, count=2, strength=0.0).parameters())


def test_the_frozen_pyramid_is_a_copy_without_gradients() -> None:
    model = _quantizer()
    pyramid = model.pyramid(GRID)
    names = {name for name, _ in pyramid.named_parameters()} | {"codes"}
    assert set(pyramid.state_dict()) == names and not any(
        parameter.requires_grad for parameter in pyramid.parameters()
    )
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in pyramid.state_dict().items())
    assert pyramid.codes.shape == (1, 40, DIM) and pyramid.channels == DIM
    assert copy.deepcopy(pyramid).state_dict().keys() == before.keys()


# ---- gradients


@KINDS
def test_straight_through_is_exactly_the_identity(kind: dict) -> None:
    model, hidden = _quantizer(kind), _hidden()
    quantized, _ = model(hidden)
    direction = torch.randn_like(quantized)
    wanted = [hidden, *model.parameters()]
    got = torch.autograd.grad((quantized * direction).sum(), wanted, allow_unused=True)
    assert torch.equal(got[0], direction) and got[1:] == (None,) * (len(wanted) - 1)


@KINDS
def test_each_loss_term_pulls_where_it_should(kind: dict) -> None:
    model = _quantizer(kind, commitment_weight=0.3, codebook_weight=0.7)
    hidden = _hidden()
    losses = model(hidden)[1]
    torch.testing.assert_close(losses["codebook"] / 0.7, losses["commitment"] / 0.3)
    learners = list(model.parameters())
    (pull,) = torch.autograd.grad(losses["commitment"], hidden, retain_graph=True)
    canvases = _walk(model.pyramid(GRID), model.encode(hidden))
    by_hand = torch.stack([2 * (hidden - canvas) for canvas in canvases]).mean(0) / hidden.numel()
    torch.testing.assert_close(pull, 0.3 * by_hand.detach())
    for moved in (
        torch.autograd.grad(losses["commitment"], learners, retain_graph=True, allow_unused=True),
        torch.autograd.grad(losses["codebook"], [hidden], retain_graph=True, allow_unused=True),
    ):
        assert all(gradient is None for gradient in moved)
    assert all(g.any() for g in torch.autograd.grad(losses["codebook"], learners))


def test_an_ema_codebook_has_no_gradient_and_phi_has() -> None:
    model = _quantizer({"update": "ema"})
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"phi"}
    model(_hidden())[1]["codebook"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    nothing_learns = _quantizer({"update": "ema", "phi_strength": 0.0})
    assert set(nothing_learns(_hidden())[1]) == {"commitment"}


# ---- remedies


def test_scale_dropout_shows_leading_scales_only() -> None:
    model, hidden = _quantizer(scale_dropout=1.0), _hidden(batch=40)
    torch.manual_seed(3)
    quantized, losses = model.train()(hidden)
    canvases = torch.stack(_walk(model.pyramid(GRID), model.encode(hidden)))
    same = (canvases == quantized).all(dim=4).all(3).all(2)  # [scales, batch]
    assert bool((same.sum(0) == 1).all()) and bool((same.sum(1) > 0).all())
    depth = same.float().argmax(0)
    errors = (canvases - hidden).square().mean((2, 3, 4))
    each = [errors[: last + 1, i].mean() for i, last in enumerate(depth.tolist())]
    torch.testing.assert_close(losses["commitment"], 0.25 * torch.stack(each).mean())
    whole, _ = model.eval()(hidden)
    assert torch.equal(whole, canvases[-1])


def test_scale_dropout_has_its_rate() -> None:
    model, hidden = _quantizer(scale_dropout=0.3), _hidden(batch=1).detach().repeat(3000, 1, 1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        quantized, _ = model.train()(hidden)
        whole, _ = model.eval()(hidden[:1])
    truncated = ((quantized - whole).abs() > 1e-4).flatten(1).any(1).float().mean()
    assert abs(float(truncated) - 0.3 * 3 / 4) < 0.03  # a quarter of the dropped keep all four


@pytest.mark.parametrize("own", [False, True])
def test_dead_codes_are_revived_and_counted(own: bool) -> None:
    torch.manual_seed(0)
    book = Codebook(size=16, dim=DIM, revive_below=0.2, usage_decay=0.5)
    model = MultiScaleQuantizer(codebook=book, scales=SCALES, own_codebooks=own)
    model(_hidden())
    with torch.no_grad():
        for one in model.codebooks:
            one.weight[8:] = 1e4  # far from everything
    revived = 0.0
    for seed in range(6):
        model(_hidden(seed))
        revived += model.after_step()["codebook/revived"]
    assert revived >= 8 * len(model.codebooks)
    assert all(float(one.weight.detach().abs().max()) < 100 for one in model.codebooks)


def test_an_ema_code_is_the_mean_of_what_chose_it_at_its_scale() -> None:
    torch.manual_seed(0)
    book = Codebook(size=4, dim=DIM, update="ema", ema_decay=0.0, revive_below=0)
    model = MultiScaleQuantizer(codebook=book, scales=SCALES, own_codebooks=True)
    hidden = _hidden(batch=20).detach().requires_grad_()
    model(hidden)
    tokens = model.encode(hidden)[:, 0]  # of the first scale, the mean of the whole map
    model.after_step()
    means = hidden.detach().mean((2, 3))
    for code in tokens.unique().tolist():
        want = means[tokens == code].mean(0)
        torch.testing.assert_close(model.codebooks[0].weight[code], want, rtol=1e-3, atol=1e-4)


def test_own_codebooks_start_from_the_vectors_of_their_scale() -> None:
    model = _quantizer({"own_codebooks": True}, size=3, phi_strength=0.0)
    hidden = _hidden().detach()
    model(hidden.requires_grad_())
    means = hidden.detach().mean((2, 3))
    nearest = torch.cdist(model.codebooks[0].rows().detach(), means).amin(1)
    assert float(nearest.max()) < 1e-5
    assert len({id(book) for book in model.codebooks}) == 4
    finest = model.codebooks[3].rows().detach()
    assert not torch.equal(finest, model.codebooks[0].rows().detach())


def test_autocast_does_not_reach_the_pyramid() -> None:
    model, hidden = _quantizer({"update": "ema"}), _hidden()
    quantized, losses = model(hidden)
    tokens, pyramid = model.encode(hidden), model.pyramid(GRID)
    with torch.autocast("cpu", torch.bfloat16):
        again, losses_again = model(hidden)
        assert torch.equal(model.encode(hidden), tokens)
        assert torch.equal(_walk(pyramid, tokens)[-1], quantized)
    assert torch.equal(again, quantized) and again.dtype == torch.float32
    assert torch.equal(losses_again["commitment"], losses["commitment"])


# ---- scales


def test_automatic_scales_are_the_published_ones_at_16_x_16() -> None:
    def sides(*grid: int) -> list[tuple[int, int]]:
        return list(_quantizer(scales="auto").spec((grid[0], grid[1])).scales)

    assert sides(16, 16) == [(n, n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
    assert sides(8, 8) == [(n, n) for n in (1, 2, 3, 4, 5, 6, 8)]
    assert sides(1, 1) == [(1, 1)] and sides(2, 3) == [(1, 1), (1, 2), (2, 3)]
    for grid in ((7, 5), (16, 24), (2, 31), (40, 40)):
        scales = sides(*grid)
        assert scales[0] == (1, 1) and scales[-1] == grid
        assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(scales))


def test_a_side_is_a_square() -> None:
    model = _quantizer(scales=[1, 2, [2, 3]])
    assert model.spec((2, 3)) == TokenSpec(40, ((1, 1), (2, 2), (2, 3)))


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [
        ([1, 2], r"grid of 3 x 5, got scales that end at 2 x 2; type .*=\[1,2,\[3,5\]\] or auto"),
        ([1, 4, [3, 5]], r"coarse to fine, got 3 x 5 after 4 x 4"),
        ([1, 4], r"exceed it with 4 x 4; type .*scales=\[1,\[3,5\]\]"),
        ([1, [2, 6], [3, 6]], r"exceed it with 2 x 6; type .*scales=\[1,\[3,5\]\]"),
        ([1, 2, 16, 8], r"8 x 8 after 16 x 16; type .*scales=\[1,2,8\]"),
        ([2, 1, [3, 5]], r"coarse to fine, got 1 x 1 after 2 x 2; type .*scales=\[1,2,\[3,5\]\]"),
        ([], r"list of sides or of \[height,width\].*type .*scales=auto"),
        ([0, 1], "each at least 1"),
        ([1, [2, 3, 4]], "each at least 1"),
        ("all", "to be auto, or a list"),
        ([1, 2.5], "each at least 1"),
        (8, r"each at least 1, got 8; type .*scales=auto"),
        (None, "each at least 1, got None"),
        (True, "each at least 1, got True"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _quantizer(scales=scales).spec(GRID)


def test_other_settings_that_cannot_be() -> None:
    for more, sentence in (
        ({"scales": "auto", "own_codebooks": True}, "wanted a list of scales"),
        ({"scales": "auto", "phi_count": 0}, "wanted a list of scales"),
        ({"distance": "cosin"}, "l2 or cosine, got cosin"),
        ({"phi_count": -1}, "phi_count of at least 0"),
        ({"scale_dropout": 1.5}, r"scale_dropout in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            _quantizer(**more)
    with pytest.raises(ValueError, match=r"phi_count from 0 .* to \d+, for \d+ scales, got 100"):
        _quantizer(phi_count=100).spec(GRID)
    with pytest.raises(ValueError, match="have 28 tokens, got 15"):
        _quantizer().embed(torch.zeros(1, 15, dtype=torch.long), GRID)
