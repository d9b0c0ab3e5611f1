"""The trilemma, measured: cards of several runs as one table, with the lecture's ticks beside."""

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vqgen.evaluation.card import table

# What the lecture's table promises, by the file of the family; "?" is its own question mark, ""
# where it has no row. Its flows are normalizing flows: flow matching is set beside them.
TICKS = {
    "diffusion": {"speed": "✗", "quality": "✓", "coverage": "?", "likelihood": "✗"},
    "flow": {"speed": "✓", "quality": "✗", "coverage": "?", "likelihood": "✓"},
}
# Its later rule of thumb, in words
RULES = {
    "llamagen": "likelihood + coverage (AR)",
    "absorbing": "discrete + coverage",
    "diffusion": "quality + coverage",
    "flow": "quality + faster",
}
# corner of the trilemma -> (the number that ranks it, whether larger is better)
CORNERS = {
    "quality": ("FD", False),
    "coverage": ("recall", True),
    "speed": ("seconds per image", False),
    "likelihood": ("bits per dimension", False),
}
FULL_BOUND = ("full bound, bits per dimension", False)  # the ruler where tokenizers differ
MEASURES = ("FD", "FID", "KID", "precision", "recall", "density", "coverage")
COLUMNS = (
    *("FD", "KID", "precision", "recall", "density", "coverage"),
    *("seconds per image", "function evaluations per image"),
    *("bits per dimension", "full bound, bits per dimension"),
    *("training minutes", "parameters", "peak memory"),
)


@dataclass(frozen=True)
class Row:
    """One run at one setting: its family, and its numbers by plain name."""

    run: str  # what people call it
    path: str
    family: str
    tokenizer: str  # its fingerprint
    steps: int | None  # of the sampler, where it was set
    numbers: dict[str, float]
    likelihood: str  # exact, bound, estimate
    n: int  # samples
    ceiling: bool  # a tokenizer's reconstructions, what no prior over it can beat
    titles: dict[str, str] = field(default_factory=dict)  # plain name -> FD-network@500, or a unit
    recipe: str = ""  # the protocol and its guidance
    validation: int | None = None  # images of the likelihood

    @property
    def name(self) -> str:
        """The run, and the steps where they were set."""
        return self.run + (f", {self.steps} steps" if self.steps else "")


def row_of(card: dict[str, Any], minutes: float | None) -> Row:
    """A card (as read from card.json) as a row."""
    model, protocol = card["model"], card["protocol"]
    numbers, titles, validation = {}, {"peak memory": "peak memory, GiB"}, None
    for name, number in {**card["numbers"], **card["costs"]}.items():
        numbers.setdefault(plain := plain_name(name), number["value"])
        if plain in MEASURES:
            titles.setdefault(plain, name.removeprefix("ceiling "))
        if plain == "bits per dimension":
            validation = number.get("n")
    ceiling = "family" not in model
    parameters = model.get("parameters prior") or model.get("parameters tokenizer")
    if parameters is not None:
        numbers["parameters"] = float(parameters)
    if minutes is not None:
        numbers["training minutes"] = minutes
    steps = protocol["knobs"].get("steps")
    family = "tokenizer" if ceiling else model["family"]
    path, tokenizer = model["path"], str(model.get("tokenizer_fingerprint"))
    run = Path(path).name.split("_", 2)[-1]
    run = run if run.startswith(family) else f"{family} ({run})"
    kind = model.get("likelihood", "uniform prior")
    recipe = f"{protocol.get('name')}, guidance {protocol.get('guidance')}"
    return Row(
        *(run, path, family, tokenizer, steps, numbers, kind, protocol["samples"], ceiling),
        *(titles, recipe, validation),
    )


def with_likelihoods(rows: list[Row]) -> list[Row]:
    """The same rows; where a run was measured at several step counts, all have the code lengths
    that one of them counted: they do not depend on the sampler."""
    known: dict[str, dict[str, float]] = {}
    for row in rows:
        bits = {name: value for name, value in row.numbers.items() if "bits per" in name}
        known[row.path] = {**bits, **known.get(row.path, {})}
    return [replace(row, numbers={**known[row.path], **row.numbers}) for row in rows]


def told_apart(rows: list[Row]) -> list[Row]:
    """The same rows; runs that share a name get their folder behind it."""
    folders = {run: {row.path for row in rows if row.run == run} for run in {r.run for r in rows}}
    return [
        replace(row, run=f"{row.run}, {row.path}") if len(folders[row.run]) > 1 else row
        for row in rows
    ]


def plain_name(name: str) -> str:
    """ceiling FD-efficientnet_lite0@2000 -> FD; bits per token (exact) -> bits per token. What is
    no column of the table keeps its network and count."""
    name = name.removeprefix("ceiling ").split(" (")[0]
    short = re.split("[-@]", name)[0]
    return name if short not in MEASURES else "FD" if short == "FID" else short


def title(rows: list[Row], name: str) -> str:
    """A plain name as the cards have it: FD -> FD-efficientnet_lite0@500, or FID.

    Raises ValueError if the rows were measured by different networks or at different counts."""
    found = sorted({row.titles.get(name, name) for row in rows if name in row.numbers})
    if len(found) > 1:
        raise ValueError(f"wanted one kind of {name} to compare runs by, got {', '.join(found)}")
    return found[0] if found else name


