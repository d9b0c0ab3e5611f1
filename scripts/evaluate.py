"""Evaluate one run by a frozen protocol and write its card. `python scripts/evaluate.py model=RUN
[protocol=emoji-2k|gfid-adm|rfid-val-centercrop] [samples=FILE.npz]`"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vqgen import build, cli, runs
from vqgen.evaluation import comparison
from vqgen.evaluation.card import check_folder
from vqgen.evaluation.protocol import Protocol, check_batch, check_texts, chosen
from vqgen.evaluation.run import Evaluated, Evaluation
from vqgen.evaluation.subject import Subject, which
from vqgen.metrics import features


@cli.entry("evaluate", "evaluate")
def main(config: DictConfig) -> None:
    """Check everything, measure, write card.json, card.md, pictures and samples.npz."""
    settings = build.plain(config)
    check_batch(settings["batch"])
    check_texts(settings, "cache", "root", optional=("model", "out"))
    protocol = Protocol(**chosen(settings))
    check_folder(Path(settings["cache"]), "cache")
    model, samples = find_model(settings), settings["samples"]
    if samples is not None and not isinstance(samples, str):
        raise ValueError(
            f"wanted samples=FILE.npz or a folder of pictures, got {samples}; for their number "
            f"type protocol.samples={samples}"
        )
    if model is not None:
        print(which(model))
    device = build.device(settings["device"])
    given = None if samples is None else Path(samples)
    data = settings.get("data")
    if data and "size" in data and model is not None and "data.size" not in cli.typed_keys():
        data |= {"size": None}  # the model knows it
    subject = Subject(protocol, model=model, samples=given, data=data, device=device)
    network = features.load(protocol.features, protocol.weights, device)
    evaluation = Evaluation(
        protocol, subject, network, cache=Path(settings["cache"]), batch=settings["batch"]
    )
    base = (model or Path(".")) / "evaluation"
    usual = base / "_".join([protocol.name, *([given.stem] if given else [])])
    recipe = evaluation.card.protocol
    out = Path(settings["out"] or comparison.card_folder(usual, recipe))  # before any work
    check_folder(out)
    evaluated = evaluation.run()
    if not settings["out"]:  # another recipe's card may have come while this was at work
        out = comparison.card_folder(usual, recipe)
    evaluated.write(out, npz=settings["npz"] and given is None)
    send(evaluated, settings, out)
    print("\n".join(evaluated.card.markdown().split("\n## ")[0].splitlines()))
    print(f"\n{out}/card.md and card.json")


def find_model(settings: dict[str, Any]) -> Path | None:
    """The model=PATH that was typed, the newest stage-2 run, or none (samples alone)."""
    if settings["model"] is None or (settings["model"] == "auto" and settings["samples"]):
        return None
    if settings["model"] != "auto":
        return Path(settings["model"])
    newest = runs.newest_export(
        Path(settings["root"]), "stage2", lambda folder: None, "python train_stage2.py"
    )
    return newest.parent


def send(evaluated: Evaluated, settings: dict[str, Any], out: Path) -> None:
    """The card as a table, and its pictures, to the chosen logger."""
    for board in build.boards(settings, {}, out, {}):
        head = ["number", "value", "95 % interval", "images", "unit"]
        board.log_table("evaluation/card", head, evaluated.card.rows(), 0)
        for name, picture in evaluated.pictures.items():
            board.log_picture(f"evaluation/{name}", picture, 0)
        board.close()


if __name__ == "__main__":
    main()
