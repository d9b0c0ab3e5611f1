"""A peer's own settings as a flat dict: JSON or YAML, with the nesting its files have."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# where the constructor arguments lie in the peers' files (taming: model.params.ddconfig)
NESTS = ("model", "config", "params", "args", "model_args", "ddconfig")


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """The constructor arguments in these files. Raises ValueError for what is no dictionary."""
    flat: dict[str, Any] = {}
    for path in paths:
        try:
            text = path.read_text()
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"wanted --config as a JSON or YAML file, got {path}: {error}"
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"wanted a dictionary of settings in {path}, got {content!r:.60}")
        flat |= flattened(content)
    return flat


def flattened(content: dict[str, Any]) -> dict[str, Any]:
    """Known nests opened, everything else as it is."""
    flat = {key: value for key, value in content.items() if key not in NESTS}
    for key in NESTS:
        if isinstance(content.get(key), dict):
            flat |= flattened(content[key])
    return flat
