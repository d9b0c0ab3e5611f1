"""A peer's own settings as a flat dict: JSON or YAML, with the nesting its files have."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from vqgen.importing.arguments import ARGUMENTS, OF_FAMILY

# where the constructor arguments lie in the peers' files (taming: model.params.ddconfig)
NESTS = ("model", "config", "params", "args", "model_args", "ddconfig")


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """The constructor arguments in these files; what the peers keep beside them is left out.

    Raises ValueError for a file that cannot be read, a value of another kind than the peer's, a
    misspelt name, or a file without any."""
    flat: dict[str, Any] = {}
    for path in paths:
        content = _read(path)
        if not isinstance(content, dict):
            raise ValueError(
                f'wanted a dictionary of settings in {path}, like {{"n_head": 12}}, got '
                f"{content!r:.60}"
            )
        flat |= _checked(flattened(content), path)
    return flat


def flattened(content: dict[str, Any]) -> dict[str, Any]:
    """Known nests opened, everything else as it is."""
    flat = {key: value for key, value in content.items() if key not in NESTS}
    for key in NESTS:
        if isinstance(content.get(key), dict):
            flat |= flattened(content[key])
    return flat


def unused(config: Mapping[str, Any], families: Sequence[str]) -> list[str]:
    """A line with the settings that no file of these families has; none if there are none."""
    names = [name for name in config if not any(name in OF_FAMILY[one] for one in families)]
    if not names:
        return []
    return [f"  not used of --config, since no {' or '.join(families)} has it: {', '.join(names)}"]


def _read(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"wanted --config as a JSON or YAML file, but {path} {what}")
    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"wanted --config as a JSON or YAML file, but {path} is no text"
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{path} cannot be read as {'JSON' if path.suffix == '.json' else 'YAML'}: {said}; "
            "correct it there"
        ) from error


def _checked(given: dict[str, Any], path: Path) -> dict[str, Any]:
    # short names are like too many others (beta1 of the optimizer is no misspelt beta)
    distinct = [name for name in ARGUMENTS if len(name) > 5]
    for name, value in given.items():
        kind = ARGUMENTS.get(name)
        if kind is None:
            close = get_close_matches(str(name), distinct, n=1, cutoff=0.8)
            if close:
                raise ValueError(
                    f"{path} has {name!r}, which no published model takes; did you mean {close[0]}?"
                )
        elif not kind.fits(value):
            raise ValueError(
                f"wanted {name} in {path} as {kind.wish}, got {value!r:.60}; write for instance "
                f'"{name}": {kind.example}{_unquoted(value)}'
            )
    known = {name: value for name, value in given.items() if name in ARGUMENTS}
    if not known:
        listed = ", ".join(map(str, list(given)[:8])) or "nothing"
        raise ValueError(
            f"wanted settings of a published model in {path}, like n_head, block_size or "
            f"patch_nums, got {listed}; give the file that the model was made with"
        )
    return known


def _unquoted(value: Any) -> str:
    """A hint where a number came as a text; YAML reads 1e-5 so."""
    with suppress(ValueError):
        if isinstance(value, str):
            return f" (a number without quotes, and in YAML with a dot, as {float(value):.1e})"
    return ""
