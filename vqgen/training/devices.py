"""One run on many devices: how its processes find each other, decide once, and share or shard the
model."""

import inspect
import os
import sys
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel

from vqgen.together import is_first as is_first
from vqgen.together import once as once

Value = TypeVar("Value")
STRATEGIES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
ALL = ("auto", -1, "-1")  # of the devices that are there
# of a process for the others: the first samples previews and distances alone, which may take more
# than torch's own 10 minutes; of one that died the launcher tells, or a closed connection
PATIENCE = timedelta(hours=4)
SWITCHES = ("compile", "recompute")  # of the trainer node: ours, not Lightning's


def join(trainer: dict[str, Any]) -> None:
    """Meet the other processes of this run, before anything is decided that they must share.

    torchrun and srun start the processes themselves. Where one was started and `trainer` wants more
    devices of this machine, it starts itself again under torchrun.
    Raises ValueError for what `check` refuses, or several machines without a launcher."""
    check(trainer)
    if trainer["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"wanted trainer.accelerator={trainer['accelerator']}, but torch sees no GPU here; "
            "type trainer.accelerator=cpu, or look at nvidia-smi"
        )
    if dist.is_initialized():
        return
    if TorchElasticEnvironment.detect():
        _meet(int(os.environ["LOCAL_RANK"]))
    elif "SLURM_NTASKS" in os.environ and int(os.environ["SLURM_NTASKS"]) > 1:
        environment = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["RANK"] = str(environment.global_rank())
        os.environ["WORLD_SIZE"] = str(environment.world_size())
        _meet(environment.local_rank())
    elif trainer["num_nodes"] > 1:
        raise ValueError(
            f"wanted one process per device from torchrun or srun for trainer.num_nodes="
            f"{trainer['num_nodes']}, got one process; see conf/trainer/ddp.yaml for what to type"
        )
    elif _wanted_here(trainer) > 1:
        _start_under_torchrun(_wanted_here(trainer))


def _start_under_torchrun(processes: int) -> NoReturn:
    """Run this command as so many processes, and leave with their exit code, as one process would:
    128 + signal if one asked them to leave."""
    from torch.distributed import run as torchrun  # slow, and seldom needed

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # seconds to save; its own: 30
    words = ["--standalone", f"--nproc_per_node={processes}", *sys.argv]
    sys.stdout.flush()
    try:
        torchrun.run(torchrun.parse_args(words))
    except SignalException as signal:
        sys.exit(128 + signal.sigval)
    except ChildFailedError as error:  # it has said what was wrong
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    sys.exit(0)


