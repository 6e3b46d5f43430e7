"""One flat training loop for every stage.

Batch and noise of a step depend on (seed, step) alone, so there is no loader or generator state to save: a run that
resumes at step n does what an uninterrupted one would have done, bit for bit on a CPU.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.checkpoint import read_tensors, write_tensors
from embodied_wm.progress import Track

SAVE_EVERY_S = 60.0
Batch = dict[str, Tensor]
Metrics = dict[str, float]


class TrainingError(RuntimeError):
    """Say why training stopped."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Configure one stage of training.

    Attributes:
        num_steps: Optimiser steps.
        batch_size: Windows (or frames) per step.
        learning_rate: Peak of AdamW's rate: linear warm-up, then cosine to a twentieth.
        weight_decay: Of matrices; vectors are not decayed.
        warmup_steps: Steps of warm-up.
        clip_norm: Largest gradient norm.
        ema_decay: Decay of the weights' moving average that is kept at the end; 0 keeps the last weights.
        num_threads: CPU threads of torch; 0 leaves its own choice. The small matrices of a nano predictor run slower on
            two threads than on one: 1,400 steps took 170 s alone on two cores, 134 s on one beside another job.
    """

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    num_threads: int = 0


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(config: StageConfig, step: int) -> float:
    """Return the rate at a step: warm-up, then cosine to 5% of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class _State:
    """Everything of a stage that must survive a kill, as one flat dictionary of tensors."""

    def __init__(self, modules: nn.ModuleDict, optimiser: torch.optim.Optimizer, use_ema: bool) -> None:
        self.modules, self.optimiser = modules, optimiser
        self.parameters: list[Tensor] = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        self.ema = [parameter.detach().clone() for parameter in self.parameters] if use_ema else []
        self.step = 0
        self.is_whole = True  # False while an update is half done, which an error can leave it

    def tensors(self) -> dict[str, Tensor]:
        flat = {f"module.{name}": tensor for name, tensor in self.modules.state_dict().items()}
        flat |= {f"ema.{index}": tensor for index, tensor in enumerate(self.ema)}
        for index, state in self.optimiser.state_dict()["state"].items():
            flat |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
        return {name: tensor.clone() for name, tensor in flat.items()} | {"step": torch.tensor(self.step)}

    def load(self, path: Path) -> None:
        """Take over what an earlier run saved.

        Raises:
            CheckpointError: If the file is damaged.
            TrainingError: If it is of another model.
        """
        tensors = read_tensors(path)
        own = {f"module.{name}": tuple(tensor.shape) for name, tensor in self.modules.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("module.")}
        different = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        if different:
            name = different[0]
            raise TrainingError(
                f"{path} is of another model: {len(different)} tensors differ, the first is {name!r}: it holds "
                f"{found.get(name, 'nothing')}, this model {own.get(name, 'nothing')}. Resume with the run's own "
                f"configuration (config.yaml in its folder), or train in a new folder."
            )
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            if name != "step":
                part, rest = name.split(".", 1)
                parts[part][rest] = tensor
        self.modules.load_state_dict(parts["module"])
        self.ema = [parts["ema"][str(index)] for index in range(len(parts["ema"]))]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step = int(tensors["step"])


