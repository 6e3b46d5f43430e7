"""Train the world models of several robots together: a `Family` that shares tokenizer, latent actions and predictor.

Each batch of the shared stages comes from one robot's store, by weight (`data.loader.MixtureSchedule`), and goes
through that robot's model: its background image and statistics of latents, its embedding of real actions, the weights
all share. So it is in distillation and self-forcing too, by the robots with labels: one robot after the other, the
predictor would forget the first for the last. Adapter and readouts are fitted robot by robot, on its labelled episodes.
A robot without labels takes part with its video alone; it gets no adapter and no readouts until it is trained again
with some.

`start_from` takes over what a family has learnt: the shared weights, and for robots that it knows all the rest
(`embodied_wm.training.adoption`). So a new robot is adopted by training with `start_from` on its own store, with all
stages, or with adapter and readouts alone, which keeps the shared weights as they are. A family of one robot is trained
bit for bit as `train_world_model` trains it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.data.loader import MixtureSchedule
from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family, own_backgrounds
from embodied_wm.predictor.joint import told_actions
from embodied_wm.training.adoption import (
    REAL_ACTIONS,
    TOLD_ACTIONS,
    TOLD_WHAT_IS_FELT,
    check_new_robots,
    learns_anew,
    take_over,
    train_real_actions,
    untrained_options,
)
from embodied_wm.training.card import training_card
from embodied_wm.training.config import TrainConfig
from embodied_wm.training.embodiment import (
    check_camera,
    check_episodes,
    describe_embodiment,
    fit_action_scale,
    fit_felt_scale,
)
from embodied_wm.training.folder import owned
from embodied_wm.training.frames import FrameBatches, drawn_reconstruction
from embodied_wm.training.labels import labelled_members
from embodied_wm.training.loop import Batch, Conduct, Loss, Metrics, StageConfig, fit, resumable
from embodied_wm.training.observer import Draw, RunObserver, seconds_spent
from embodied_wm.training.processes import Processes, prepare, start_processes
from embodied_wm.training.stages import STAGES, WITH_LABELS, check_names, check_useful
from embodied_wm.training.train import STATISTICS_FRAMES, Trainer
from embodied_wm.world_model import WorldModel, WorldModelConfig

OF_THE_PREDICTOR = ("predictor", "distillation", "self_forcing")
SHARED_STAGES = ("tokenizer", "latent_actions", *OF_THE_PREDICTOR)
ROBOT = "robot"
"""Key of a batch that holds the place of its robot."""


@dataclass(frozen=True, kw_only=True)
class RobotStore:
    """Say what one robot brings to a joint training.

    Attributes:
        store: Its episodes.
        camera: Feature of its frames; "" takes the store's only camera.
        weight: Its share of the batches of the shared stages, in any unit.
        labelled_fraction: Part of its training episodes whose action labels (and readout targets) may be used; 0 is
            video alone, None what the training's configuration says.
    """

    store: EpisodeStore
    camera: str = ""
    weight: float = 1.0
    labelled_fraction: float | None = None

    def __post_init__(self) -> None:
        """Refuse fractions that are none."""
        if self.labelled_fraction is not None and not 0 <= self.labelled_fraction <= 1:
            raise ValueError(f"labelled_fraction={self.labelled_fraction}: expected 0 (video alone) to 1 (all labels)")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Hold one robot's part of a shared stage."""

    batch_of: Callable[[int], Batch]
    loss_of: Loss
    held_out_of: Callable[[int], Batch] | None


