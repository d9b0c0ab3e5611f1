"""The list of scales of a token pyramid: read, checked against the latent grid, or made by a
rule."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from vqgen.contracts import Size

SETTING = "tokenizer.bottleneck.scales"


def checked(
    scales: Literal["auto"] | Sequence[int | Sequence[int]], *, fixed: bool
) -> tuple[Size, ...] | None:
    """Sides or [height, width], coarse to fine -> (height, width) each; None for "auto".

    Raises ValueError for anything else, for scales that decrease, and for "auto" where something
    per scale (`fixed`) needs their number."""
    if scales == "auto":
        if fixed:
            raise ValueError(
                "wanted a list of scales, for something per scale (own_codebooks, phi_count=0), "
                f"got auto; type {SETTING}=[1,2,4,8], say, ending at the latent grid"
            )
        return None
    given = list(scales) if isinstance(scales, list | tuple) else []  # one number, null, a word: no
    pairs = [tuple(one) if isinstance(one, Sequence) else (one, one) for one in given]
    flat = [side for pair in pairs for side in pair]
    if not pairs or any(len(pair) != 2 for pair in pairs) or any(not _is_side(s) for s in flat):
        raise ValueError(
            f"wanted {SETTING} to be auto, or a list of sides or of [height,width], each at least "
            f"1, got {scales}; type {SETTING}=auto"
        )
    result = tuple((height, width) for height, width in pairs)
    for (h, w), (next_h, next_w) in pairwise(result):
        if next_h < h or next_w < w:
            last_h, last_w = result[-1]  # most likely the latent grid
            inside = [(h, w) for h, w in result if h <= last_h and w <= last_w]
            heights, widths = zip(*inside, strict=True)
            ordered = list(zip(sorted(heights), sorted(widths), strict=True))
            raise ValueError(
                f"wanted {SETTING} from coarse to fine, got {next_h} x {next_w} after {h} x {w}; "
                f"type {SETTING}={_typed(ordered)}"
            )
    return result


def at_grid(scales: tuple[Size, ...] | None, grid: Size) -> tuple[Size, ...]:
    """These scales for a latent grid, or the automatic ones. ValueError unless they end at it."""
    if scales is None:
        return automatic(grid)
    over = [size for size in scales if size[0] > grid[0] or size[1] > grid[1]]
    if scales[-1] != grid or over:
        fault = "exceed it with" if over else "end at"
        height, width = over[0] if over else scales[-1]
        kept = [size for size in scales if size not in over and size != grid]
        raise ValueError(
            f"wanted {SETTING} to end at this tokenizer's latent grid of {grid[0]} x {grid[1]}, "
            f"got scales that {fault} {height} x {width}; type {SETTING}={_typed([*kept, grid])} "
            "or auto"
        )
    return scales


def automatic(grid: Size) -> tuple[Size, ...]:
    """The longer side begins at 1, grows by a quarter but at least by 1, and ends at the grid; the
    shorter one keeps the grid's proportion.

    A grid of 16 x 16 gets the published 1 2 3 4 5 6 8 10 13 16 (Tian et al. 2024). A scale above
    eight ninths of the grid is left out."""
    longer, sides = max(grid), [1]
    while (side := max(sides[-1] + 1, (5 * sides[-1] + 2) // 4)) * 9 <= longer * 8:
        sides.append(side)
    sides += [longer] if longer > 1 else []
    return tuple(
        (max(1, round(side * grid[0] / longer)), max(1, round(side * grid[1] / longer)))
        for side in sides
    )


def _is_side(side: object) -> bool:
    return type(side) is int and side >= 1


def _typed(scales: Sequence[Size]) -> str:
    """As one types them."""
    return "[" + ",".join(str(h) if h == w else f"[{h},{w}]" for h, w in scales) + "]"