def fit(
    name: str,
    modules: nn.ModuleDict,
    batch_of: Callable[[int], Batch],
    loss_of: Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]],
    config: StageConfig,
    *,
    run_dir: Path,
    seed: int,
    console: Console | None = None,
) -> Metrics:
    """Train modules to the end of a stage, resuming where an earlier call stopped.

    Args:
        name: The stage's name; names its files under `run_dir/stages`.
        modules: What is trained; restored, trained in place, left with the averaged weights if there are any.
        batch_of: Step to batch; must depend on the step alone.
        loss_of: Batch and the step's generator to (loss, metrics).
        config: The stage's settings.
        run_dir: Folder of the run.
        seed: Seeds every step's generator.
        console: Where progress is shown.

    Returns:
        The metrics of the last step; those in the log where the stage was finished before.

    Raises:
        TrainingError: If the loss is not finite; the batch is kept for a look.
    """
    stages = run_dir / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    decayed = [p for p in modules.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in modules.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    state = _State(modules, optimiser, config.ema_decay > 0)
    saved = stages / f"{name}.safetensors"
    if saved.is_file():
        state.load(saved)
    metrics: Metrics = {}
    last_save = time.monotonic()
    modules.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or threads)
    log = _Log(run_dir / "metrics.jsonl", name, state.step)
    with Track(f"train {name}", config.num_steps, start=state.step, console=console) as track:
        try:
            while state.step < config.num_steps:
                metrics = _step(
                    state, batch_of(state.step), loss_of, config, seed, stages / f"{name}.bad_batch.safetensors"
                )
                if state.step % 20 == 0 or state.step == config.num_steps:
                    log.append({"stage": name, "step": state.step, **metrics})
                track.advance(1, " ".join(f"{key} {value:.4g}" for key, value in list(metrics.items())[:3]))
                if time.monotonic() - last_save > SAVE_EVERY_S:
                    write_tensors(saved, state.tensors())
                    last_save = time.monotonic()
        finally:
            torch.set_num_threads(threads)
            if state.is_whole:  # otherwise the file of some seconds ago is where the run goes on
                write_tensors(saved, state.tensors())
    modules.eval()
    if state.ema:
        with torch.no_grad():
            torch._foreach_copy_(state.parameters, state.ema)  # pyright: ignore[reportPrivateImportUsage]
    return metrics or log.last


def _step(
    state: _State,
    batch: Batch,
    loss_of: Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]],
    config: StageConfig,
    seed: int,
    bad_batch: Path,
) -> Metrics:
    """Do one optimiser step."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    loss, metrics = loss_of(batch, step_generator(seed, state.step))
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.parameters, config.clip_norm)
    if not torch.isfinite(loss + norm):
        write_tensors(bad_batch, batch)
        raise TrainingError(
            f"the loss became {float(loss.detach())} (gradient norm {float(norm)}) at step {state.step}; the batch is "
            f"kept in {bad_batch} and the weights of the step before beside it. Lower learning_rate (now "
            f"{config.learning_rate}) or look for bad values in the batch."
        )
    with _undivided():
        state.is_whole = False
        state.optimiser.step()
        if state.ema:
            decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
            with torch.no_grad():
                torch._foreach_lerp_(state.ema, state.parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        state.step += 1
        state.is_whole = True
    return {"loss": float(loss.detach()), **metrics}


@contextmanager
def _undivided() -> Iterator[None]:
    """Let Ctrl-C wait until the body is done, so that what is saved then is a whole step."""
    before = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(before):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(*pressed[0])


class _Log:
    """Append metrics to a file of JSON lines, and drop those that a resumed stage will write again.

    Attributes:
        last: The stage's last metrics that an earlier call has logged.
    """

    def __init__(self, path: Path, stage: str, step: int) -> None:
        self.path = path
        self.last: Metrics = {}
        if not path.is_file():
            return
        content = path.read_bytes()
        lines = content.split(b"\n")[:-1]  # what follows the last line break was cut short
        records = [json.loads(line) for line in lines]
        kept = [
            line for line, each in zip(lines, records, strict=True) if each["stage"] != stage or each["step"] <= step
        ]
        whole = b"".join(line + b"\n" for line in kept)
        if whole != content:
            part = path.with_name(path.name + ".part")
            part.write_bytes(whole)
            os.replace(part, path)
        for record in (json.loads(line) for line in kept):
            if record["stage"] == stage:
                self.last = {key: value for key, value in record.items() if key not in ("stage", "step")}

    def append(self, record: dict[str, Any]) -> None:
        """Write one line.

        Raises:
            TrainingError: If the file cannot be written.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                num_written = file.write(line)
        except OSError as error:
            raise TrainingError(f"{self.path} could not be written: {error}. Free space and resume the run.") from error
        if num_written != len(line):
            raise TrainingError(f"{self.path} could not be written: the disk is full. Free space and resume the run.")