def corners(rows: list[Row]) -> dict[str, tuple[str, bool]]:
    """CORNERS, with the full bound as the ruler of likelihood if the priors' tokenizers differ:
    bits of latents compare over the same latents only."""
    tokenizers = {row.tokenizer for row in rows if not row.ceiling}
    return {**CORNERS, "likelihood": FULL_BOUND} if len(tokenizers) > 1 else CORNERS


def ranks(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Row name -> corner -> rank among the priors, 1 is best; equal numbers share a rank and take
    one place (a prior's likelihood is the same in all its rows)."""
    found: dict[str, dict[str, int]] = {row.name: {} for row in rows}
    for corner, (name, larger) in corners(rows).items():
        having = [row for row in rows if name in row.numbers and not row.ceiling]
        for row in having:
            value = row.numbers[name]
            others = {other.numbers[name] for other in having}
            better = sum(other > value if larger else other < value for other in others)
            found[row.name][corner] = 1 + better
    return found


def markdown(rows: list[Row]) -> str:
    """The measured table, then the lecture's ticks beside the measured ranks."""
    columns = [c for c in COLUMNS if any(c in row.numbers for row in rows)]
    lines = [f"# Comparison of {len({row.path for row in rows})} runs", ""]
    heads = [title(rows, c) if c in ("FD", "peak memory") else c for c in columns]
    lines += table([_cells(row, columns) for row in rows], ("run", *heads))
    recipes = "; ".join(dict.fromkeys(row.recipe for row in rows))
    counts = sorted({row.n for row in rows})
    validation = sorted({row.validation for row in rows if row.validation is not None})
    lines += [
        "",
        f"Protocol: {recipes}. Samples: {', '.join(f'{n:,}' for n in counts)}. Likelihoods: of "
        f"{', '.join(f'{n:,}' for n in validation) or 'no'} validation images. KID, precision, "
        "recall, density and coverage are of the network and count that the distance before them "
        "names. A distance at few samples is larger than "
        "at many: compare within this table only. Tokenizer rows are reconstructions of training "
        "images, the ceiling of every prior over them. Bits per dimension are of the latents: "
        "they compare priors over the same tokenizer; where tokenizers differ, the full bound "
        "ranks (its two terms are in the cards).",
        "",
        "## The trilemma: the lecture's tick, then the rank measured here",
        "",
    ]
    ranked = ranks(rows)
    priors = [row for row in rows if not row.ceiling]
    body = []
    for row in priors:
        ticks = TICKS.get(row.family, {})
        cells = [f"{ticks.get(c, '')} {_rank(ranked[row.name].get(c))}".strip() for c in CORNERS]
        body.append((row.name, *cells, row.likelihood, RULES.get(row.family, "")))
    lines += table(body, ("prior", *CORNERS, "the number is", "rule of thumb"))
    ruler = ", ".join(
        f"{corner} by {title(rows, name) if name == 'FD' else name}"
        for corner, (name, _) in corners(rows).items()
    )
    legend = "In the lecture's table: ✓ strong, ✗ weak, ? open; without a tick: not in it."
    ranking = f"1 is best of {len(priors)}, equal numbers share a rank: {ruler}."
    return "\n".join([*lines, "", f"{legend} {ranking}", ""])


def as_csv(rows: list[Row]) -> str:
    """Every number of every row, one line per row."""
    titled = [{row.titles.get(k, k): value for k, value in row.numbers.items()} for row in rows]
    names = sorted({name for numbers in titled for name in numbers})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "family", "steps", "likelihood", "samples", *names])
    for row, known in zip(rows, titled, strict=True):
        numbers = [known.get(name, "") for name in names]
        writer.writerow([row.name, row.family, row.steps or "", row.likelihood, row.n, *numbers])
    return text.getvalue()


def card_folder(folder: Path, recipe: dict[str, Any]) -> Path:
    """Where the card of a recipe (Protocol.as_dict) goes: the folder of the usual name, or, where
    a card of another recipe is there already, one with a hash of this one behind that name."""
    path = folder / "card.json"
    if path.is_file() and read_card(path)["protocol"] != json.loads(json.dumps(recipe)):
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return folder.with_name(f"{folder.name}_{digest[:8]}")
    return folder


def read_card(path: Path) -> dict[str, Any]:
    """card.json of an evaluation. Raises ValueError if it is not one."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # unreadable, no text, no JSON
        raise ValueError(f"{path} is no card of an evaluation ({error}); delete it") from error
    found = card if isinstance(card, dict) else {}
    parts = ("model", "numbers", "costs", "protocol")
    missing = [part for part in parts if not isinstance(found.get(part), dict)]
    if not missing:
        if "path" not in card["model"]:
            missing.append("model path")
        numbers = {**card["numbers"], **card["costs"]}
        missing += [name for name, number in numbers.items() if not _has_value(number)]
    if missing:
        raise ValueError(
            f"{path} is no card of an evaluation: no {', '.join(missing)}; delete it, and it is "
            "made anew"
        )
    return card


def _has_value(number: Any) -> bool:
    return isinstance(number, dict) and isinstance(number.get("value"), float | int)


def _cells(row: Row, columns: list[str]) -> tuple[str, ...]:
    def shown(name: str) -> str:
        value = row.numbers.get(name)
        if value is None:
            return ""
        text = f"{value:,.0f}" if name == "parameters" else f"{value:.4g}"
        return f"{text} ({row.likelihood})" if name == "bits per dimension" else text

    return (row.name, *(shown(name) for name in columns))


def _rank(rank: int | None) -> str:
    return "" if rank is None else f"{rank}."
