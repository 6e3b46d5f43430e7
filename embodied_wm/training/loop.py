"""One flat training loop for every stage.

Batch and noise of a step depend on (seed, step, rank) alone, so there is no loader or generator state to save: a run
that resumes at step n does what an uninterrupted one would have done, bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from torch import nn

from embodied_wm.checkpoint import write_tensors
from embodied_wm.data.layout import StoreError
from embodied_wm.progress import Track
from embodied_wm.ranges import check_fractions, check_least
from embodied_wm.training.interrupts import stopping, undivided
from embodied_wm.training.log import METRICS, MetricsLog
from embodied_wm.training.processes import Batch, Loss, Metrics, Processes, whole, without_sync
from embodied_wm.training.state import StageFiles, StageState, TrainingError

LOG_EVERY = 20
SETTLED_AFTER = 50
"""Steps before a loss can be a spike."""
HELD_OUT_SEED = 7_654_321
SCHEDULES = ("cosine", "constant_then_decay")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Configure one stage of training.

    Attributes:
        num_steps: Optimiser steps.
        batch_size: Windows (or frames) per batch; a step sees `accumulate` batches on each process.
        accumulate: Batches per process whose gradients are averaged before each step.
        learning_rate: Peak of AdamW's rate.
        schedule: After a linear warm-up, "cosine" to a twentieth of the peak, or "constant_then_decay": the peak, and
            in the last part of the steps linearly to a twentieth (WSD, arXiv 2404.06395), so that a run can be
            prolonged from any step before.
        decay_fraction: That last part, for "constant_then_decay".
        weight_decay: Of matrices; vectors are not decayed.
        warmup_steps: Steps of warm-up.
        clip_norm: Largest gradient norm.
        ema_decay: Decay of the weights' moving average that is kept at the end; 0 keeps the last weights.
        num_threads: CPU threads of torch; 0 leaves its own choice. The small matrices of a nano predictor run slower on
            two threads than on one: 1,400 steps took 170 s alone on two cores, 134 s on one beside another job.
    """

    num_steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    num_threads: int = 0

    def __post_init__(self) -> None:
        """Refuse what no schedule can be made of, and numbers that no stage can be trained with."""
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        check_least(self, num_steps=0, batch_size=1, accumulate=1, learning_rate=0, weight_decay=0)
        check_least(self, warmup_steps=0, num_threads=0)
        check_fractions(self, decay_fraction="(0, 1]", ema_decay="[0, 1)")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: expected more than 0; inf clips no gradient")


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Say what a training keeps, and what it stops for.

    Attributes:
        save_every_s: Seconds between two saves of the last state.
        keep_every: Steps between states that are kept beside the last one; 0 keeps none.
        evaluate_every: Steps between measurements of the held-out loss, whose best weights are kept; 0 measures none.
        num_held_out: Batches of each measurement.
        final: Weights that a stage ends with: "last" (averaged where there is an average) or "best", which is the last
            where a stage has fewer steps than `evaluate_every`.
        spike_factor: A loss this many times its running mean leaves the weights as they are; 0 lets all through.
        max_spikes: Spikes in one stage after which training stops.
    """

    save_every_s: float = 60.0
    keep_every: int = 0
    evaluate_every: int = 0
    num_held_out: int = 8
    final: str = "last"
    spike_factor: float = 20.0
    max_spikes: int = 10

    def __post_init__(self) -> None:
        """Refuse weights that are never kept, and counts that are none."""
        check_least(self, save_every_s=0, keep_every=0, evaluate_every=0, num_held_out=1, spike_factor=0, max_spikes=0)
        if self.final not in ("last", "best"):
            raise ValueError(f"final={self.final!r}: choose one of last, best")
        if self.final == "best" and not self.evaluate_every:
            raise ValueError("final=best needs a held-out loss: set evaluate_every to some steps")


class Observer(Protocol):
    """Look on while a stage trains."""

    def log(self, stage: str, step: int, metrics: Metrics) -> None:
        """Take note of metrics."""
        ...

    def is_due(self, step: int, num_steps: int) -> bool:
        """Tell whether pictures are wanted after a step."""
        ...

    def draw(self, stage: str, step: int) -> None:
        """Draw pictures with the weights as they are."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """Say how a training is conducted: by which processes, what is kept, and who looks on."""

    processes: Processes = field(default_factory=Processes)
    keep: KeepConfig = field(default_factory=KeepConfig)
    observer: Observer | None = None


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


@contextmanager
def resumable(problem: str) -> Iterator[None]:
    """Say of a store that fails in the body that training can go on from what it saved, once the store is well again.

    Raises:
        TrainingError: The problem, its cause, and what to do.
    """
    try:
        yield
    except (StoreError, FileNotFoundError) as error:
        raise TrainingError(
            f"{problem}: {error} The steps before are saved: put that right (bring the data back) and continue with "
            "resume=true."
        ) from error


def learning_rate(config: StageConfig, step: int) -> float:
    """Return the rate at a step: warm-up, then the schedule down to 5% of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
        return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
    left = (config.num_steps - step) / max(1.0, config.decay_fraction * config.num_steps)
    return config.learning_rate * (0.05 + 0.95 * min(max(left, 0.0), 1.0))


