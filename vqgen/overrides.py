"""What was typed behind an entry point's name: read, checked, and put behind what a resumed run was
started with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vqgen import finetune, runs
from vqgen.words import nearest

CONF = Path(__file__).resolve().parents[1] / "conf"


def check(folder: str, name: str, words: list[str]) -> list[str]:
    """The words to start with: those typed, behind the choices (tokenizer=var) of a run that they
    resume, or the one that a typed recipe is named after (experiment=emoji_var).

    Raises a ValueError that names the nearest valid word for any misspelt group, choice, key or
    type of value."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ValueError(f"wanted settings like train.lr=1e-4, got {word!r} without a value")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF / folder)):
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("")}
        words = [*_implied("tokenizer" if folder == "stage1" else "prior", words, groups), *words]
        overrides = [_parsed(word) for word in words]
        choices = [o for o in overrides if o.key_or_group in groups]
        for override in choices:
            _check_choice(override, groups[override.key_or_group])
        typed = {o.key_or_group: o.value() for o in overrides if not o.is_delete()}
        resumed = _resumed(folder, name, choices, typed)
        stored = runs.stored_overrides(resumed) if resumed else []
        _check_stored([word for word in stored if word not in words], resumed)
        if typed.get("init") or any(key_of(word) == "init" for word in stored):
            finetune.refuse_typed(words, "tokenizer" if folder == "stage1" else "prior")
        earlier = [word for word in stored if key_of(word) in groups and key_of(word) not in typed]
        chosen = [*earlier, *(o.input_line or "" for o in choices)]
        known = dict(_leaves(hydra.compose(name, chosen)))
        for override in overrides:
            key = override.key_or_group
            if override.is_delete() and _group(key) not in groups:
                raise ValueError(
                    f"{key} cannot be taken away; leave ~{key} out for its default, or type "
                    f"{key}=VALUE"
                )
            if override not in choices and not key.startswith("hydra") and not override.is_add():
                if key not in _paths(known):
                    _check_other_choices(name, key, chosen, groups)
                _check_key(override, known, groups)
        composed = hydra.compose(name, [*earlier, *words])
        _check_sections(CONF / folder / f"{name}.yaml", composed, set(groups))
    return [*earlier, *words]


def _implied(group: str, words: list[str], groups: Mapping[str, list[str]]) -> list[str]:
    """The choice of this group that a typed recipe <data>_<choice> is for, if none is typed."""
    typed = {key_of(word): word.partition("=")[2] for word in words}
    kind = typed.get("experiment", "").partition("_")[2]
    free = group not in typed and "init" not in typed  # the network of init= is what it is
    return [f"{group}={kind}"] if free and kind in groups.get(group, []) else []


def _resumed(
    folder: str, name: str, choices: list[Override], typed: Mapping[str, Any]
) -> Path | None:
    """The run that training would resume. ValueError for one of the other stage or without what
    it was started with."""
    resume = typed.get("train.resume")
    if resume is None or folder not in runs.EXPORT:
        return None
    if resume != "auto":
        runs.check_resumed(Path(str(resume)), folder)
        return Path(str(resume))
    words = [o.input_line or "" for o in choices]
    base = hydra.compose(name, words, return_hydra_config=True)
    made = base.hydra.runtime.choices
    usual = base.run.name or f"{made['tokenizer' if folder == 'stage1' else 'prior']}-{made.data}"
    root = Path(str(typed.get("run.root") or base.run.root))
    found = runs.newest_begun(root, folder, str(typed.get("run.name") or usual))
    if found:
        runs.check_resumed(found, folder)
    return found


def _check_other_choices(
    name: str, key: str, chosen: list[str], groups: Mapping[str, list[str]]
) -> None:
    """Raise a ValueError that names the choice of its group that has this key, or one that ends
    like it, if the chosen one has neither."""
    group, end = _group(key), key.rsplit(".", 1)[-1]
    words = [word for word in chosen if key_of(word) != group]

    def found_in(choice: list[str]) -> list[str]:
        paths = [p for p in _paths(dict(_leaves(hydra.compose(name, choice)))) if "." in p]
        alike = [p for p in paths if _group(p) == group and p.rsplit(".", 1)[-1] == end]
        return [p for p in alike if p == key] or alike

    if "." not in key or group not in groups or found_in(chosen):
        return
    for option in groups[group]:
        try:
            found = found_in([*words, f"{group}={option}"])
        except HydraException:  # does not go with the other choices
            continue
        if found:
            raise ValueError(
                f"there is no setting {key!r} here; {found[0]} belongs to {group}={option}: type "
                f"{group}={option} with it, or leave it out"
            )


