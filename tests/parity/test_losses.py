"""Parity: LPIPS, discriminator and stage-1 losses against LlamaGen and taming-transformers."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.golden import Fixture, assert_matches, fixtures
from tests.parity.peer_losses import LastLayer, llamagen_loss, neighbor, taming_loss
from vqgen.contracts import Reconstruction
from vqgen.losses.adversarial import EPSILON, GAMES, adaptive_weight
from vqgen.losses.discriminator import PatchDiscriminator
from vqgen.losses.perceptual import PerceptualDistance

PUBLISHED_MAX = 1e4  # both peers clamp the adaptive weight there


def cases(*families: str) -> list:
    """One pytest parameter per case of every fixture found."""
    found = []
    for parameter in fixtures(*families):
        fixture = parameter.values[0]
        if fixture is None:
            found.append(pytest.param(None, None, marks=parameter.marks, id="none"))
            continue
        for name, case in fixture.config["cases"].items():
            if not {"config", "settings"} & set(case):  # an example with a test of its own
                continue
            found.append(pytest.param(fixture, name, id=f"{parameter.id}-{name}"))
    return found


def number(value: float) -> Tensor:
    return torch.tensor(value)


def test_lpips(tmp_path: Path, lpips_fixture: Fixture) -> None:
    io = lpips_fixture.tensors("io")
    path = tmp_path / "backbone.pth"
    torch.save(seeded_vgg(lpips_fixture.config), path)
    measure = PerceptualDistance(net="vgg", weights=str(path)).train()
    heads = {key: value for key, value in io.items() if key.startswith("lin")}
    measure.distance.load_state_dict(heads, strict=False)
    assert_matches(measure(io["x0"], io["x1"]), io["distance"].flatten(), "distance")


def seeded_vgg(config: dict) -> dict[str, Tensor]:
    """The fixture's recipe, in torchvision's names; checked against the fixture's checksums."""
    seed, bias_scale = re.search(r"manual_seed\((\d+).*bias = ([\d.]+)", config["recipe"]).groups()
    keys = [key for key in config["state_dict_keys"] if re.fullmatch(r"net\..*weight", key)]
    state = {}
    for depth, key in enumerate(sorted(keys, key=lambda key: int(key.split(".")[2]))):
        shape = config["state_dict_keys"][key]
        generator = torch.Generator().manual_seed(int(seed) + depth)
        weight = torch.randn(shape, generator=generator) * (2 / (shape[1] * 9)) ** 0.5
        assert weight.double().sum().item() == pytest.approx(
            config["conv_checksums_float64"][key]["sum"], abs=1e-3
        )
        name = f"features.{key.split('.')[2]}"
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = float(bias_scale) * torch.randn(shape[0], generator=generator)
    return state


@pytest.fixture(params=fixtures("lpips_seeded"))
def lpips_fixture(request: pytest.FixtureRequest) -> Fixture:
    return request.param


@pytest.mark.parametrize(("fixture", "name"), cases("taming_discriminator"))
def test_discriminator(fixture: Fixture, name: str) -> None:
    case, io = fixture.config["cases"][name], fixture.tensors("io")
    net = peer_discriminator(fixture, name)
    for module in net.modules():
        if hasattr(module, "initialized"):
            check_data_dependent_start(fixture, name, io)
            break
    for mode in ("eval", "train"):
        net = peer_discriminator(fixture, name).train(mode == "train")
        real, fake = net(io["real"]), net(io["fake"])
        assert_matches(real, io[f"{name}.logits_real_{mode}"], f"{mode} real")
        assert_matches(fake, io[f"{name}.logits_fake_{mode}"], f"{mode} fake")
        assert_matches(GAMES["hinge"].discriminator(real, fake), number(case[mode]["hinge_d"]))
        assert_matches(GAMES["vanilla"].discriminator(real, fake), number(case[mode]["vanilla_d"]))
        assert_matches(GAMES["hinge"].generator(fake), number(case[mode]["g"]))
        assert_matches(GAMES["vanilla"].generator(fake), number(case[mode]["g"]))
    for key, value in net.state_dict().items():
        if f"{name}.after_two_train_passes.{key}" in io:
            assert_matches(value, io[f"{name}.after_two_train_passes.{key}"], key)


def peer_discriminator(fixture: Fixture, name: str) -> PatchDiscriminator:
    net = empty_discriminator(fixture.config["cases"][name]["config"])
    net.load_state_dict(fixture.tensors(f"weights_{name}"))  # strict: our names are the peers'
    return net