class _Member(Trainer):
    """Hold one robot's data and model; its parts of shared stages are handed over, its own stages run as ever."""

    def __init__(self, robot: RobotStore, model: WorldModel, config: TrainConfig, run_dir: Path, **others: Any) -> None:
        super().__init__(robot.store, model, config, run_dir, **others)
        self.handed_over: dict[str, _Part] = {}
        if robot.labelled_fraction is not None:
            count = len(self.train_episodes)
            num_labelled = max(1, round(robot.labelled_fraction * count)) if robot.labelled_fraction else 0
            self.label(labelled_members(count, num_labelled, self.seed))

    def fit(
        self,
        name: str,
        modules: dict[str, nn.Module],
        batch_of: Callable[[int], Batch],
        loss_of: Loss,
        config: StageConfig,
        held_out_of: Callable[[int], Batch] | None,
    ) -> None:
        """Run a stage of this robot's own; hand a shared one over."""
        if name in SHARED_STAGES:
            self.handed_over[name] = _Part(batch_of=batch_of, loss_of=loss_of, held_out_of=held_out_of)
        else:
            super().fit(name, modules, batch_of, loss_of, config, held_out_of)

    def frame_batches(self) -> FrameBatches:
        """Return what makes this robot's batches of frames."""
        return FrameBatches(
            self.store,
            self.model.embodiment.camera,
            batch_size=self.config.tokenizer.batch_size,
            seed=self.seed,
            processes=self.processes,
            memory_budget_bytes=self.config.memory_budget_mb * 2**20,
        )

    def prepare_tokenizer(self, *, is_trained: bool, is_known: bool) -> Callable[[], None]:
        """Start from this robot's mean frame and hand over its frames; return what fits the latents' statistics.

        Args:
            is_trained: Whether the tokenizer is trained at all.
            is_known: Whether the background and statistics were taken over; then they are only fitted anew where the
                tokenizer changes.
        """
        if is_known and not is_trained:
            return lambda: None
        tokenizer, batches = self.model.tokenizer, self.frame_batches()
        loader = batches.loader(self.train_episodes)
        frames = batches.first_frames(
            self.train_episodes, loader, max(1, STATISTICS_FRAMES // self.config.tokenizer.batch_size)
        )
        if not is_known:
            tokenizer.fit_background(frames)
        if is_trained:
            held_out = batches.reader(batches.loader(self.held_out)) if self.config.keep.evaluate_every else None
            self.handed_over["tokenizer"] = _Part(
                batch_of=batches.reader(loader),
                loss_of=lambda batch, generator: tokenizer.loss(batch["frames"], generator),
                held_out_of=held_out,
            )
        return lambda: tokenizer.fit_statistics(frames)


class _JointTrainer:
    """Train the shared stages on all members' batches, by turns."""

    def __init__(
        self,
        members: Mapping[str, _Member],
        robots: Mapping[str, RobotStore],
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        processes: Processes,
        console: Console | None,
    ) -> None:
        self.members, self.config, self.run_dir, self.seed = dict(members), config, run_dir, seed
        self.processes, self.console = processes, console if processes.is_main else Console(quiet=True)
        self.weights = {name: robot.weight for name, robot in robots.items()}
        self.names = list(members)
        self.leader = next(iter(members.values()))
        self.observer = RunObserver(config.watch, run_dir, console=console) if processes.is_main else None

    def train(self, stage: str, *, known: Iterable[str], new: Sequence[str], is_trained: bool) -> None:
        """Train one of the shared stages, and fit what belongs to each robot.

        Args:
            stage: Which.
            known: Robots whose weights were taken over.
            new: Robots whose real actions an earlier predictor was never told.
            is_trained: Whether the stage is asked for; else it only fits what belongs to a robot.
        """
        if stage == "tokenizer":
            finish = [
                member.prepare_tokenizer(is_trained=is_trained, is_known=name in known)
                for name, member in self.members.items()
            ]
            if is_trained:
                self._fit("tokenizer")
            for fit_statistics in finish:
                fit_statistics()
        elif is_trained or (stage == "predictor" and set(known) != set(self.names)):
            for name, member in self.members.items():
                if (is_trained or name not in known) and (member.labelled or stage not in WITH_LABELS):
                    getattr(member, f"train_{stage}")()
            if is_trained:
                self._fit(stage)
        if stage == "predictor" and not is_trained:
            for name in new:
                train_real_actions(self.members[name])
                self.members[name].model.eval()

    def _fit(self, stage: str) -> None:
        """Train a stage on the batches of all who handed over a part of it; nobody does where it has no steps."""
        parts = {name: each.handed_over[stage] for name, each in self.members.items() if stage in each.handed_over}
        if not parts:
            return
        schedule = MixtureSchedule({name: self.weights[name] for name in parts}, seed=self.seed)
        if self.observer:
            self._let_draw(stage)
        began, before = time.monotonic(), seconds_spent(self.run_dir, stage)
        config: StageConfig = getattr(self.config, stage)

        def batch_from(pick: Callable[[_Part], Callable[[int], Batch] | None], number: int) -> Batch:
            name, own = schedule.source(number)
            read = pick(parts[name])
            assert read is not None
            return read(own) | {ROBOT: torch.tensor(self.names.index(name))}

        def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            name = self.names[int(batch[ROBOT])]
            value, metrics = parts[name].loss_of({key: batch[key] for key in batch if key != ROBOT}, generator)
            prefix = f"{name}." if len(self.names) > 1 else ""
            return value, {prefix + key: figure for key, figure in metrics.items()}

        metrics = fit(
            stage,
            nn.ModuleDict(self._modules(stage)),
            lambda number: batch_from(lambda part: part.batch_of, number),
            loss,
            config,
            run_dir=self.run_dir,
            seed=self.seed + len(stage),
            console=self.console,
            held_out_of=lambda number: batch_from(lambda part: part.held_out_of, number),
            conduct=Conduct(processes=self.processes, keep=self.config.keep, observer=self.observer),
        )
        for member in (self.members[name] for name in parts):
            member.metrics[stage] = metrics
            member.seconds[stage] = round(before + time.monotonic() - began, 2)
            member.model.eval()

    def _modules(self, stage: str) -> dict[str, nn.Module]:
        """Return the leader's module, which holds the shared weights, and what the others have of their own in it."""
        part = "predictor" if stage in OF_THE_PREDICTOR else stage
        modules: dict[str, nn.Module] = {part: getattr(self.leader.model, part)}
        for place, member in enumerate(list(self.members.values())[1:], start=1):
            if stage == "tokenizer":
                modules[f"own_{place}"] = nn.ParameterList(own_backgrounds(member.model))
            elif part == "predictor":
                own = told_actions(member.model.predictor)
                modules |= {f"own_{place}{end}": module for end, module in own.items()}
        return modules

    def _let_draw(self, stage: str) -> None:
        """Draw the grids of all robots that have one below each other."""
        assert self.observer is not None
        draws: list[Draw] = [
            member.observer.drawing[stage]
            for member in self.members.values()
            if member.observer and stage in member.observer.drawing and member.labelled
        ]
        if stage == "tokenizer":
            draws = [drawn_reconstruction(each.store, each.shown, each.model) for each in self.members.values()]

        def draw() -> np.ndarray:
            grids = [each() for each in draws]
            columns = min(grid.shape[1] for grid in grids)
            return np.concatenate([grid[:, :columns] for grid in grids])

        if draws:
            self.observer.drawing[stage] = draw


def train_together(
    robots: Mapping[str, RobotStore],
    model_config: WorldModelConfig,
    config: TrainConfig,
    run_dir: Path,
    *,
    seed: int,
    stages: Sequence[str] = STAGES,
    start_from: Family | None = None,
    console: Console | None = None,
) -> Family:
    """Train the models of several robots together and save each in `run_dir / "robots" / NAME / "model"`.

    Args:
        robots: Name to what each robot brings; all frames of the configured size.
        model_config: The models' sizes; those of `start_from` where that is given.
        config: The training's settings; steps and batches of the shared stages count all robots together.
        run_dir: Folder of the run; training resumes from what an earlier call left in it.
        seed: Seeds weights, batches and noise.
        stages: Which stages to train; the others keep their weights.
        start_from: Family whose shared weights are taken over, and all weights of robots that it knows: by name, or,
            where it is a single model, also by the same episodes or robot. Where only `OPTIONAL` stages are trained, a
            single model knows a single robot under any name.
        console: Where progress is shown.

    Raises:
        ValueError: If a store lacks what its model needs, the family has other sizes, or stages are unknown, would
            train nothing of use, or would leave parts of a robot untrained that `start_from` does not know.
        TrainingError: If a loss is not finite or jumps too often, or the run folder is in use or cannot be written.
    """
    processes = _check(robots, stages, config)
    cameras = {name: check_camera(robot.store, robot.camera, model_config) for name, robot in robots.items()}
    torch.manual_seed(seed)
    models = {
        name: WorldModel(
            model_config,
            describe_embodiment(
                robot.store,
                cameras[name],
                model_config.proprioception,
                is_video_alone=robot.labelled_fraction == 0,
            ),
        )
        for name, robot in robots.items()
    }
    labelled = [name for name, robot in robots.items() if robot.labelled_fraction != 0]
    check_useful(stages, list(models.values()), config, is_fresh=start_from is None, has_labels=bool(labelled))
    sources = take_over(start_from, models, {name: robot.store for name, robot in robots.items()}, stages)
    new: list[str] = []
    if start_from is not None:
        new = check_new_robots(models, labelled, sources, start_from, stages)
        if processes.is_main:
            _say_what_is_known(models, sources, new, stages, console)
    family = Family(models)
    with owned(run_dir) if processes.is_main else nullcontext():
        processes.wait()
        members = {
            name: _member(name, robot, models[name], config, run_dir, seed, processes, console)
            for name, robot in robots.items()
        }
        for name, member in members.items():
            check_episodes(member, [*stages, REAL_ACTIONS] if name in new and "predictor" not in stages else stages)
            if name not in sources or learns_anew(models[name], TOLD_WHAT_IS_FELT, stages):
                fit_felt_scale(member)
            if member.labelled and (
                name not in sources or name in new or learns_anew(models[name], TOLD_ACTIONS, stages)
            ):
                fit_action_scale(member)
        for model in models.values():
            prepare(model, processes)
        joint = _JointTrainer(members, robots, config, run_dir, seed=seed, processes=processes, console=console)
        for stage in STAGES:
            with resumable(f"the data of {stage} could not be read or kept"):
                if stage in SHARED_STAGES:
                    joint.train(stage, known=sources, new=new, is_trained=stage in stages)
                elif stage in stages:
                    for member in members.values():
                        if member.labelled or stage not in WITH_LABELS:
                            getattr(member, f"train_{stage}")()
                            member.model.eval()
        for name, member in members.items():
            before = None if start_from is None else sources.get(name, next(iter(start_from.models.values())))
            card = training_card(member, before, STAGES if name in sources else SHARED_STAGES)
            if len(robots) > 1:
                card["trained_together"] = list(robots)
            member.model.card = card
        _finish(family, joint, run_dir)
        processes.wait()
    return family


def _check(robots: Mapping[str, RobotStore], stages: Sequence[str], config: TrainConfig) -> Processes:
    """Check what can be checked before anything is read, and join the processes."""
    check_names(stages)
    bad = [name for name in robots if not name or "/" in name or name.startswith(".")]
    if not robots or bad:
        raise ValueError(f"expected at least one robot, with a name that can be a folder's; got {list(robots)}")
    if config.plannable.is_on and "tokenizer" in stages:
        raise ValueError(
            "trainer.plannable reads the actions and states of one robot; several robots share their tokenizer. Leave "
            "its weights at 0."
        )
    processes = start_processes(config.compute)
    if processes.is_sharding:
        raise ValueError(
            "compute.sharding=fsdp2 splits the weights of one robot's model; several robots share theirs. Set "
            "compute.sharding=ddp."
        )
    return replace(processes, in_parts=len(robots) > 1)


def _member(
    name: str,
    robot: RobotStore,
    model: WorldModel,
    config: TrainConfig,
    run_dir: Path,
    seed: int,
    processes: Processes,
    console: Console | None,
) -> _Member:
    own = replace(config, camera=model.embodiment.camera)
    folder = run_dir / "robots" / name
    folder.mkdir(parents=True, exist_ok=True)
    return _Member(robot, model, own, folder, seed=seed, processes=processes, console=console)


def _say_what_is_known(
    models: Mapping[str, WorldModel],
    sources: Mapping[str, WorldModel],
    new: Sequence[str],
    stages: Sequence[str],
    console: Console | None,
) -> None:
    """Tell of each robot what is taken over, and what a new one has that nothing trains."""
    lines: list[str] = []
    for name, model in models.items():
        what = "known, all of its weights are taken over" if name in sources else "new, it takes over shared weights"
        lines.append(f"start_from: {name} is {what}")
        if name in new and (left := untrained_options(model, stages)):
            lines.append(f"note: {' and '.join(left)} of {name} stays untrained; add it to the stages")
    for line in lines:
        (console or Console(stderr=True)).print(line, markup=False, highlight=False, soft_wrap=True)


def _finish(family: Family, joint: _JointTrainer, run_dir: Path) -> None:
    """Close the observers and save, on the process that writes."""
    if joint.observer:
        joint.observer.close()
        for member in joint.members.values():
            if member.observer:
                member.observer.close()
        family.save(run_dir / "robots")


__all__ = ["RobotStore", "train_together"]
