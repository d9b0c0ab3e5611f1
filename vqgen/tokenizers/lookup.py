"""Nearest-code search in float32, chunk by chunk: the matrix of all distances is never made."""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64  # codes; a chunk is searched in two steps: the best group, then its best code
CHUNK_CPU = (512, 4096)  # (vectors, codes): 8 MiB of scores, about the cache; measured
CHUNK_GPU = (8192, 8192)  # 256 MiB of scores: few and large kernels


@torch.no_grad()
def nearest_code(vectors: Tensor, codes: Tensor, *, chunk: tuple[int, int] | None = None) -> Tensor:
    """vectors [N, D], codes [K, D] -> Long [N], the nearest code by Euclidean distance.

    Of equally near codes the first. `chunk` = (vectors, codes) scored at once bounds the memory,
    4 bytes per pair; it does not change the result.
    """
    rows, columns = chunk or (CHUNK_CPU if vectors.device.type == "cpu" else CHUNK_GPU)
    # Matrix kernels round differently at ragged edges. With every side a multiple of GROUP a vector
    # finds the same code in any chunk and any batch, and equal codes have equal scores.
    rows = _round_up(min(rows, vectors.shape[0]))
    columns = _round_up(min(columns, codes.shape[0]))
    with torch.autocast(vectors.device.type, enabled=False):
        codes = codes.float()
        half_norms = codes.square().sum(1) / 2
        padding = _round_up(codes.shape[0]) - codes.shape[0]
        codes = F.pad(codes, (0, 0, 0, padding))
        half_norms = F.pad(half_norms, (0, padding), value=torch.inf)  # a padded code never wins
        scores = codes.new_empty(rows * columns)
        found = [
            _search(part.float(), codes, half_norms, columns, scores)
            for part in vectors.split(rows)
        ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=vectors.device)


def _search(
    vectors: Tensor, codes: Tensor, half_norms: Tensor, columns: int, scores: Tensor
) -> Tensor:
    """The best code of each of a few vectors; `scores` is the memory to work in."""
    count = vectors.shape[0]
    vectors = F.pad(vectors, (0, 0, 0, _round_up(count) - count))
    every = torch.arange(vectors.shape[0], device=vectors.device)
    best = torch.full(every.shape, torch.inf, device=vectors.device)
    index = torch.zeros_like(every)
    for start in range(0, codes.shape[0], columns):
        part, offset = codes[start : start + columns], half_norms[start : start + columns]
        view = scores[: every.shape[0] * part.shape[0]].view(every.shape[0], part.shape[0])
        # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x c): the bracket alone decides
        torch.addmm(offset, vectors, part.T, alpha=-1, out=view)
        groups = view.unflatten(1, (-1, GROUP))
        value, group = groups.amin(-1).min(1)
        code = start + group * GROUP + groups[every, group].argmin(1)
        better = value < best
        best, index = torch.where(better, value, best), torch.where(better, code, index)
    return index[:count]


def _round_up(count: int) -> int:
    return -(-count // GROUP) * GROUP
