"""Config to objects: a node with `_target_` is called with its keys as keyword arguments; nothing
below sees a config.

With cli.py and overrides.py the only files that know Hydra."""

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import hydra
import torch
from omegaconf import OmegaConf
from torch import nn

from vqgen.nn.linear import HAS_BF16
from vqgen.words import nearest

PRECISIONS = ("auto", "32-true", "bf16-mixed")
# packages of vqgen that saved models and run folders name classes of
STORED = (["tokenizers"], ["priors"], ["nn"], ["sampling"], ["data"])


def plain(config: Any) -> Any:
    """A resolved config as plain dicts, lists and values."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def make(node: Any, **more: Any) -> Any:
    """Call the `_target_` of a config node or plain dict. Unknown keys are a ValueError with the
    nearest valid one."""
    node = plain(node)
    _check_arguments(node)
    # a partial first: Hydra would read what is handed in at run time as more config
    called = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    return called(**more)


def model(architecture: dict[str, Any], **more: Any) -> Any:
    """Make a model (or data) from what is stored in a file: only classes of vqgen may be named
    there."""
    for target in _targets(architecture):
        if not _is_ours(target):
            raise ValueError(
                f"the saved model names {target!r}: only classes of vqgen are made from a file"
            )
    return make(architecture, **more)


def _is_ours(target: str) -> bool:
    """Whether this is the name of something that one of the packages defines that files may name.
    What such a module imports does not count: vqgen.checkpoint.os.system is no part of vqgen."""
    module, _, name = target.rpartition(".")
    if module.split(".")[0] != "vqgen" or module.split(".")[1:2] not in STORED:
        return False
    found = getattr(_imported(module), name, None)
    return (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__ == module


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def prior(node: Any, tokenizer: Any, *, num_classes: int) -> Any:
    """Make a prior for the latents of a tokenizer; a pair that does not fit is refused before
    anything is built. A prior with an argument `pyramid` gets the tokenizer's."""
    node = plain(node)
    check_pair(node, tokenizer.spec)
    check_numbers(node)
    arguments = inspect.signature(hydra.utils.get_class(node["_target_"])).parameters
    more = {"pyramid": tokenizer.pyramid} if "pyramid" in arguments else {}
    return make(node, spec=tokenizer.spec, num_classes=num_classes, **more)


def complete(node: Any) -> Any:
    """A config node or plain dict with every argument that its `_target_` would fill in by
    default; two nodes of the same model become equal."""
    if isinstance(node, list):
        return [complete(part) for part in node]
    if not isinstance(node, dict):
        return node
    parts = {key: complete(part) for key, part in node.items() if key != "_partial_"}
    if "_target_" not in node:
        return parts
    parameters = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty and name != "num_classes"
    }
    return {**defaults, **parts}


def check_pair(node: Any, spec: Any) -> None:
    """Raise the prior's ValueError (need, got, cure) if it cannot read such latents."""
    hydra.utils.get_class(plain(node)["_target_"]).check(spec)


def check_path(node: Any) -> None:
    """Raise ValueError for a path= that was typed with a prior that follows none or not this one,
    or for numbers that make no path or no prior."""
    node = plain(node)
    check_numbers(node)
    family = hydra.utils.get_class(node["_target_"])
    if "path" in node and "path" not in inspect.signature(family).parameters:
        raise ValueError(
            f"path= is for prior=flow and prior=diffusion, got it with {family.__name__}; leave "
            "path out, or type prior=flow"
        )
    if node.get("path"):
        family.check_path(make(node["path"]))


# names of settings, what they are, and whether a number is that
RANGES: list[tuple[set[str], str, Callable[[float], bool]]] = [
    (
        {"z_channels", "patch", "width", "depth", "heads", "kv_heads", "multiple_of"},
        "of at least 1",
        lambda x: x >= 1,
    ),
    ({"label_smoothing", "phi_strength", "revive_below"}, "from 0 to 1", lambda x: 0 <= x <= 1),
    (
        {"dropout", "token_dropout", "attention_dropout", "ffn_dropout", "residual_dropout"},
        "from 0 to below 1",
        lambda x: 0 <= x < 1,
    ),
    (
        {"rope_base", "norm_eps", "ffn_multiplier", "ffn_ratio", "mlp_ratio"},
        "above 0",
        lambda x: 0 < x < math.inf,
    ),
    (
        {"commitment_weight", "codebook_weight", "kl_weight", "pixel_weight", "perceptual_weight"},
        "of at least 0",
        lambda x: 0 <= x < math.inf,
    ),
]
# types of plain settings, and how they are called in a sentence
PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "null",
}