def empty_discriminator(config: dict) -> PatchDiscriminator:
    return PatchDiscriminator(
        in_channels=config["input_nc"],
        width=config["ndf"],
        layers=config["n_layers"],
        norm="act" if config.get("use_actnorm") else "batch",
    )


def check_data_dependent_start(fixture: Fixture, name: str, io: dict[str, Tensor]) -> None:
    """Convolutions of the fixture, ActNorm as it comes: the first training batch sets it."""
    net = empty_discriminator(fixture.config["cases"][name]["config"]).train()
    weights = fixture.tensors(f"weights_{name}")
    fresh = net.state_dict()
    is_norm = {key.rsplit(".", 1)[0] for key in weights if key.endswith("initialized")}
    net.load_state_dict(
        {k: (fresh if k.rsplit(".", 1)[0] in is_norm else weights)[k] for k in fresh}
    )
    logits = net(io["real"])
    assert_matches(logits, io[f"{name}.logits_real_first_train_batch"], "first batch")
    for key, value in net.state_dict().items():
        if f"{name}.after_data_init.{key}" in io:
            assert_matches(value, io[f"{name}.after_data_init.{key}"], key)


@pytest.mark.parametrize("fixture", fixtures("taming_discriminator"))
def test_adaptive_weight(fixture: Fixture) -> None:
    case = fixture.config["cases"]["adaptive_weight_example"]
    nll, term, last_layer, disc_weight = adaptive_example(fixture, case)
    assert_matches(nll, number(case["nll"]), "nll")
    assert_matches(term, number(case["g_loss"]), "g")
    much = scale_of(case["clamp_example"])
    for scale, expected in (
        (1.0, case["adaptive_weight_times_disc_weight"]),
        (much, case["clamp_example"]["value"]),
    ):
        weight = adaptive_weight(scale * nll, term, last_layer, PUBLISHED_MAX)
        assert_matches(disc_weight * weight, number(expected), "adaptive weight")


@pytest.mark.parametrize("fixture", fixtures("taming_discriminator"))
def test_adaptive_weight_epsilon(fixture: Fixture) -> None:
    """The adversarial term nearly gone, so that the epsilon decides."""
    case = fixture.config["cases"]["adaptive_weight_example"]
    nll, term, last_layer, disc_weight = adaptive_example(fixture, case)
    expected, little = case["eps_example"]["value"], scale_of(case["eps_example"])
    by_its_own_norms = (
        disc_weight * case["norm_grad_nll"] / (little * case["norm_grad_g"] + EPSILON)
    )
    if by_its_own_norms != pytest.approx(expected, rel=1e-3):
        pytest.skip(
            f"eps_example says {expected}, but the fixture's own gradient norms and note give "
            f"{by_its_own_norms}; tests/losses holds the epsilon against its formula"
        )
    weight = adaptive_weight(nll, little * term, last_layer, PUBLISHED_MAX)
    assert_matches(disc_weight * weight, number(expected), "epsilon")


def adaptive_example(fixture: Fixture, case: dict) -> tuple[Tensor, Tensor, nn.Parameter, float]:
    """A convolution as a decoder's last layer -> nll, adversarial term, its weight, disc_weight."""
    io = fixture.tensors("io")
    name, disc_weight = re.search(r"D = '(\w+)'.*disc_weight ([\d.]+)", case["recipe"]).groups()
    net = peer_discriminator(fixture, name).train()
    last_layer = nn.Parameter(io["adaptive.last_weight"])
    made = F.conv2d(io["adaptive.feature"], last_layer, io["adaptive.last_bias"], padding=1)
    nll = (io["adaptive.target"] - made).abs().mean()
    return nll, GAMES["hinge"].generator(net(made)), last_layer, float(disc_weight)


def scale_of(example: dict) -> float:
    return float(re.search(r"scaled by (\S+)", example["note"])[1])