def fit(
    name: str,
    modules: nn.ModuleDict,
    batch_of: Callable[[int], Batch],
    loss_of: Loss,
    config: StageConfig,
    *,
    run_dir: Path,
    seed: int,
    console: Console | None = None,
    held_out_of: Callable[[int], Batch] | None = None,
    conduct: Conduct | None = None,
    sharded: bool = False,
) -> Metrics:
    """Train modules to the end of a stage, resuming where an earlier call stopped.

    Args:
        name: The stage's name; names its files under `run_dir/stages`.
        modules: What is trained; restored, trained in place, left with the averaged weights if there are any.
        batch_of: Number to batch of this process; must depend on the number and the rank alone.
        loss_of: Batch and the batch's generator to (loss, metrics).
        config: The stage's settings.
        run_dir: Folder of the run.
        seed: Seeds every step's generator.
        console: Where progress is shown.
        held_out_of: Number to batch of this process, of episodes that are not trained on.
        conduct: Processes, what is kept, who looks on; one quiet process on the CPU by default.
        sharded: Split the modules over the processes; they keep only their own part.

    Returns:
        The metrics of the last step; those in the log where the stage was finished before.

    Raises:
        TrainingError: If the loss is not finite (the batch is kept for a look) or jumps too often, or the data vanish.
    """
    job = _Job(name, modules, batch_of, loss_of, config, run_dir, seed, held_out_of, conduct or Conduct(), sharded)
    job.files.load_last(job.state)
    processes, keep, observer, state = job.processes, job.keep, job.observer, job.state
    metrics: Metrics = {}
    last_save = logged = began = time.monotonic()
    first = state.step
    modules.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or threads)
    log = MetricsLog(run_dir / METRICS, name, state.step, is_writer=processes.is_main)
    is_agreed = True
    with (
        stopping(together=processes.world_size > 1) as stop,
        Track(f"train {name}", config.num_steps, start=state.step, console=console) as track,
    ):
        try:
            while state.step < config.num_steps:
                is_agreed = False
                is_late = processes.is_main and time.monotonic() - last_save > keep.save_every_s
                with ExitStack() as updated:
                    metrics, (asked_to_stop, asked_to_save) = job.step(bool(stop.number), is_late, updated)
                    is_agreed = True
                    speed = job.frames_per_step * (state.step - first) / (time.monotonic() - began)
                    if keep.evaluate_every and held_out_of and state.step % keep.evaluate_every == 0:
                        metrics["held_out_loss"] = job.evaluate()
                    if state.step % LOG_EVERY == 0 or state.step == config.num_steps or "held_out_loss" in metrics:
                        log.append({"stage": name, "step": state.step, **metrics})
                        if observer:
                            seconds, logged = time.monotonic() - logged, time.monotonic()
                            more = job.progress() | {"frames_per_s": speed, "seconds": seconds}
                            observer.log(name, state.step, metrics | more)
                    if keep.keep_every and state.step % keep.keep_every == 0:
                        job.files.keep(state)
                if observer and observer.is_due(state.step, config.num_steps):
                    job.draw(observer)
                shown = " ".join(f"{key} {value:.4g}" for key, value in list(metrics.items())[:3])
                track.advance(1, f"{speed:,.0f} frames/s {shown}")
                if asked_to_save:
                    job.files.save_last(state)
                    last_save = time.monotonic()
                if asked_to_stop:
                    stop.raise_it()
        finally:
            torch.set_num_threads(threads)
            # Half an update, and a part of the weights that others did not agree to save, would be no state to go on
            # from; then the file of some seconds ago is.
            if state.is_whole and (is_agreed or not sharded or processes.world_size == 1):
                with undivided():
                    job.files.save_last(state)
    modules.eval()
    if keep.final != "best" or not job.files.load_best(state):  # a short stage may end before it is measured
        state.use_ema()
    return metrics or log.last


