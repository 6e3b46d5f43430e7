"""The state of a stage that must survive a kill, and the files that hold it.

`stages/NAME.safetensors` is the last state; beside it stand `NAME.step0000500.safetensors` (every so many steps) and
`NAME.best.safetensors` (lowest held-out loss), where they are asked for. A sharded stage keeps its last state as the
folder `NAME.sharded` of safetensors files, one per process, which PyTorch's distributed checkpointing writes and loads
on any number of processes.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from embodied_wm.checkpoint import CheckpointError, read_tensors, write_tensors
from embodied_wm.training.processes import Processes, as_part, is_sharded, local, whole

SMOOTHING = 0.98
"""Weight of the past in the running mean of the loss."""

MOST_NAMED = 3
"""Tensors that are named where a state is of another model."""

REMEDY = "Resume with the run's own configuration (config.yaml in its folder), or train in a new folder."


class TrainingError(RuntimeError):
    """Say why training stopped."""


class StageState:
    """Everything of a stage that must survive a kill, as one flat dictionary of tensors.

    Attributes:
        step: Steps done.
        loss_mean: Running mean of the loss, by which spikes are told; 0 before the first step.
        num_skipped: Updates that were left out because of a spike.
        best: Lowest held-out loss so far; the largest float before the first.
        is_whole: False while an update, or its measurement, is half done, which an error can leave it.
    """

    def __init__(self, modules: nn.ModuleDict, optimiser: torch.optim.Optimizer, use_ema: bool) -> None:
        self.modules, self.optimiser = modules, optimiser
        self.parameters: list[Tensor] = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        self.ema = [parameter.detach().clone() for parameter in self.parameters] if use_ema else []
        self.step = 0
        self.loss_mean = 0.0
        self.num_skipped = 0
        self.best = sys.float_info.max
        self.is_whole = True

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors by name; those that are not parameters of the modules are made for this call."""
        flat = {f"module.{name}": tensor for name, tensor in self.modules.state_dict().items()}
        flat |= {f"ema.{index}": tensor for index, tensor in enumerate(self.ema)}
        for index, state in self.optimiser.state_dict()["state"].items():
            flat |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
        return flat | {
            "step": torch.tensor(self.step),
            "loss_mean": torch.tensor(self.loss_mean, dtype=torch.float64),
            "num_skipped": torch.tensor(self.num_skipped),
            "best": torch.tensor(self.best, dtype=torch.float64),
        }

    def load(self, tensors: Mapping[str, Tensor], place: Path) -> None:
        """Take over what an earlier run saved in `place`.

        Raises:
            TrainingError: If it is of another model.
        """
        different = self.differences({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if different:
            raise TrainingError(f"{place} is of another model: {different}. {REMEDY}")
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = tensor
        own = self.modules.state_dict()
        self.modules.load_state_dict({name: as_part(tensor, own[name]) for name, tensor in parts["module"].items()})
        self.ema = [
            as_part(parts["ema"][str(index)].to(parameter.device), parameter)
            for index, parameter in enumerate(self.parameters[: len(parts["ema"])])
        ]
        state: dict[int, dict[str, Tensor]] = {}
        in_order = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        for name, tensor in parts["optimiser"].items():
            index, key = name.split(".", 1)
            like = in_order[int(index)]
            state.setdefault(int(index), {})[key] = as_part(tensor, like) if tensor.shape == like.shape else tensor
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self._load_counts(tensors)

    def _load_counts(self, tensors: Mapping[str, Tensor]) -> None:
        self.step = int(tensors["step"])
        self.loss_mean = float(tensors.get("loss_mean", torch.zeros(())))
        self.num_skipped = int(tensors.get("num_skipped", torch.zeros(())))
        self.best = float(tensors.get("best", torch.tensor(sys.float_info.max, dtype=torch.float64)))

    def differences(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Say in which tensors of the modules a saved state of these shapes differs from this one; "" for none."""
        own = {f"module.{name}": tuple(tensor.shape) for name, tensor in self.modules.state_dict().items()}
        found = {name: shape for name, shape in shapes.items() if name.startswith("module.")}
        different = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        named = (
            f"{name!r}: it holds {found.get(name, 'nothing')}, this model {own.get(name, 'nothing')}"
            for name in different[:MOST_NAMED]
        )
        return f"{len(different)} tensors differ, such as {'; '.join(named)}" if different else ""

    def update_mean(self, loss: float) -> None:
        """Add a loss to the running mean."""
        self.loss_mean = loss if self.loss_mean == 0 else SMOOTHING * self.loss_mean + (1 - SMOOTHING) * loss

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the averaged weights towards the weights; early steps count more."""
        if self.ema:
            weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
            averages, weights = ([local(each) for each in tensors] for tensors in (self.ema, self.parameters))
            torch._foreach_lerp_(averages, weights, weight)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def use_ema(self) -> None:
        """Put the averaged weights, if there are any, in the place of the weights."""
        if self.ema:
            weights, averages = ([local(each) for each in tensors] for tensors in (self.parameters, self.ema))
            torch._foreach_copy_(weights, averages)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights in the body; afterwards the weights are bit for bit what they were."""
        kept = [local(parameter).detach().clone() for parameter in self.parameters] if self.ema else []
        self.use_ema()
        try:
            yield
        finally:
            if kept:
                with torch.no_grad():
                    weights = [local(parameter) for parameter in self.parameters]
                    torch._foreach_copy_(weights, kept)  # pyright: ignore[reportPrivateImportUsage]

    def allocate_optimiser(self) -> None:
        """Make AdamW's state, which it makes at its first step only, so that a sharded state can be read into it."""
        for group in self.optimiser.param_groups:
            for parameter in group["params"]:
                self.optimiser.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


class StageFiles:
    """Write and read the files of one stage; every process calls every method, and only one writes whole files."""

    def __init__(self, folder: Path, name: str, processes: Processes) -> None:
        self.folder, self.name, self.processes = folder, name, processes
        self.last = folder / f"{name}.safetensors"
        self.best = folder / f"{name}.best.safetensors"
        self.sharded = folder / f"{name}.sharded"
        self.before = folder / f"{name}.before"  # what `sharded` was, where a kill came while it was replaced

    def load_last(self, state: StageState) -> None:
        """Load the last state, if there is one.

        Raises:
            CheckpointError: If it is damaged.
            TrainingError: If it is of another model.
        """
        folder = self.sharded if self.sharded.is_dir() else self.before
        if folder.is_dir():
            self._load_sharded(state, folder)
        elif self.last.is_file():
            state.load(read_tensors(self.last), self.last)

    def _load_sharded(self, state: StageState, folder: Path) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        state.allocate_optimiser()
        tensors = state.tensors()
        try:
            reader = HuggingFaceStorageReader(str(folder))
            held = reader.read_metadata().state_dict_metadata.items()
            shapes = {name: tuple(each.size) for name, each in held if isinstance(each, TensorStorageMetadata)}
            different = state.differences(shapes)
            if different:
                raise TrainingError(f"{folder} is of another model, or lacks a file: {different}. {REMEDY}")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # in one process: it should
                load(tensors, storage_reader=reader, no_dist=self.processes.world_size == 1)
        except TrainingError:
            raise
        except (Exception, CheckpointException) as error:  # its errors have no base in common
            raise CheckpointError(
                f"{folder} could not be read ({_cause(error)}); it is damaged or of another model. {REMEDY}"
            ) from error
        state.load(tensors, folder)

    def save_last(self, state: StageState) -> None:
        """Write the last state.

        Raises:
            CheckpointError: If it cannot be written; what was there before is intact.
        """
        if any(is_sharded(parameter) for parameter in state.parameters):
            if state.step:
                self._save_sharded(state.tensors())
        elif self.processes.is_main:
            write_tensors(self.last, state.tensors())
            for folder in (self.before, self.sharded):  # of an earlier part of the run, on more processes
                shutil.rmtree(folder, ignore_errors=True)

    def _save_sharded(self, tensors: Mapping[str, Tensor]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        part = self.sharded.with_suffix(".part")
        if self.processes.is_main:
            shutil.rmtree(part, ignore_errors=True)
        self.processes.wait()
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
        except (Exception, CheckpointException) as error:
            raise CheckpointError(
                f"{part} could not be written ({_cause(error)}); what {self.sharded} held before is intact. "
                "Free space, or choose another disk."
            ) from error
        if self.processes.is_main:
            if self.sharded.is_dir():
                shutil.rmtree(self.before, ignore_errors=True)
                self.sharded.rename(self.before)
            part.rename(self.sharded)
            shutil.rmtree(self.before, ignore_errors=True)
            self.last.unlink(missing_ok=True)
        self.processes.wait()

    def keep(self, state: StageState) -> None:
        """Write the state under the name of its step; copied over the last one, it takes a run back to there."""
        self.save_last(state)
        if not self.processes.is_main:
            return
        source = self.sharded if self.sharded.is_dir() else self.last
        target = self.folder / f"{self.name}.step{state.step:07d}{source.suffix}"
        part = target.with_name(target.name + ".part")
        try:
            if source.is_dir():
                shutil.rmtree(part, ignore_errors=True)  # of a copy that was cut short
                shutil.copytree(source, part)
                shutil.rmtree(target, ignore_errors=True)  # of a run that was taken back since
            else:
                shutil.copyfile(source, part)
            part.rename(target)
        except OSError as error:
            raise CheckpointError(f"{target} could not be written: {error}. Free space and resume the run.") from error

    def keep_best(self, state: StageState) -> None:
        """Write the weights (averaged where there is an average) as those with the lowest held-out loss so far."""
        with state.averaged():
            weights = {name: whole(tensor) for name, tensor in state.modules.state_dict().items()}
            if self.processes.is_main:
                write_tensors(self.best, weights)

    def load_best(self, state: StageState) -> bool:
        """Put the weights with the lowest held-out loss in place; tell whether any were kept."""
        if not self.best.is_file():
            return False
        own = state.modules.state_dict()
        tensors = read_tensors(self.best)
        state.modules.load_state_dict({name: as_part(tensors[name], own[name]) for name in own})
        return True


def _cause(error: BaseException) -> str:
    """Return what went wrong; distributed checkpointing wraps the error of each process."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {error}"
