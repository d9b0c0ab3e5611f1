"""The W&B dashboard and report template as spec files, checked offline; sent to a server if asked.
`python scripts/dashboard.py [publish=true entity=NAME]`"""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vqgen import build, checkpoint, cli
from vqgen.evaluation.card import check_folder
from vqgen.evaluation.protocol import check_texts

# section -> the numbers of one panel each, as training logs them
LINES: dict[str, list[tuple[str, ...]]] = {
    "Losses": [
        ("train/total",),
        ("train/pixel", "train/perceptual"),
        ("train/commitment",),
        ("train/cross_entropy",),
        ("train/norm_generator", "train/norm_discriminator", "train/norm"),
        ("train/lr",),
    ],
    "Reconstruction": [("val/psnr",), ("val/ssim",), ("val/lpips",)],
    "GAN health": [
        ("gan/logits_real", "gan/logits_fake"),
        ("gan/generator", "gan/discriminator"),
        ("gan/adaptive_weight", "gan/weight"),
    ],
    "Codebook": [("codebook/usage",), ("codebook/perplexity",), ("codebook/revived",)],
    "Likelihood": [
        ("val/bits_per_dimension", "val/bits_per_dimension_uniform"),
        ("val/bits_per_token", "val/bits_per_token_uniform"),
    ],
    "Performance": [
        ("perf/images_per_second",),
        ("perf/training_share",),
        ("perf/memory_gib",),
        ("perf/progress",),
    ],
}
SMALL_FD = r"val/r?fd_.*"  # of small_fd.samples=N; the names end in the network and N
PICTURES = ("samples/reconstructions", "samples/by_class")
TABLES = {"Evaluation": ("evaluation/card",), "Comparison of runs": ("comparison/trilemma",)}
FORBIDDEN, LONGEST = "/\\#?%:", 128  # of names of W&B projects
COMPARED = ("comparison/front", "comparison/triangle", "evaluation/nearest_training_images")


@cli.entry(".", "dashboard")
def main(config: DictConfig) -> None:
    """Build both, check that they read back as they were, write them, publish if asked."""
    settings = build.plain(config)
    if settings["publish"] and not settings["entity"]:
        raise ValueError("publish=true needs entity=NAME, your user or team on the W&B server")
    check_names(settings)
    check_texts(settings, "out")
    check_folder(Path(settings["out"]))
    made = {"workspace": workspace(settings), "report": report(settings)}
    for name, thing in made.items():
        path = Path(settings["out"]) / f"{name}.json"
        checkpoint.write_text(path, json.dumps(checked(thing), indent=2) + "\n")
        print(f"{path} ({', '.join(sections(thing))})")
    if settings["publish"]:
        for thing in made.values():
            print(f"published: {published(thing)}")


def check_names(settings: dict[str, Any]) -> None:
    """Raise ValueError for names that the server would not take."""
    for key in ("entity", "project", "name"):
        value, hint = settings[key], f"type {key}=vqgen"
        if key == "entity" and value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"wanted {key} as a word, got {value!r}; {hint}")
        bad = "" if key == "name" else "".join(sorted(set(value) & set(FORBIDDEN)))
        if bad or len(value) > LONGEST:
            what = f"the letters {bad!r}" if bad else f"{len(value)} letters"
            raise ValueError(
                f"wanted {key} of at most {LONGEST} letters and without {FORBIDDEN}, got {what}; "
                f"{hint}"
            )


def published(thing: Any) -> str:
    """The address of what the server took. Raises ValueError if it did not."""
    try:
        return thing.save().url
    except Exception as error:  # wandb and the network raise whatever they like
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the W&B server did not take it ({type(error).__name__}: {first}); the spec files are "
            "written; for another try: wandb login, then check entity= and the network"
        ) from error


def workspace(settings: dict[str, Any]) -> Any:
    """The saved workspace: one section per concern, steps on every x-axis."""
    ws, wr = _libraries()
    made = []
    for name, panels in LINES.items():
        lines = [wr.LinePlot(title=" and ".join(y), x="step", y=list(y)) for y in panels]
        if name == "Reconstruction":
            made.append(ws.Section(name="Small FD", panels=[_small_fd(wr)], is_open=True))
        made.append(ws.Section(name=name, panels=lines, is_open=True))
        if name == "Codebook":
            shown = [wr.MediaBrowser(title=key, media_keys=[key]) for key in PICTURES]
            made.append(ws.Section(name="Samples", panels=shown, is_open=True))
    for name, keys in TABLES.items():
        panels = [wr.WeavePanelSummaryTable(table_name=key) for key in keys]
        if name == "Comparison of runs":
            panels += [wr.RunComparer(diff_only="split")]
            panels += [wr.MediaBrowser(title=key, media_keys=[key]) for key in COMPARED]
        made.append(ws.Section(name=name, panels=panels, is_open=True))
    return ws.Workspace(
        entity=settings["entity"] or "offline",
        project=settings["project"],
        name=settings["name"],
        sections=made,
    )


def report(settings: dict[str, Any]) -> Any:
    """The report template: what was trained, the curves that matter, the trilemma, conclusions."""
    _, wr = _libraries()
    entity, project = settings["entity"] or "offline", settings["project"]
    grids = {
        "What was trained": [wr.RunComparer(diff_only="split")],
        "Tokenizers": [wr.LinePlot(x="step", y=["val/psnr"]), _lines(wr, "Codebook")],
        "Priors": [
            _lines(wr, "Likelihood"),
            _small_fd(wr),
            wr.MediaBrowser(media_keys=[PICTURES[1]]),
        ],
        "The trilemma": [
            wr.WeavePanelSummaryTable(table_name=TABLES["Comparison of runs"][0]),
            wr.MediaBrowser(media_keys=list(COMPARED[:2])),
        ],
    }
    blocks = []
    for title, panels in grids.items():
        # a run set without a name is the report's own project, and is not looked up on a server
        blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[wr.Runset()], panels=panels)]
    blocks += [wr.H2(text="Conclusions"), wr.P(text="What the cards say, with their intervals.")]
    return wr.Report(entity=entity, project=project, title="vqgen comparison", blocks=blocks)


def checked(thing: Any) -> dict[str, Any]:
    """The spec as plain values. Raises ValueError if it does not read back with all sections."""
    model = thing._to_model()
    plain = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    again = type(thing)._from_model(type(model).model_validate(plain))
    if sections(again) != sections(thing):
        raise ValueError(f"the spec reads back as {sections(again)}, it was {sections(thing)}")
    return plain


def sections(thing: Any) -> list[str]:
    """The names of a workspace's sections, or of a report's headings."""
    if hasattr(thing, "sections"):
        return [section.name for section in thing.sections]
    return [block.text for block in thing.blocks if type(block).__name__ == "H2"]


def _lines(wr: Any, section: str) -> Any:
    return wr.LinePlot(title=section, x="step", y=list(LINES[section][0]))


def _small_fd(wr: Any) -> Any:
    return wr.LinePlot(title="Small FD, within a run only", x="step", metric_regex=SMALL_FD)


def _libraries() -> tuple[Any, Any]:
    os.environ.setdefault("WANDB_MODE", "offline")  # building a spec asks no server
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ValueError(
            "the dashboard needs wandb-workspaces; type: pip install vqgen[dashboard]"
        ) from error
    return ws, wr


if __name__ == "__main__":
    main()
