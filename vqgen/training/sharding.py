"""FSDP2: a model split over devices, and put together again where one process needs all of it."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

Model = TypeVar("Model", bound=nn.Module)


def blueprint(model: Model) -> Model:
    """A copy whose parameters have shapes but take no memory: what `assemble` fills."""
    empty = copy.deepcopy(model)
    for parameter in empty.parameters():
        parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
    return empty


def shard_(model: nn.Module, mesh: Any, methods: tuple[str, ...]) -> None:
    """Shard every block (member of a ModuleList) by itself, then what is left, over the mesh.

    methods  the ways in that are called instead of forward: weights are gathered for them too"""
    for part in list(model.modules()):
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


@torch.no_grad()
def assemble(model: nn.Module, plain: Model) -> Model:
    """Fill a blueprint with the values of the sharded model; every process has to call it."""
    tensors = {name: whole(value) for name, value in model.state_dict().items()}
    plain.load_state_dict(tensors, assign=True)
    return plain.requires_grad_(False).eval()


def whole(value: Tensor) -> Tensor:
    """A sharded tensor put together; a plain one as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value