def check(trainer: dict[str, Any]) -> None:
    """Raise ValueError for a strategy, accelerator, devices or nodes that are not known."""
    strategy, wanted, nodes = trainer["strategy"], trainer["devices"], trainer["num_nodes"]
    if strategy not in STRATEGIES:
        raise ValueError(
            f"wanted trainer.strategy to be one of {', '.join(STRATEGIES)}, got {strategy}; "
            "type trainer=ddp or trainer=fsdp"
        )
    if trainer["accelerator"] not in ACCELERATORS:
        raise ValueError(
            f"wanted trainer.accelerator to be one of {', '.join(ACCELERATORS)}, got "
            f"{trainer['accelerator']}; type trainer.accelerator=auto"
        )
    if wanted not in ALL and not _is_count(wanted):
        raise ValueError(
            f"wanted trainer.devices as a number or auto, got {wanted}; to choose among GPUs set "
            "CUDA_VISIBLE_DEVICES=0,1 before the command"
        )
    if not _is_count(nodes):
        raise ValueError(
            f"wanted trainer.num_nodes as a number of at least 1, got {nodes}; type "
            "trainer.num_nodes=1"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank; every one has to call it."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest(number: int) -> int:
    """The largest of the processes' numbers; every one has to call it."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def trainer(node: dict[str, Any], *, some_unused: bool = True, **more: Any) -> Trainer:
    """Lightning's Trainer for the trainer node, whose unknown names and devices that are not there
    are a ValueError. some_unused: see `strategy`; more: its arguments that are not the user's."""
    arguments = trainer_arguments(node, some_unused)
    valid = list(inspect.signature(Trainer).parameters)
    for name in arguments:
        if name not in valid:
            raise ValueError(f"lightning.Trainer has no argument trainer.{name}; leave it out")
    try:
        return Trainer(**{**arguments, **more})
    except MisconfigurationException as error:
        raise ValueError(
            f"wanted a trainer with accelerator={node['accelerator']} devices={node['devices']}, "
            f"got: {str(error).splitlines()[0]}; type trainer.accelerator=auto trainer.devices=auto"
        ) from error


def trainer_arguments(trainer: dict[str, Any], some_unused: bool = True) -> dict[str, Any]:
    """The trainer node as arguments of lightning.Trainer, with devices and nodes as they are."""
    arguments = {name: value for name, value in trainer.items() if name not in SWITCHES}
    arguments["strategy"] = strategy(trainer["strategy"], some_unused)
    if trainer["devices"] in ALL:  # Lightning takes -1 for GPUs only
        arguments["devices"] = "auto"
    if "SLURM_NTASKS" in os.environ and not TorchElasticEnvironment.detect():
        # else Lightning answers SLURM's warnings with checkpoints and requeues of its own
        arguments["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        arguments |= {"devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
    elif dist.is_initialized() and "SLURM_NTASKS" in os.environ:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        arguments |= {"devices": int(os.environ["SLURM_NTASKS"]) // nodes, "num_nodes": nodes}
    return arguments


def strategy(name: str, some_unused: bool = True) -> Strategy | str:
    """Lightning's strategy for auto, ddp or fsdp. some_unused: a backward pass may leave trained
    parameters out, which DDP has to look for.

    DDP keeps a replica per device and averages gradients; FSDP (version 2, through Lightning's
    ModelParallelStrategy) shards weights, gradients, average and optimizer over all devices."""
    if not dist.is_initialized():
        return "auto"
    if name == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=dist.get_world_size(),
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any number of devices can read
        )
    # Buffers are kept equal by those who own them (codebooks sum their statistics over ranks), not
    # by overwriting them in every step.
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"find_unused_parameters": some_unused, sync: False}
    options["gradient_as_bucket_view"] = True  # else what is exchanged is a copy of all gradients
    return DDPStrategy(**options)


def checksum(model: nn.Module) -> dict[str, int]:
    """A number per parameter and buffer that differs if the bits do (nearly always): the sum of its
    bytes' 32-bit words."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    sums = torch.stack([_words(value).sum(dtype=torch.int64) for value in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))


def differing(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are not the same on all processes."""
    own = checksum(model)
    sums = gather(own)
    return [name for name in own if len({other[name] for other in sums}) > 1]


def _words(value: Tensor) -> Tensor:
    flat = value.detach().contiguous().flatten()
    return flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.uint8)


def _meet(local_rank: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    # both, since what is exchanged about the run itself is on the CPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)


def launcher(trainer: dict[str, Any]) -> list[str]:
    """The first words of a command that runs on as many devices of this machine as this run has."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    by_itself = here in (1, _wanted_here(trainer))
    return ["python"] if by_itself else ["torchrun", f"--nproc_per_node={here}"]


def planned(trainer: dict[str, Any]) -> int:
    """Devices that a run with this trainer node would have, all machines together.

    Raises ValueError for what `check` refuses."""
    check(trainer)
    started = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS")
    return int(started) if started else max(1, _wanted_here(trainer)) * trainer["num_nodes"]


def _wanted_here(trainer: dict[str, Any]) -> int:
    """Processes that this machine should run."""
    wanted = trainer["devices"]
    if wanted in ALL:
        accelerated = trainer["accelerator"] in ("auto", "gpu", "cuda")
        return torch.cuda.device_count() if accelerated else 1
    return wanted if isinstance(wanted, int) else 1
