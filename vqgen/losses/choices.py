"""Pick a part by the name a user typed; a wrong name is answered with the nearest right one."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Part = TypeVar("Part")


def choose(table: Mapping[str, Part], name: str, setting: str) -> Part:
    """table[name]; `setting` is what the user types, for example "loss.pixel".

    Raises ValueError that names the setting, what came, the nearest name and all names."""
    if name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1, cutoff=0.0)[0]
    known = ", ".join(table)
    raise ValueError(f"{setting} has to be one of {known}; got {name!r}. Try {setting}={near}")
