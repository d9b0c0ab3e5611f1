"""What a prior is asked to read and to sample, checked before any work is done."""

from collections.abc import Sequence

from vqgen.contracts import FeatureSpec, Known, LatentSpec, TokenSpec
from vqgen.sampling.branches import Branches


def check_single_scale(spec: LatentSpec, family: str) -> None:
    """Raise a ValueError with the cure unless the latents are tokens of a single scale."""
    cure = "train a single-scale tokenizer: python train_stage1.py tokenizer=vqgan"
    if isinstance(spec, FeatureSpec):
        raise ValueError(
            f"prior={family} needs tokens, got continuous features of "
            f"{spec.channels} x {spec.height} x {spec.width}; type prior=flow, or {cure}"
        )
    if len(spec.scales) != 1:
        raise ValueError(
            f"prior={family} needs tokens of one scale, got {len(spec.scales)} scales "
            f"({spec.grids}); type prior=var, or {cure}"
        )


def check_at_least(least: int, *, instead: int | None = None, **settings: int) -> None:
    """Raise a ValueError unless each of these settings of a prior is a whole number from `least`
    on; `instead` is what to type, `least` unless given."""
    for name, value in settings.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"wanted prior.{name} as a whole number of at least {least}, got {value}; type "
                f"prior.{name}={least if instead is None else instead}"
            )


def check_shares(**settings: float) -> None:
    """Raise a ValueError unless each of these settings of a prior is a share or a chance."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"wanted prior.{name} from 0 to 1, got {value}; type prior.{name}=0.1, or 0 to "
                "switch it off"
            )


def check_request(spec: TokenSpec, batch: int, seeds: Sequence[int], known: Known | None) -> None:
    """Raise a ValueError unless there is a seed per image and the known tokens suit `spec`."""
    if len(seeds) != batch:
        raise ValueError(f"wanted one seed for each of {batch} images, got {len(seeds)}")
    if known is None:
        return
    if known.latents.shape != (batch, spec.length):
        raise ValueError(
            f"wanted known tokens of shape {[batch, spec.length]}, got "
            f"{list(known.latents.shape)}; encode the images with this prior's tokenizer"
        )
    if known.latents.is_floating_point():
        raise ValueError(
            f"wanted known tokens as integers, got {known.latents.dtype}; encode the images with "
            "this prior's tokenizer"
        )
    given = known.latents[known.keep]
    if not bool(((given >= 0) & (given < spec.vocab_size)).all()):
        raise ValueError(
            f"wanted known tokens from 0 to {spec.vocab_size - 1}, got {int(given.min())} to "
            f"{int(given.max())}; encode with this prior's tokenizer"
        )


def check_guidance(branches: Branches, label_dropout: float) -> None:
    """Raise a ValueError if guidance is on and the null condition was never trained."""
    if branches.guided and label_dropout == 0:
        raise ValueError(
            "guidance needs a prior that was trained with its condition withheld at times, got "
            "label_dropout=0; type guidance=1, or train with prior.label_dropout=0.1"
        )