@pytest.mark.parametrize(("fixture", "name"), cases("llamagen_vqloss"))
def test_llamagen_loss(fixture: Fixture, name: str) -> None:
    case, expected = fixture.config["cases"][name], fixture.tensors("outputs")
    settings, parts, step = case["settings"], case["parts"], case["global_step"]
    steps = 2 * max(step, settings["disc_start"])
    loss = llamagen_loss(settings, steps)
    loss.gan.discriminator.load_state_dict(fixture.tensors("discriminator_weights"))
    vq, outputs = neighbor(fixture, fixture.config["vq_model"])
    images, last = vq.tensors("inputs")["image"], LastLayer(vq, outputs)
    made = last()
    assert_matches(made, expected["reconstruction"], "reconstruction")
    bottleneck = {key: number(parts[key]) for key in ("codebook", "commit", "entropy")}

    got = loss.generator(images, Reconstruction(made, bottleneck), last.weight, step / steps)
    assert_matches(got.total, number(case["generator_total"]), "generator total")
    assert_matches(got.parts["pixel"], number(parts["rec"]), "rec")
    assert_matches(got.parts["perceptual"], number(parts["perceptual"]), "perceptual")
    (slope,) = torch.autograd.grad(got.total, last.weight)
    assert_matches(slope, expected[f"{name}.grad_total_last_layer"], "gradient")
    if "adaptive_weight" in case:
        assert_matches(got.parts["gan/adaptive_weight"], number(case["adaptive_weight"]))
    if not loss.gan_active(step / steps):  # the peer runs its discriminator and multiplies by zero
        assert case["discriminator_total"] == 0
        return
    assert_matches(got.parts["gan/generator"], number(parts["gen_adv"]), "gen_adv")
    check_running_statistics(loss, expected, f"{name}.running_{{}}_after_generator_pass")
    judged = loss.discriminator(images, made, step / steps)
    assert_matches(judged.total, number(parts["d_loss_unweighted"]), "d_loss")
    # the peer multiplies the discriminator's loss by the generator's weight; we do not
    assert_matches(settings["disc_weight"] * judged.total, number(case["discriminator_total"]))
    check_running_statistics(loss, expected, f"{name}.running_{{}}_after_both_passes")


def check_running_statistics(loss, expected: dict[str, Tensor], key: str) -> None:
    """The fixture records the first BatchNorm layer."""
    first = next(m for m in loss.gan.discriminator.modules() if isinstance(m, nn.BatchNorm2d))
    for what in ("mean", "var"):
        if (recorded := expected.get(key.format(what))) is not None:
            assert_matches(getattr(first, f"running_{what}"), recorded, key.format(what))


@pytest.mark.parametrize(("fixture", "name"), cases("taming_vqganloss"))
def test_taming_loss(fixture: Fixture, name: str) -> None:
    case, log = fixture.config["cases"][name], fixture.config["cases"][name]["log"]
    settings, step = case["settings"], case["global_step"]
    steps = 2 * max(step, settings["disc_start"])
    weights = (fixture.folder / fixture.config["discriminator"]).resolve()
    source = Fixture(weights.parent / "config.json")
    net_name = weights.stem.removeprefix("weights_")
    loss = taming_loss(settings, steps, source.config["cases"][net_name]["config"])
    loss.gan.discriminator.load_state_dict(source.tensors(weights.stem))
    vq, outputs = neighbor(fixture, fixture.config["vq_model"])
    images, last = vq.tensors("inputs")["image"], LastLayer(vq, outputs)
    made = last()
    bottleneck = {"quant": settings.get("codebook_weight", 1.0) * number(log["quant_loss"])}

    got = loss.generator(images, Reconstruction(made, bottleneck), last.weight, step / steps)
    assert_matches(got.total, number(case["generator_total"]), "generator total")
    (slope,) = torch.autograd.grad(got.total, last.weight)
    assert_matches(slope, fixture.tensors("outputs")[f"{name}.grad_total_last_layer"], "gradient")
    perceptual = got.parts.get("perceptual", number(0.0))
    assert_matches(perceptual, number(log["p_loss"]), "p_loss")
    nll = got.parts["pixel"] + loss.perceptual_weight * perceptual
    assert_matches(nll, number(log["nll_loss"]), "nll")
    if not loss.gan_active(step / steps):
        assert case["discriminator_total"] == 0 and log["disc_factor"] == 0
        return
    assert_matches(got.parts["gan/generator"], number(log["g_loss"]), "g_loss")
    weight = settings.get("disc_weight", 1.0) * got.parts["gan/adaptive_weight"]
    assert_matches(weight, number(log["d_weight"]), "d_weight")
    judged = loss.discriminator(images, made, step / steps)
    # the peer multiplies the discriminator's loss by its factor; we do not
    assert_matches(log["disc_factor"] * judged.total, number(case["discriminator_total"]))
    assert_matches(judged.parts["gan/logits_real"], number(log["logits_real"]), "logits_real")
    assert_matches(judged.parts["gan/logits_fake"], number(log["logits_fake"]), "logits_fake")
