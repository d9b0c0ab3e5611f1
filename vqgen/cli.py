"""The command line: Hydra entry points whose user errors are one sentence, checked before any work
is done.

With build.py the only file that knows Hydra."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqgen.words import nearest

CONF = Path(__file__).resolve().parents[1] / "conf"
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


class SharedGroups(SearchPathPlugin):
    """Lets every entry point see the groups that all of them share: conf/data, conf/trainer,
    conf/logger, conf/debug."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add conf/ behind the entry point's own folder."""
        search_path.append("vqgen", f"file://{CONF}")


Plugins.instance().register(SharedGroups)


def entry(
    folder: str, name: str
) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Make a Hydra entry point of conf/<folder>/<name>.yaml whose user errors are one sentence,
    exit code 2.

    The decorated function may return an exit code. HYDRA_FULL_ERROR=1 shows tracebacks."""

    def decorate(function: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            try:
                code = function(config)
            except USER_ERRORS as error:
                refuse(error)
            if code:
                sys.exit(code)

        started = hydra.main(version_base="1.3", config_path=str(CONF / folder), config_name=name)(
            guarded
        )

        @functools.wraps(function)
        def start() -> None:
            if not any(word.startswith("-") for word in sys.argv[1:]):  # flags are Hydra's to read
                try:
                    check_overrides(folder, name, sys.argv[1:])
                except USER_ERRORS as error:
                    refuse(error)
            started()

        return start

    return decorate


def refuse(error: BaseException) -> None:
    """Print what was wrong as one sentence and leave with code 2."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"vqgen: {root_cause(error)}", file=sys.stderr)
    print("(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
    sys.exit(2)


def root_cause(error: BaseException) -> BaseException:
    """The error that a `_target_` raised, out of Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


# ---- overrides


def check_overrides(folder: str, name: str, words: list[str]) -> None:
    """Raise a ValueError that names the nearest valid word for any misspelt group, choice, key or
    type of value."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ValueError(f"wanted settings like train.lr=1e-4, got {word!r} without a value")
    overrides = [_parsed(word) for word in words]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF / folder)):
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("")}
        choices = [o for o in overrides if o.key_or_group in groups]
        for override in choices:
            _check_choice(override, groups[override.key_or_group])
        base = hydra.compose(name, [o.input_line or "" for o in choices])
        known = dict(_leaves(base))
        for override in overrides:
            key = override.key_or_group
            if override not in choices and not key.startswith("hydra") and not override.is_add():
                _check_key(override, known, groups)
        composed = hydra.compose(name, words)
        _check_sections(CONF / folder / f"{name}.yaml", composed, set(groups))


def _check_sections(primary: Path, composed: DictConfig, groups: set[str]) -> None:
    """Raise a ValueError for a key that an experiment file or +key=value adds to what the entry
    point reads: the sections of its own file are complete. (Keys of a `_target_` are checked
    where it is called.)"""
    own = DictConfig(OmegaConf.load(primary))
    allowed = [*(str(key) for key in own), *groups]
    for section, keys in composed.items():
        if section == "preview":  # also takes the knobs of whatever prior, which checks them
            continue
        if section not in allowed:
            raise ValueError(f"there is no setting {section!r}{nearest(str(section), allowed)}")
        known = own.get(section)
        if not isinstance(known, DictConfig) or not isinstance(keys, DictConfig):
            continue
        for key in keys:
            if key not in known:
                paths = [f"{section}.{word}" for word in known]
                path = f"{section}.{key}"
                raise ValueError(f"there is no setting {path!r}{nearest(path, paths)}")


def _parsed(word: str) -> Override:
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
        plain = not override.is_sweep_override()
    except HydraException:
        plain = False
    if not plain:
        key, _, value = word.partition("=")
        quoted = value.replace('"', "'")
        raise ValueError(
            f"{word} cannot be read as one value, since commas, quotes and brackets mean "
            f"something there; for a text type quotes inside quotes: '{key}=\"{quoted}\"', for a "
            f"list {key}=[A,B]"
        )
    return override