def check_numbers(node: dict[str, Any], path: str = "prior") -> None:
    """Raise ValueError for a value of another type than the argument of the node's `_target_` has
    (null or a list for a number, nan), and for sizes below 1, shares outside of [0, 1] and the
    like: whatever the family, these words mean the same."""
    plain_types = _plain_types(node)
    for name, value in node.items():
        types = plain_types.get(name)
        if types and not _is_of(value, types):
            wanted = " or ".join(PLAIN[one] for one in types)
            raise ValueError(
                f"wanted {path}.{name} as {wanted}, got {'null' if value is None else value}; "
                "leave it out for its default"
            )
        if isinstance(value, dict):
            check_numbers(value, f"{path}.{name}")
        if not isinstance(value, int | float):
            continue
        for names, wanted, is_right in RANGES:
            if name in names and not is_right(value):
                raise ValueError(
                    f"wanted {path}.{name} {wanted}, got {value}; leave it out for its default"
                )
        if name == "label_dropout" and not 0 <= value < 1:
            raise ValueError(
                f"wanted {path}.label_dropout (how often training withholds the condition) from 0 "
                f"to below 1, got {value}; type {path}.label_dropout=0.1"
            )


def _plain_types(node: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The types by name of the arguments of a node's `_target_` that take plain values alone."""
    if "_target_" not in node:
        return {}
    target = hydra.utils.get_object(node["_target_"])
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    types = {
        name: get_args(hint) if isinstance(hint, UnionType) else (hint,)
        for name, hint in hints.items()
    }
    return {name: parts for name, parts in types.items() if set(parts) <= PLAIN.keys()}


def _is_of(value: Any, types: tuple[Any, ...]) -> bool:
    if float in types and type(value) in (int, float):
        return math.isfinite(value)
    return type(value) in types


def _check_arguments(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _check_arguments(part)
    if not isinstance(node, dict):
        return
    for part in node.values():
        _check_arguments(part)
    if "_target_" not in node:
        return
    parameters = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if not key.startswith("_") and key not in parameters:
            raise ValueError(
                f"{node['_target_']} has no setting {key!r}{nearest(key, list(parameters))}"
            )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for part in node:
            yield from _targets(part)
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for part in node.values():
            yield from _targets(part)


def data(settings: dict[str, Any]) -> Any:
    """The data module of the resolved config; batch and seed come from `train`."""
    train = settings["train"]
    shared = {"global_batch": train["global_batch"], "accumulate": train["accumulate"]}
    check_numbers(settings["data"], "data")
    try:
        return make(settings["data"], **shared, seed=train["seed"])
    except TypeError as error:  # the sources hand on what they do not know themselves
        if "unexpected keyword argument" not in str(error):
            raise
        word = str(error).split("'")[1]
        known = [f"data.{key}" for key in settings["data"] if key != word]
        raise ValueError(
            f"there is no setting 'data.{word}'{nearest(f'data.{word}', known)}"
        ) from error


def check_logger(settings: dict[str, Any]) -> None:
    """Raise ValueError for a logger whose package is not installed."""
    node = settings["logger"]
    if not node:
        return
    try:
        importlib.import_module(node["_target_"].rpartition(".")[0])
    except ImportError as error:
        raise ValueError(
            f"the chosen logger cannot be imported ({error}); type logger=files, which needs "
            "nothing more, or pip install wandb"
        ) from error


def boards(
    settings: dict[str, Any], derived: dict[str, Any], folder: Path, facts: dict[str, Any]
) -> list[Any]:
    """The chosen logger, if any. `facts` of a resumed run hold the W&B run id; a new id is stored
    there."""
    check_logger(settings)
    if not settings["logger"]:
        return []
    board = make(
        settings["logger"],
        folder=str(folder),
        id=facts.get("wandb_id"),
        config={**settings, "derived": derived},
    )
    facts["wandb_id"] = board.version
    return [board]


def sizes(**models: nn.Module) -> dict[str, str]:
    """Trainable parameters by name of the model, for the recipe table."""
    counts = {
        name: sum(p.numel() for p in m.parameters() if p.requires_grad)
        for name, m in models.items()
    }
    return {f"parameters {name}": f"{count:,}" for name, count in counts.items()}


def precision(settings: dict[str, Any]) -> str:
    """Lightning's name of the precision: `auto` is bf16 autocast where the hardware computes in it,
    else float32. Raises ValueError for others: float16 would need its losses scaled, and weights
    kept in bf16 lose the small steps of the average."""
    wanted = settings["trainer"]["precision"]
    if wanted not in PRECISIONS:
        raise ValueError(
            f"wanted trainer.precision as {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got "
            f"{wanted}; type trainer.precision=auto"
        )
    if wanted != "auto":
        return str(wanted)
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if HAS_BF16 else "32-true"


def place(settings: dict[str, Any]) -> dict[str, str]:
    """Device and precision of this machine that a run with these settings would train in."""
    wanted = "cpu" if settings["trainer"]["accelerator"] == "cpu" else "auto"
    return {"device": device(wanted), "precision": precision(settings)}


def device(wanted: str) -> str:
    """`auto` is CUDA, else MPS, else the CPU. Raises ValueError for a device that is not there."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(wanted.split(":")[0], False):
        have = ", ".join(name for name, works in there.items() if works)
        raise ValueError(f"wanted device={wanted}, but this machine has {have}")
    return wanted
