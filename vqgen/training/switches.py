"""Switches that cost or save time and memory and change no result: recomputed activations, compiled
blocks."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def apply_(model: nn.Module, *, recompute: bool = False, compile: bool = False) -> None:
    """Switch every block of the model (member of a ModuleList); state dicts stay as they are.

    recompute  keep a block's input only, and compute its inside again in the backward pass, with
               the same random draws: the same bits
    compile    torch.compile each block. Where it drops units it draws them in another way than
               uncompiled code; all else is the same up to rounding"""
    for block in blocks(model):
        if compile:
            block.compile()
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost members of the model's ModuleLists."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found