def _paths(known: Mapping[str, Any]) -> set[str]:
    """The dotted names of these settings and of the nodes that they are in."""
    inner = (path.split(".")[:n] for path in known for n in range(1, path.count(".") + 1))
    return {*known, *(".".join(parts) for parts in inner)}


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
    if key not in (paths := _paths(known)):
        group = key.split(".")[0]
        for stage in ("stage1", "stage2"):
            if group not in groups and (CONF / stage / group).is_dir():
                raise ValueError(
                    f"there is no setting {key!r} here; {group} is a setting of train_{stage}.py"
                )
        if group == "trainer":
            own = nearest(key, [path for path in known if path.startswith("trainer.")])
            raise ValueError(
                f"there is no setting {key!r}{own}; to hand lightning.Trainer one of its other "
                f"arguments type +{override.input_line}"
            )
        hint = nearest(key, [*known, *groups, *paths])
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


def composed(folder: str, name: str, words: list[str]) -> DictConfig:
    """The config that another entry point would have under these words, checked as its own start
    would; also inside an entry point.

    Raises ValueError for words that it would refuse."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        words = check(folder, name, words)
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF / folder)):
            return hydra.compose(name, words)
    finally:
        GlobalHydra.instance().hydra = outer


def merged(stored: list[str], typed: list[str], group: str | None = None) -> list[str]:
    """The overrides of an earlier run, then those typed now, which win; where another choice of a
    group was typed (tokenizer=var), the stored ones of that group are left out.

    With `group`, only the stored ones of that group (data, say), and none if it was typed at all.
    Raises ValueError for a stored one that could run foreign code: run folders are passed around.
    """
    if group is not None:
        stored = [word for word in stored if _group(word) == group]
        if any(_group(word) == group for word in typed):
            stored = []
    _check_stored([word for word in stored if word not in typed])
    before = {key_of(word): _value(word) for word in stored}
    now = {key_of(word): _value(word) for word in typed}
    replaced = {
        key
        for key, value in now.items()
        if "." not in key and value != before.get(key, _default_choice(key))
    }
    kept = (word for word in stored if key_of(word) not in now and _group(word) not in replaced)
    return [*kept, *typed]


def _check_stored(stored: list[str], run: Path | None = None) -> None:
    """Raise ValueError for words in a run's overrides.txt that are cut short, or that could run
    foreign code."""
    file = run / "overrides.txt" if run else "the run folder's overrides.txt"
    for word in stored:
        if _reaches_outside(word):
            raise ValueError(
                f"{file} holds {word!r}, which could run any program; if you trust it, type it "
                "yourself"
            )
        try:
            OverridesParser.create().parse_override(word)
        except HydraException:
            raise ValueError(
                f"{file} is damaged: it holds {word!r}, which is no setting; write there what was "
                "typed, like train.lr=1e-4, or remove the line"
            ) from None


def _default_choice(group: str) -> str | None:
    """What the entry points of training take of a group where nothing is typed."""
    for path in sorted(CONF.glob("stage?/train_*.yaml")):
        for default in yaml.safe_load(path.read_text())["defaults"]:
            if isinstance(default, dict) and group in default:
                return default[group]
    return None


def key_of(word: str) -> str:
    """tokenizer.bottleneck.scales=[1,4] -> tokenizer.bottleneck.scales."""
    return word.lstrip("+~").split("=")[0]


def _group(word: str) -> str:
    return key_of(word).split(".")[0]


def _value(word: str) -> str:
    return word.partition("=")[2].strip("'\"")


def _reaches_outside(word: str) -> bool:
    """Whether an override names something to call, a setting of Hydra's, or a yaml that lies
    outside of conf/."""
    key, value = key_of(word), _value(word)
    leaves = "." not in key and ".." in value and not Path(value).is_dir()
    return "_target_" in word or key.startswith("hydra") or leaves
