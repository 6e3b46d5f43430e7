"""Devices and processes: one configuration from a laptop's CPU to a cluster of GPUs.

`torchrun` (or `accelerate launch`, or srun) starts the processes; accelerate's `PartialState` joins them and chooses
the device; PyTorch's own DDP and FSDP2 (`fully_shard`) average the gradients. accelerate's `prepare` is not used: in
1.15 it applies FSDP2 to accelerators only and passes it over on CPUs without a word, where our tests run.

An optimiser step sees `world_size * accumulate` batches. Which windows and which noise each of them has depends on its
number alone, so two processes do what one process does that accumulates two batches, up to rounding.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embodied_wm.predictor.transformer import BlockCausalTransformer, Layer
from embodied_wm.tokenizer.frames import FrameTokenizer

Batch = dict[str, Tensor]
Metrics = dict[str, float]
Loss = Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]

WAIT = timedelta(hours=12)
"""How long processes wait for each other: the first one encodes all episodes while the others wait."""

MOST_READERS = 16
"""Readers that are chosen by themselves: each keeps two batches in memory."""

CHOICES = {"precision": ("auto", "fp32", "bf16"), "sharding": ("ddp", "fsdp2")}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Say what a training runs on; a resumed run may say something else.

    Attributes:
        device: "cpu", "cuda", "cuda:N", or "auto", which takes a GPU where there is one. With several processes each
            takes a GPU of its own.
        precision: "fp32", "bf16" (automatic mixed precision), or "auto": bf16 on a GPU, fp32 on a CPU, where bf16 is
            150 times slower (DESIGN section 11).
        compile: Compile the transformer's layers and the tokenizer's networks.
        recompute: Recompute the transformer's activations in the backward pass instead of keeping them.
        sharding: What several processes share: "ddp" gives each all weights, "fsdp2" a part of the predictor's.
        readers: Threads that read batches ahead, which changes nothing but the time; 0 takes one for each core of this
            machine, shared between its processes, at least 2 and at most MOST_READERS. One reader feeds `small`'s
            tokenizer stage from a store at up to 30 TFLOP/s, from memory at 490
            (`scripts/bench_training.py feed --model small`).
    """

    device: str = "cpu"
    precision: str = "auto"
    compile: bool = False
    recompute: bool = False
    sharding: str = "ddp"
    readers: int = 2

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        if self.readers < 0:
            raise ValueError(f"readers={self.readers}: expected a number of threads, or 0 for one per core")
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(valid)}")


def choose_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; try device=cpu")
    return device


class StageModule(nn.Module):
    """Give a stage's loss the form of a forward pass, which is where DDP and FSDP2 do their part."""

    def __init__(self, parts: nn.ModuleDict, loss_of: Loss) -> None:
        super().__init__()
        self.parts, self.loss_of = parts, loss_of

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch and its metrics."""
        return self.loss_of(batch, generator)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Say which of the processes that train together this one is, and where it computes.

    Attributes:
        rank: Which, counted from 0.
        world_size: How many train together.
        device: Where this one computes.
        config: What was asked for.
        in_parts: Whether a step may use a part of the weights only, the same part on every process.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    config: ComputeConfig = field(default_factory=ComputeConfig)
    in_parts: bool = False

    @property
    def is_main(self) -> bool:
        """Tell whether this process is the one that writes."""
        return self.rank == 0

    @property
    def is_sharding(self) -> bool:
        """Tell whether large stages are sharded."""
        return self.config.sharding == "fsdp2" and self.world_size > 1

    @property
    def num_readers(self) -> int:
        """Return how many threads of this process read batches ahead."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.config.readers or min(MOST_READERS, max(2, (os.cpu_count() or 2) // here))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass: mixed precision by device."""
        wanted = self.config.precision
        if wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def to_device(self, batch: Batch) -> Batch:
        """Return a batch on this process's device."""
        if self.device.type == "cpu":
            return batch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def wrap(self, parts: nn.ModuleDict, loss_of: Loss, *, sharded: bool) -> nn.Module:
        """Return the callable whose gradients all processes average; `sharded` splits the parts' weights in place."""
        module = StageModule(parts, loss_of)
        if self.world_size == 1:
            return module
        if not sharded:
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=self.in_parts)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for part in module.modules():
            if isinstance(part, Layer):
                fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    def total(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes."""
        if self.world_size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else None, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def wait(self) -> None:
        """Return when every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def share[T](self, value: T) -> T:
        """Return the main process's value on every process."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def without_sync(worker: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which DDP leaves gradients unaveraged: for all batches of a step but the last."""
    return worker.no_sync() if isinstance(worker, DistributedDataParallel) else nullcontext()


def start_processes(config: ComputeConfig) -> Processes:
    """Join the processes that a launcher started, or stand alone where there was none.

    Raises:
        ValueError: If the device does not exist.
    """
    device = choose_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device, config=config)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=WAIT)
    return Processes(
        rank=state.process_index, world_size=state.num_processes, device=state.device or device, config=config
    )


def leave_processes() -> None:
    """Leave the group of processes, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def prepare(model: nn.Module, processes: Processes) -> None:
    """Put a model on the device, and switch compilation and recomputation on where they are wanted."""
    model.to(processes.device)
    for part in model.modules():
        if isinstance(part, BlockCausalTransformer):
            part.recompute = processes.config.recompute
        if processes.config.compile and isinstance(part, Layer):
            part.compile()
        if processes.config.compile and isinstance(part, FrameTokenizer):
            part.encoder.compile()
            part.decoder.compile()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process may hold a part."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether each process holds a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def as_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor split as another one is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
