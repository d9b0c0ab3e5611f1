"""VAR's tokenizer and its quantizer alone, out of their fixtures, through the importer."""

from torch import Tensor

from tests.parity import golden, peer
from vqgen import build
from vqgen.importing import layout, var_vae
from vqgen.tokenizers.multiscale import MultiScaleQuantizer


def load(fixture: golden.Fixture, size: tuple[int, int]) -> peer.Imported:
    """The whole tokenizer, for images of this size."""
    return peer.load(fixture, size=size)


def loaded_bottleneck(fixture: golden.Fixture) -> tuple[MultiScaleQuantizer, list[layout.Link]]:
    """The quantizer of a fixture of kind `quantizer`, whose file has no tokenizer around it, and
    what goes where."""
    config = fixture.config["model"]
    weights = {f"quantize.{name}": value for name, value in fixture.tensors("weights").items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    scales = [side if isinstance(side, list) else [side] * 2 for side in config["v_patch_nums"]]
    node = var_vae.quantizer(shapes, config, scales)
    model = build.make(node)
    own = {f"bottleneck.{name}": tuple(v.shape) for name, v in model.state_dict().items()}
    kept = var_vae.quantizer_state(shapes)
    links = layout.links(var_vae.quantizer_rows(node["phi_count"]), own.keys() - kept.keys())
    assert layout.expected(links, own).keys() == weights.keys() - {var_vae.HITS}
    ours = layout.to_ours(links, weights, own) | kept
    ours = {name.removeprefix("bottleneck."): value for name, value in ours.items()}
    model.load_state_dict({name: value.to(own_dtype(model, name)) for name, value in ours.items()})
    return model, links


def own_dtype(model: MultiScaleQuantizer, name: str):
    """Of our tensor of this name: the files hold float16."""
    return model.state_dict()[name].dtype


def gradients(model: MultiScaleQuantizer, links: list[layout.Link]) -> dict[str, Tensor]:
    """The gradients of the quantizer alone under the peer's names."""
    ours = {f"bottleneck.{name}": p.grad for name, p in model.named_parameters()}
    theirs = layout.to_theirs(links, {n: g for n, g in ours.items() if g is not None})
    return {name.removeprefix("quantize."): value for name, value in theirs.items()}
