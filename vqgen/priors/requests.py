"""What a prior over tokens is asked to sample, checked before any work is done."""

from collections.abc import Sequence

from vqgen.contracts import Known, TokenSpec


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
    given = known.latents[known.keep]
    if not bool(((given >= 0) & (given < spec.vocab_size)).all()):
        raise ValueError(
            f"wanted known tokens from 0 to {spec.vocab_size - 1}, got {int(given.min())} to "
            f"{int(given.max())}; encode with this prior's tokenizer"
        )
