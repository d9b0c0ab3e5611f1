"""The settings that were typed beside what a file's tensors tell: both must say the same, and what
neither says is named."""

import math
from pathlib import Path
from typing import Any

from vqgen.contracts import TokenSpec
from vqgen.importing import autoencoders, settings
from vqgen.importing.convert import Match
from vqgen.importing.export import canonical
from vqgen.importing.family import Hints

# compared where they are read, since other settings belong to their meaning; --size comes before
# resolution
ELSEWHERE = {"attn_resolutions", "multiple_of", "ffn_dim_multiplier", "quant_resi", "resolution"}
ELSEWHERE |= {"share_quant_resi"}


def check(source: Path, match: Match, hints: Hints) -> None:
    """Raise a ValueError with both values for each setting in --config that this file contradicts:
    it belongs to another model."""
    found = settings_of(match)
    found["Cvae"] = found.get("z_channels")
    given = dict(hints.config)
    if "n_kv_head" in given and given["n_kv_head"] is None:  # the peer's word for: all of them
        given["n_kv_head"] = given.get("n_head", found.get("n_head"))
    skipped = ELSEWHERE | set(match.description.untold)
    wrong = [
        f"{name} is {value} there, but the file has {found[name]}"
        for name, value in given.items()
        if found.get(name) is not None and name not in skipped and not _same(value, found[name])
    ]
    if wrong:
        raise ValueError(
            f"--config does not belong to {source}: {'; '.join(wrong)}; give the settings of this "
            "file, or leave these out"
        )


def assumed(match: Match, hints: Hints) -> str:
    """The settings that neither the file nor --config tells, with the published values that were
    taken; "" if there are none."""
    found = settings_of(match)
    names = [name for name in match.description.untold if name not in hints.config]
    return ", ".join(f"{name} {found[name]}" for name in names)


def settings_of(match: Match) -> dict[str, Any]:
    """The peer's settings, flat, of the model that was described."""
    description, spec = match.description, match.module.spec
    assert isinstance(spec, TokenSpec)
    node = canonical(description.architecture, spec)
    found = settings.flattened(match.family.settings(node, spec))
    if "encoder" in node:
        found |= autoencoders.numbers(node)
    if description.num_classes:
        found["num_classes"] = description.num_classes
    return found


def _same(given: Any, found: Any) -> bool:
    if isinstance(given, float) or isinstance(found, float):
        return math.isclose(given, found, rel_tol=1e-3)
    return given == found
