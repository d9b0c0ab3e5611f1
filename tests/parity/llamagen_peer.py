"""The published LlamaGen's conditions and guidance in ours, for the parity tests."""

from torch import Tensor

from vqgen.contracts import Condition, Guidance


def condition(inputs: dict[str, Tensor], labels: str = "labels", masked: bool = True) -> Condition:
    """The condition of a fixture: its caption and mask, or its labels (num_classes is no class)."""
    if "caption" in inputs:
        return Condition.of_text(inputs["caption"], inputs["emb_masks"] if masked else None)
    return Condition.of_labels(inputs[labels])


def dropped(given: Condition, inputs: dict[str, Tensor]) -> Condition:
    """`given` withheld where the fixture says so."""
    return Condition(
        batch=given.batch,
        labels=given.labels,
        text=given.text,
        mask=given.mask,
        dropped=inputs["force_drop_ids"].bool(),
    )


def guidance(scale: float, last: int, steps: int) -> Guidance:
    """The peer's scale and interval: -1 always, else tokens 0 ... last + 1; off up to scale 1."""

    def schedule(progress: float) -> float:
        step = round(progress * (steps - 1))
        return scale if scale > 1 and (last == -1 or step <= last + 1) else 1.0

    return schedule
