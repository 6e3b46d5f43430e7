"""Train a world model in stages: frame tokenizer, latent actions, adapter, predictor, readouts and more.

Two, between the predictor and the readouts, are left out unless they have steps (`embodied_wm.training.forcing`), the
last two, temporal distance and goal policy, where the model has no such part.
Each stage resumes where it stopped; a finished stage is loaded, not trained again. The latent actions never see an
action label, the tokenizer only those of labelled episodes, and only where `plannable` asks for them; the predictor
sees real actions in labelled episodes only, and codes anywhere, so `labelled_fraction=0.05` is an honest experiment
with 5% of the labels (for the readouts' targets too).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.heads import LINE_ROWS
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
from embodied_wm.training.forcing import check_stages, distilling_loss, self_forcing_loss
from embodied_wm.training.frames import (
    CONTEXT,
    FrameBatches,
    ReadAhead,
    WindowLabels,
    drawn_imagination,
    drawn_reconstruction,
)
from embodied_wm.training.goals import goal_batches, goal_policy_loss
from embodied_wm.training.labels import labelled_members
from embodied_wm.training.latents import LatentEpisodes, LatentSampler, LatentsMode, felt_by
from embodied_wm.training.loop import Batch, Conduct, Loss, Metrics, StageConfig, fit, resumable
from embodied_wm.training.losses import predictor_loss, readout_loss, tokenizer_loss
from embodied_wm.training.observer import RunObserver, seconds_spent
from embodied_wm.training.processes import Processes, prepare, start_processes, whole
from embodied_wm.training.stages import STAGES, check_names, check_useful
from embodied_wm.training.visible import visible_weights
from embodied_wm.world_model import WorldModel, WorldModelConfig

STATISTICS_FRAMES = 1024
CHANGE_BATCHES = 16


class Trainer:
    """Hold what the stages share: the store, the model, the run's folder, seed and processes."""

    def __init__(
        self,
        store: EpisodeStore,
        model: WorldModel,
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        processes: Processes,
        console: Console | None,
    ) -> None:
        self.store, self.model, self.config = store, model, config
        self.run_dir, self.seed, self.processes = run_dir, seed, processes
        self.console = console if processes.is_main else Console(quiet=True)
        train, held_out = split_episodes(store.num_episodes, config.held_out_fraction)
        self.train_episodes = [int(index) for index in train]
        self.held_out = [int(index) for index in held_out]
        count = len(self.train_episodes)
        self.label(labelled_members(count, max(1, round(config.labelled_fraction * count)), seed))
        self.shown = max(self.held_out, key=lambda index: int(store.episode_lengths[index]))
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, Metrics] = {}
        self.data: dict[str, LatentEpisodes] = {}
        self.observer = RunObserver(config.watch, run_dir, console=console) if processes.is_main else None

    def label(self, members: Sequence[int]) -> None:
        """Say which of the training episodes have labels that may be used, by their places."""
        self.labelled = list(members)
        self.is_labelled = torch.zeros(len(self.train_episodes), dtype=torch.bool)
        self.is_labelled[self.labelled] = True

    def told(self, read: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """Return what reads batches of windows and marks all of them as labelled, if this robot has labels at all."""

        def marked(number: int) -> Batch:
            batch = read(number)
            return batch | {"labelled": torch.full_like(batch["episode"], bool(self.labelled), dtype=torch.bool)}

        return marked

    def fit(
        self,
        name: str,
        modules: dict[str, nn.Module],
        batch_of: Callable[[int], Batch],
        loss_of: Loss,
        config: StageConfig,
        held_out_of: Callable[[int], Batch] | None,
    ) -> None:
        """Run one stage and note its time and last metrics."""
        began, before = time.monotonic(), seconds_spent(self.run_dir, name)
        parts = nn.ModuleDict(modules)
        # The predictor is the large part; splitting the others would cost more than it saves.
        sharded = name == "predictor" and self.processes.is_sharding
        spare = deepcopy(parts) if sharded else parts
        self.metrics[name] = fit(
            name,
            parts,
            batch_of,
            loss_of,
            config,
            run_dir=self.run_dir,
            seed=self.seed + len(name),
            console=self.console,
            held_out_of=held_out_of,
            conduct=Conduct(processes=self.processes, keep=self.config.keep, observer=self.observer),
            sharded=sharded,
        )
        if sharded:
            spare.load_state_dict({key: whole(tensor) for key, tensor in parts.state_dict().items()})
            for key in modules:
                setattr(self.model, key, spare[key].eval())
        self.seconds[name] = round(before + time.monotonic() - began, 2)

    def latents(self, part: str = "train") -> LatentEpisodes:
        """Encode the episodes of a part ("train" or "held_out"), once."""
        if part not in self.data:
            features = ["action", *self.model.embodiment.readouts]
            data = self.data[part] = LatentEpisodes(
                self.store,
                self.model.tokenizer,
                camera=self.model.embodiment.camera,
                episodes=self.train_episodes if part == "train" else self.held_out,
                features=[name for name in features if name in self.store.features],
                console=self.console,
                mode=cast(LatentsMode, self.config.latents),
                folder=self.run_dir / "latents" / f"{part}.zarr",
                processes=self.processes,
                felt=felt_by(self.model),
            )
            if "action" not in self.store.features:  # video alone, whose actions nobody is told
                data.features["action"] = torch.zeros(int(data.ends[-1]), 1)
        return self.data[part]

    def samplers(
        self, length: int, config: StageConfig, *, labelled_only: bool = False, stride: int = 0
    ) -> tuple[LatentSampler, Callable[[int], Batch], Callable[[int], Batch] | None]:
        """Return the sampler of training windows, what reads its batches, and what reads held-out ones if wanted.

        Windows are every `stride`-th row, by default the model's own, and come with what it remembers.
        """
        given: Any = {"length": length, "batch_size": config.batch_size, "stride": stride or self.model.stride}
        given["memory"] = self.model.config.predictor.memory
        members = self.labelled if labelled_only else None
        sampler = self.latents().sampler(seed=self.seed, members=members, **given)
        read = self.ahead(sampler.batch)
        if not self.config.keep.evaluate_every:
            return sampler, read, None
        return sampler, read, self.latents("held_out").sampler(seed=self.seed, **given).batch

    def ahead(self, read: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """Return what reads batches of latents ahead, where that is worth it."""
        is_for_gpu = self.processes.device.type == "cuda" and self.config.latents != "online"
        return ReadAhead(read, self.processes.num_readers) if self.config.latents == "zarr" or is_for_gpu else read

    def train_tokenizer(self) -> None:
        """Train the frame tokenizer on windows of three frames, then fix the latents' statistics."""
        config, tokenizer = self.config.tokenizer, self.model.tokenizer
        batches = FrameBatches(
            self.store,
            self.model.embodiment.camera,
            batch_size=config.batch_size,
            seed=self.seed,
            processes=self.processes,
            memory_budget_bytes=self.config.memory_budget_mb * 2**20,
            labels=self._labels(),
        )
        loader = batches.loader(self.train_episodes)
        frames = batches.first_frames(self.train_episodes, loader, max(1, STATISTICS_FRAMES // config.batch_size))
        tokenizer.fit_background(frames)
        held_out_of = batches.reader(batches.loader(self.held_out)) if self.config.keep.evaluate_every else None
        if self.observer:
            self.observer.drawing["tokenizer"] = drawn_reconstruction(self.store, self.shown, self.model)
        loss_of, terms = tokenizer_loss(self.model, self.config.plannable)
        parts: dict[str, nn.Module] = {"tokenizer": tokenizer}
        if terms is not None:
            parts["plannable"] = terms.to(self.processes.device)
        self.fit("tokenizer", parts, batches.reader(loader), loss_of, config, held_out_of)
        tokenizer.fit_statistics(frames)

    def _labels(self) -> WindowLabels | None:
        """Return the labels that the tokenizer's further terms may read; None where they are off."""
        plannable = self.config.plannable
        if not plannable.is_on:
            return None
        measured = self.held_out if self.config.keep.evaluate_every else []
        labelled, state = [self.train_episodes[member] for member in self.labelled], plannable.state
        return WindowLabels(self.store, labelled, measured=measured, state=state if plannable.state_weight else "")

    def train_latent_actions(self) -> None:
        """Train codes on latents alone."""
        config, module = self.config.latent_actions, self.model.latent_actions
        _, read, held_out_of = self.samplers(module.config.history + 1, config)
        self.fit(
            "latent_actions",
            {"latent_actions": module},
            read,
            lambda batch, _: module.loss(batch["latents"]),
            config,
            held_out_of,
        )

    def train_adapter(self) -> None:
        """Fit the adapter between real actions and codes on the labelled episodes."""
        model, config = self.model, self.config.adapter
        _, read, held_out_of = self.samplers(model.latent_actions.config.history + 1, config, labelled_only=True)

        def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            with torch.no_grad():
                codes = model.latent_actions.encode(batch["latents"])[:, -1]
            latents = batch["latents"][:, -2]
            latents = latents + 0.05 * torch.randn(latents.shape, generator=generator).to(latents)
            return model.adapter.loss(latents, model.normalized(batch["action"][:, -2]), codes)

        self.fit("adapter", {"adapter": model.adapter}, read, loss, config, held_out_of)

    def train_predictor(self) -> None:
        """Train the predictor by diffusion forcing on windows of latents."""
        config, predictor = self.config.predictor, self.model.predictor
        sampler, *_ = self.samplers(self.config.sequence_length, config)
        if predictor.masked is not None:
            predictor.masked.codes.fit_to(self.model.tokenizer)
        latents = torch.cat([sampler.numbered(number)["latents"] for number in range(CHANGE_BATCHES)])
        predictor.fit_change(latents)
        if predictor.error_weights is not None:
            predictor.error_weights.copy_(visible_weights(self.model, latents.flatten(0, 1)))
        loss = predictor_loss(self.model, self.config.code_fraction)
        self._fit_predictor("predictor", loss, config, self.config.sequence_length)

    def train_distillation(self) -> None:
        """Make one denoising step of the predictor's many, where that is asked for."""
        config = self.config.distillation
        if config.num_steps:
            loss = distilling_loss(self.model, config, self.config.code_fraction)
            self._fit_predictor("distillation", loss, config, self.config.sequence_length)

    def train_self_forcing(self) -> None:
        """Train the predictor on contexts that it imagined itself, where that is asked for."""
        config = self.config.self_forcing
        if config.num_steps:
            loss = self_forcing_loss(self.model, config, self.config.code_fraction)
            self._fit_predictor("self_forcing", loss, config, config.length)

    def _fit_predictor(self, name: str, loss: Loss, config: StageConfig, length: int) -> None:
        """Run a stage of the predictor on windows of latents, whose episodes' labels may be used or not."""
        _, read, held_out_of = self.samplers(length, config)
        can_draw = self.labelled and not self.processes.is_sharding and self.store.episode_lengths[self.shown] > CONTEXT
        if self.observer and can_draw:
            self.observer.drawing[name] = drawn_imagination(self.store, self.shown, self.model, self.seed)

        def labelled(number: int) -> Batch:
            batch = read(number)
            return batch | {"labelled": self.is_labelled[batch["episode"]]}

        predictor: dict[str, nn.Module] = {"predictor": self.model.predictor}
        self.fit(name, predictor, labelled, loss, config, self.told(held_out_of) if held_out_of else None)

    def train_readouts(self) -> None:
        """Fit the readouts on latents of real frames of the labelled episodes."""
        model, data, config = self.model, self.latents(), self.config.readouts
        _, read, held_out_of = self.samplers(1, config, labelled_only=True)
        every = torch.arange(data.ends[-1])
        rows = torch.cat([every[data.rows_of(member)] for member in self.labelled])
        parts: dict[str, nn.Module] = {"readouts": model.readouts}
        if model.proprioception is not None:
            parts["proprioception"] = model.proprioception
        if model.embodiment.readouts:
            for name in model.embodiment.readouts:
                model.readout(name).fit_statistics(data.features[name][rows])
            if any(model.readout(name).line is not None for name in model.embodiment.readouts):
                self._fit_lines(rows)
            loss = readout_loss(model, with_guess=True)
            self.fit("readouts", parts, read, loss, config, held_out_of)

    def _fit_lines(self, rows: Tensor) -> None:
        """Find the lines of the readouts from some of the rows."""
        model, data = self.model, self.latents()
        some = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[:LINE_ROWS]]
        latents = torch.cat([data.windows(part, 1)[:, 0] for part in some.split(self.config.readouts.batch_size)])
        for name in model.embodiment.readouts:
            targets = data.features[name][some]
            model.readout(name).fit_line(latents, targets)
            if model.proprioception is not None and name == model.config.proprioception:
                model.proprioception.fit_guess(latents, targets)

    def train_temporal_distance(self) -> None:
        """Fit the steps between latents on transitions of all episodes, where the model has that readout."""
        config = self.config.temporal_distance
        if self.model.config.temporal_distance.components:
            module = self.model.temporal_distance
            _, read, held_out_of = self.samplers(2, config, stride=1)
            self.fit(
                "temporal_distance",
                {"temporal_distance": module},
                read,
                lambda batch, generator: module.loss(batch["latents"], generator),
                config,
                held_out_of,
            )

    def train_goal_policy(self) -> None:
        """Fit what proposes ways to a goal on labelled episodes, where the model has that part."""
        config, model = self.config.goal_policy, self.model
        if model.config.goal_policy.width:
            given: Any = {
                "batch_size": config.batch_size,
                "max_ahead": model.config.goal_policy.max_ahead,
                "seed": self.seed,
            }
            read = self.ahead(goal_batches(self.latents(), members=self.labelled, **given))
            held_out_of = goal_batches(self.latents("held_out"), **given) if self.config.keep.evaluate_every else None
            loss = goal_policy_loss(model, model.goal_policy)
            self.fit("goal_policy", {"goal_policy": model.goal_policy}, read, loss, config, held_out_of)


TAKEN_OVER = ("tokenizer", "latent_actions")


def train_world_model(
    store: EpisodeStore,
    model_config: WorldModelConfig,
    config: TrainConfig,
    run_dir: Path,
    *,
    seed: int,
    stages: Sequence[str] = STAGES,
    start_from: WorldModel | None = None,
    console: Console | None = None,
) -> WorldModel:
    """Train a world model and save it in `run_dir / "model"`.

    Args:
        store: Episodes; the last `held_out_fraction` of them are not read.
        model_config: The model's sizes.
        config: The training's settings.
        run_dir: Folder of the run; training resumes from what an earlier call left in it.
        seed: Seeds weights, batches and noise.
        stages: Which stages to train; the others keep their weights.
        start_from: Model whose tokenizer and latent actions are taken over (for stages that are not trained).
        console: Where progress is shown.

    Raises:
        ValueError: If the store lacks what the model needs, or stages are unknown or would train nothing of use.
        TrainingError: If a loss is not finite or jumps too often, or the run folder is in use or cannot be written.
    """
    check_names(stages)
    camera = check_camera(store, config.camera, model_config)
    processes = start_processes(config.compute)
    torch.manual_seed(seed)
    model = WorldModel(model_config, describe_embodiment(store, camera, model_config.proprioception))
    check_stages(model.predictor, config.distillation, config.self_forcing)
    check_useful(stages, [model], config, is_fresh=start_from is None)
    with owned(run_dir) if processes.is_main else nullcontext():
        processes.wait()
        trainer = Trainer(store, model, config, run_dir, seed=seed, processes=processes, console=console)
        for name in TAKEN_OVER:
            if start_from is not None and name not in stages:
                model.take_over(name, start_from)
        check_episodes(trainer, stages)
        fit_felt_scale(trainer)
        fit_action_scale(trainer)
        prepare(model, processes)
        for name in sorted(set(stages), key=STAGES.index):
            with resumable(f"the data of {name} could not be read or kept"):
                getattr(trainer, f"train_{name}")()
            model.eval()
        model.card = training_card(trainer, start_from, TAKEN_OVER)
        if trainer.observer:
            trainer.observer.close()
            model.save(run_dir / "model")
        processes.wait()
    return model


__all__ = ["STAGES", "TrainConfig", "Trainer", "train_world_model"]