def _check_choice(override: Override, options: list[str]) -> None:
    value, group, listed = override.value(), override.key_or_group, ", ".join(options)
    if value is None and not override.is_delete():
        raise ValueError(
            f"{group}=null chooses nothing; leave it out for its default, type '~{group}' to have "
            f"none where that makes sense, or choose of {listed}"
        )
    if value is not None and not isinstance(value, list) and value not in options:
        hint = nearest(str(value), options)
        raise ValueError(f"{group}={value} is not known{hint}; there are {listed}")


def _check_key(override: Override, known: dict[str, Any], groups: Mapping[str, Any]) -> None:
    key = override.key_or_group
    inner = {".".join(path.split(".")[:n]) for path in known for n in range(1, path.count(".") + 1)}
    if key not in known and key not in inner:
        group = key.split(".")[0]
        for stage in ("stage1", "stage2"):
            if group not in groups and (CONF / stage / group).is_dir():
                raise ValueError(
                    f"there is no setting {key!r} here; {group} is a setting of train_{stage}.py"
                )
        hint = nearest(key, [*known, *groups, *inner])
        if DictConfig(OmegaConf.load(CONF / "sample.yaml")).get(key) == "default":
            instead = f"{override.input_line} to sample.py, once the model is trained"
            if "protocol" in groups:
                instead = f"'protocol.knobs={{{key}:{override.get_value_element_as_str()}}}'"
            raise ValueError(
                f"there is no setting {key!r} here, it is a knob of sampling; type {instead}{hint}"
            )
        raise ValueError(f"there is no setting {key!r}{hint}")
    if override.is_delete():
        return
    default, value = known.get(key), override.value()
    is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
    if (
        is_number
        and value is not None
        and (isinstance(value, bool) or not isinstance(value, (int, float, list)))
    ):
        raise ValueError(
            f"{key} wants a number like {default}, got {override.get_value_element_as_str()}"
        )
    if isinstance(default, int) and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{key} wants a whole number like {default}, got {value}")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{key} wants true or false, got {override.get_value_element_as_str()}")


def _leaves(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in config:
        path = f"{prefix}{key}"
        missing = OmegaConf.is_missing(config, key)
        value = None if missing or OmegaConf.is_interpolation(config, str(key)) else config[key]
        if isinstance(value, DictConfig) and len(value):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def compose(name: str, words: list[str]) -> DictConfig:
    """The config again, inside an entry point, under other overrides than were typed."""
    return hydra.compose(name, words)


def merged(stored: list[str], group: str | None = None) -> list[str]:
    """The overrides of an earlier run, then those typed now, which win.

    With `group`, only the stored ones of that group (data, say), and none if it was typed at all.
    Raises ValueError for a stored one that could run foreign code: run folders are passed around.
    """
    typed = typed_overrides()
    if group is not None:
        stored = [word for word in stored if _key(word).split(".")[0] == group]
        if any(_key(word).split(".")[0] == group for word in typed):
            stored = []
    for word in stored:
        if word not in typed and _reaches_outside(word):
            raise ValueError(
                f"the run folder's overrides.txt holds {word!r}, which could run any program; if "
                "you trust it, type it yourself"
            )
    keys = {_key(word) for word in typed}
    return [*(word for word in stored if _key(word) not in keys), *typed]


def typed_overrides() -> list[str]:
    """The overrides of this start, as typed."""
    return list(HydraConfig.get().overrides.task)


def typed_keys() -> set[str]:
    """The names of the settings that were typed."""
    return {_key(word) for word in typed_overrides()}


def _key(word: str) -> str:
    return word.lstrip("+~").split("=")[0]


def _reaches_outside(word: str) -> bool:
    """Whether an override names something to call, a setting of Hydra's, or a yaml that lies
    outside of conf/."""
    key, value = _key(word), word.partition("=")[2]
    leaves = "." not in key and ".." in value and not Path(value.strip("'\"")).is_dir()
    return "_target_" in word or key.startswith("hydra") or leaves


def choice(group: str) -> str:
    """The option in use of a group (`tokenizer` -> "vqgan"), for names and tables."""
    return str(HydraConfig.get().runtime.choices.get(group))