class _Job:
    """Hold what the steps of one stage share."""

    def __init__(
        self,
        name: str,
        modules: nn.ModuleDict,
        batch_of: Callable[[int], Batch],
        loss_of: Loss,
        config: StageConfig,
        run_dir: Path,
        seed: int,
        held_out_of: Callable[[int], Batch] | None,
        conduct: Conduct,
        sharded: bool,
    ) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.batch_of, self.held_out_of = batch_of, held_out_of
        self.processes, self.keep, self.observer = conduct.processes, conduct.keep, conduct.observer
        stages = run_dir / "stages"
        stages.mkdir(parents=True, exist_ok=True)
        self.worker = self.processes.wrap(modules, loss_of, sharded=sharded)
        decayed = [p for p in modules.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in modules.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.state = StageState(modules, optimiser, config.ema_decay > 0)
        self.files = StageFiles(stages, name, self.processes)

    def step(self, wants_stop: bool, wants_save: bool, updated: ExitStack) -> tuple[Metrics, tuple[bool, bool]]:
        """Do one optimiser step; also return whether any process wants to stop, and to save.

        From the update on signals wait until `updated` is left: what is measured and kept of a step belongs to it, for
        a run that is resumed does the step no more.
        """
        config, state = self.config, self.state
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(config, state.step)
        state.optimiser.zero_grad(set_to_none=True)
        loss, metrics = self._backward()
        norm = self.norm = float(whole(nn.utils.clip_grad_norm_(state.parameters, config.clip_norm)))
        share = 1 / self.processes.world_size
        loss, stops, saves = self.processes.total([loss * share, float(wants_stop), float(wants_save)])
        if not math.isfinite(loss + norm):
            raise TrainingError(
                f"the loss became {loss} (gradient norm {norm}) at step {state.step}; the batch is kept in "
                f"{self._keep_batch()} and the weights of the step before beside it. Lower learning_rate (now "
                f"{config.learning_rate}) or look for bad values in the batch."
            )
        updated.enter_context(undivided())
        state.is_whole = False
        if self._is_spike(loss):
            state.num_skipped += 1
        else:
            state.optimiser.step()
            state.update_ema(config.ema_decay)
            state.update_mean(loss)
        state.step += 1
        state.is_whole = True
        if state.num_skipped:
            metrics["skipped"] = float(state.num_skipped)
        if state.num_skipped > self.keep.max_spikes:
            raise TrainingError(
                f"the loss of {self.name} jumped above {self.keep.spike_factor:g} times its mean {state.num_skipped} "
                f"times (last to {loss:.3g}, mean {state.loss_mean:.3g}), up to step {state.step}; those updates were "
                f"left out. Lower learning_rate (now {config.learning_rate}) in a new run, or go on with resume=true "
                "and a larger trainer.keep.max_spikes."
            )
        return {"loss": loss, **metrics}, (stops > 0, saves > 0)

    def progress(self) -> Metrics:
        """Return what only those who look on want to know of the last step."""
        return {"learning_rate": self.state.optimiser.param_groups[0]["lr"], "gradient_norm": self.norm}

    def _backward(self) -> tuple[float, Metrics]:
        """Average the gradients of this process's batches of a step; return their mean loss and metrics."""
        state, count = self.state, self.config.accumulate
        losses: list[float] = []
        gathered: dict[str, list[float]] = {}
        num_frames = 0
        for part in range(count):
            index = state.step * count + part
            batch = self.processes.to_device(self._read(self.batch_of, index))
            generator = step_generator(self.seed, index * self.processes.world_size + self.processes.rank)
            with without_sync(self.worker) if part < count - 1 else nullcontext():
                with self.processes.autocast():
                    loss, metrics = self.worker(batch, generator)
                (loss if count == 1 else loss / count).backward()
            if math.isfinite(sum(losses)):
                self.suspect = batch
            losses.append(float(loss.detach()))
            for key, value in metrics.items():
                gathered.setdefault(key, []).append(value)
            num_frames += _num_frames(batch)
        self.frames_per_step = num_frames * self.processes.world_size
        return sum(losses) / count, {key: sum(values) / len(values) for key, values in gathered.items()}

    def _read(self, source: Callable[[int], Batch], index: int) -> Batch:
        with resumable(f"the data of {self.name} could not be read at step {self.state.step}"):
            return source(index)

    def _keep_batch(self) -> Path:
        """Write this process's first batch of the step whose loss was not finite, or its last where all were."""
        suffix = f".rank{self.processes.rank}" if self.processes.rank else ""
        path = self.files.folder / f"{self.name}.bad_batch{suffix}.safetensors"
        write_tensors(path, self.suspect)
        return path

    def _is_spike(self, loss: float) -> bool:
        bound = self.keep.spike_factor * self.state.loss_mean
        return self.state.step >= SETTLED_AFTER and 0 < bound < loss

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the held-out loss of the (averaged) weights, the same batches and noise every time; keep the best."""
        assert self.held_out_of is not None
        processes, count = self.processes, self.keep.num_held_out
        self.state.modules.eval()
        self.state.is_whole = False  # as no one would measure it again, were its data missing now and its state saved
        total = 0.0
        with self.state.averaged(), processes.autocast():
            for index in range(count):
                batch = processes.to_device(self._read(self.held_out_of, index))
                number = index * processes.world_size + processes.rank
                total += float(self.worker(batch, step_generator(HELD_OUT_SEED, number))[0])
        self.state.modules.train()
        (loss,) = processes.total([total / count / processes.world_size])
        if loss < self.state.best:
            self.state.best = loss
            self.files.keep_best(self.state)
        self.state.is_whole = True
        return loss

    def draw(self, observer: Observer) -> None:
        """Let the observer draw with the averaged weights."""
        self.state.modules.eval()
        with self.state.averaged():
            observer.draw(self.name, self.state.step)
        self.state.modules.train()


def _num_frames(batch: Batch) -> int:
    """Return how many frames a batch holds: B x T of what has most dimensions."""
    largest = max(batch.values(), key=lambda tensor: tensor.ndim)
    return largest.shape[0] * (largest.shape[1] if largest.ndim > 2 else 1)


__all__ = [
    "Batch",
    "Conduct",
    "KeepConfig",
    "Loss",
    "Metrics",
    "Observer",
    "Processes",
    "StageConfig",
    "TrainingError",
    "fit",
    "learning_rate",
    "resumable",
    "step_generator",
]
