"""Train a world model in stages: frame tokenizer, latent actions, adapter, predictor, readouts, temporal distance.

Each stage resumes where it stopped; a finished stage is loaded, not trained again. The tokenizer and the latent
actions never see an action label; the predictor sees real actions in labelled episodes only, and codes anywhere, so
`labelled_fraction=0.05` is an honest experiment with 5% of the labels (for the readouts' targets too).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.data.loader import WindowLoader, split_episodes
from embodied_wm.data.normalize import compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.predictor.model import ABSENT, LATENT, REAL, ActionInputs
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import Batch, Metrics, StageConfig, fit
from embodied_wm.world_model import Embodiment, WorldModel, WorldModelConfig

READOUT_FEATURES = ("sim.quantities", "observation.state", "sim.contact")
TOKENIZER_WINDOW = 3
CHANGE_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configure the training of a world model.

    Attributes:
        tokenizer: Frame tokenizer stage; a batch is `batch_size` windows of three frames.
        latent_actions: Latent-action stage.
        adapter: Action-adapter stage.
        predictor: Predictor stage.
        readouts: Readout stage.
        temporal_distance: Stage of the steps between latents; left out where the model has no such readout.
        camera: Feature of the frames; "" takes the store's only camera.
        sequence_length: Frames per training window of the predictor.
        held_out_fraction: Last part of the episodes that training never sees.
        labelled_fraction: Part of the training episodes whose action labels (and readout targets) may be used.
        code_fraction: Part of the labelled sequences that are conditioned on latent codes instead of real actions.
    """

    tokenizer: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=1000, batch_size=24, learning_rate=2e-3)
    )
    latent_actions: StageConfig = field(default_factory=lambda: StageConfig(num_steps=1500, batch_size=128))
    adapter: StageConfig = field(default_factory=lambda: StageConfig(num_steps=800, batch_size=256))
    predictor: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=1000, batch_size=32, learning_rate=2e-3, ema_decay=0.995)
    )
    readouts: StageConfig = field(default_factory=lambda: StageConfig(num_steps=800, batch_size=256))
    temporal_distance: StageConfig = field(default_factory=lambda: StageConfig(num_steps=1500, batch_size=256))
    camera: str = ""
    sequence_length: int = 10
    held_out_fraction: float = 0.1
    labelled_fraction: float = 1.0
    code_fraction: float = 0.15


def choose_camera(store: EpisodeStore, wanted: str) -> str:
    """Return the feature name of the wanted camera, or of the only one.

    Raises:
        ValueError: If there is none, several and none is named, or no such one.
    """
    cameras = [name for name, spec in store.features.items() if spec.is_image]
    if wanted in cameras:
        return wanted
    if wanted or len(cameras) != 1:
        raise ValueError(
            f"{store.path} has the cameras: {', '.join(cameras) or 'none'}; got camera={wanted!r}. "
            f"{'Name one of them with camera=NAME.' if cameras else 'A world model needs frames.'}"
        )
    return cameras[0]


def describe_embodiment(store: EpisodeStore, camera: str) -> Embodiment:
    """Read the embodiment that a model of this store belongs to.

    Raises:
        ValueError: If the store has no one-dimensional `action`.
    """
    action = store.features.get("action")
    if action is None or len(action.shape) != 1:
        raise ValueError(f"{store.path} needs a feature 'action' of shape (A,); it has: {', '.join(store.features)}")
    readouts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for name in READOUT_FEATURES:
        spec = store.features.get(name)
        if spec is not None and len(spec.shape) == 1 and spec.shape[0]:
            size = spec.shape[0]
            names = spec.names or tuple(f"{name}[{index}]" for index in range(size))
            readouts[name] = (tuple(names), tuple(spec.units) or ("",) * size)
    robot = str(store.metadata.get("robot", store.metadata.get("task", "unknown")))
    return Embodiment(
        camera=camera,
        action_size=action.shape[0],
        action_names=tuple(action.names),
        fps=store.fps,
        readouts=readouts,
        robot=robot,
    )


def check_compatible(store: EpisodeStore, model: WorldModel) -> None:
    """Raise ValueError unless a store has the features that a model was trained on, in the same sizes."""
    camera, size = model.embodiment.camera, model.config.tokenizer.image_size
    spec = store.features.get(camera)
    if spec is None or spec.shape != (*size, 3):
        raise ValueError(
            f"{store.path}: the model wants {camera!r} of {size[0]}x{size[1]}x3; the store has "
            f"{ {name: each.shape for name, each in store.features.items()} }. "
            "Import or collect with these cameras and this image_size."
        )
    action = store.features.get("action")
    if action is None or action.shape != (model.embodiment.action_size,):
        raise ValueError(
            f"{store.path}: the model wants actions of size {model.embodiment.action_size}; the store has "
            f"{action.shape if action else 'none'}. Use a store of the same robot ({model.embodiment.robot})."
        )


class Trainer:
    """Hold what the stages share: the store, the model, the run's folder and seed."""

    def __init__(
        self,
        store: EpisodeStore,
        model: WorldModel,
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        console: Console | None,
    ) -> None:
        self.store, self.model, self.config = store, model, config
        self.run_dir, self.seed, self.console = run_dir, seed, console
        train, self.held_out = split_episodes(store.num_episodes, config.held_out_fraction)
        self.train_episodes = [int(index) for index in train]
        order = np.random.default_rng(seed).permutation(len(self.train_episodes))
        num_labelled = max(1, round(config.labelled_fraction * len(order)))
        self.labelled = sorted(int(index) for index in order[:num_labelled])
        self.is_labelled = torch.zeros(len(order), dtype=torch.bool)
        self.is_labelled[self.labelled] = True
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, Metrics] = {}
        self.data: LatentEpisodes | None = None

    def fit(self, name: str, modules: dict[str, nn.Module], batch_of: Any, loss_of: Any, config: StageConfig) -> None:
        """Run one stage and note its time and last metrics."""
        began = time.monotonic()
        self.metrics[name] = fit(
            name,
            nn.ModuleDict(modules),
            batch_of,
            loss_of,
            config,
            run_dir=self.run_dir,
            seed=self.seed + len(name),
            console=self.console,
        )
        self.seconds[name] = round(time.monotonic() - began, 2)

    def latents(self) -> LatentEpisodes:
        """Encode the training episodes, once."""
        if self.data is None:
            features = ["action", *self.model.embodiment.readouts]
            self.data = LatentEpisodes(
                self.store,
                self.model.tokenizer,
                camera=self.model.embodiment.camera,
                episodes=self.train_episodes,
                features=features,
                console=self.console,
            )
        return self.data

    def train_tokenizer(self) -> None:
        """Train the frame tokenizer on windows of three frames, then fix the latents' statistics."""
        config, tokenizer = self.config.tokenizer, self.model.tokenizer
        camera = self.model.embodiment.camera
        loader = WindowLoader(
            self.store,
            episodes=self.train_episodes,
            length=TOKENIZER_WINDOW,
            batch_size=config.batch_size,
            features=[camera],
            seed=self.seed,
        )
        frames = np.concatenate([loader.batch(step)[camera][:, 0] for step in range(max(1, 1024 // config.batch_size))])
        tokenizer.fit_background(torch.from_numpy(frames))
        self.fit(
            "tokenizer",
            {"tokenizer": tokenizer},
            lambda step: {"frames": torch.from_numpy(loader.batch(step)[camera])},
            lambda batch, generator: tokenizer.loss(batch["frames"], generator),
            config,
        )
        tokenizer.fit_statistics(torch.from_numpy(frames))

    def train_latent_actions(self) -> None:
        """Train codes on latents alone."""
        config, module = self.config.latent_actions, self.model.latent_actions
        length = module.config.history + 1
        sampler = self.latents().sampler(length=length, batch_size=config.batch_size, seed=self.seed)
        self.fit(
            "latent_actions",
            {"latent_actions": module},
            sampler.batch,
            lambda batch, _: module.loss(batch["latents"]),
            config,
        )

    def train_adapter(self) -> None:
        """Fit the adapter between real actions and codes on the labelled episodes."""
        model, config = self.model, self.config.adapter
        length = model.latent_actions.config.history + 1
        sampler = self.latents().sampler(
            length=length, batch_size=config.batch_size, seed=self.seed, members=self.labelled
        )

        def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            with torch.no_grad():
                codes = model.latent_actions.encode(batch["latents"])[:, -1]
            latents = batch["latents"][:, -2]
            latents = latents + 0.05 * torch.randn(latents.shape, generator=generator)
            return model.adapter.loss(latents, model.actions.normalize(batch["action"][:, -2]), codes)

        self.fit("adapter", {"adapter": model.adapter}, sampler.batch, loss, config)

    def train_predictor(self) -> None:
        """Train the predictor by diffusion forcing on windows of latents."""
        config, predictor = self.config.predictor, self.model.predictor
        sampler = self.latents().sampler(
            length=self.config.sequence_length, batch_size=config.batch_size, seed=self.seed
        )
        predictor.fit_change(torch.cat([sampler.batch(step)["latents"] for step in range(CHANGE_BATCHES)]))
        self.fit(
            "predictor",
            {"predictor": predictor},
            sampler.batch,
            lambda batch, g: predictor.loss(
                batch["latents"],
                conditioning(self.model, batch, self.is_labelled[batch["episode"]], self.config.code_fraction, g),
                g,
            ),
            config,
        )

    def train_readouts(self) -> None:
        """Fit the readouts on latents of real frames of the labelled episodes."""
        model, data = self.model, self.latents()
        sampler = data.sampler(
            length=1, batch_size=self.config.readouts.batch_size, seed=self.seed, members=self.labelled
        )
        rows = torch.cat([torch.arange(data.ends[-1])[data.rows_of(member)] for member in self.labelled])
        for name in model.embodiment.readouts:
            model.readout(name).fit_statistics(data.features[name][rows])
        if model.embodiment.readouts:
            loss = readout_loss(model)
            self.fit("readouts", {"readouts": model.readouts}, sampler.batch, loss, self.config.readouts)

    def train_temporal_distance(self) -> None:
        """Fit the steps between latents on transitions of all episodes, where the model has that readout."""
        config = self.config.temporal_distance
        if self.model.config.temporal_distance.components:
            module = self.model.temporal_distance
            sampler = self.latents().sampler(length=2, batch_size=config.batch_size, seed=self.seed)
            self.fit(
                "temporal_distance",
                {"temporal_distance": module},
                sampler.batch,
                lambda batch, generator: module.loss(batch["latents"], generator),
                config,
            )


def conditioning(
    model: WorldModel, batch: Batch, labelled: Tensor, code_fraction: float, generator: torch.Generator
) -> ActionInputs:
    """Choose, sequence by sequence, what the predictor is told: real actions, codes or nothing.

    Args:
        model: Gives codes and the units of actions.
        batch: "latents" and "action" of a batch of windows.
        labelled: Whether each sequence's action labels may be used, bool [B].
        code_fraction: Part of the labelled sequences that get codes all the same.
        generator: CPU source of the choice.
    """
    size, time_steps = batch["latents"].shape[:2]
    draw = torch.rand(size, 2, generator=generator)
    kind = torch.where(labelled & (draw[:, 0] >= code_fraction), REAL, LATENT)
    kind = torch.where(draw[:, 1] < model.predictor.config.absent_fraction, ABSENT, kind)
    with torch.no_grad():
        codes = model.latent_actions.encode(batch["latents"])
    codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1)
    real = torch.where((kind == REAL)[:, None, None], model.actions.normalize(batch["action"]), 0.0)
    return ActionInputs(kind[:, None].expand(-1, time_steps), real=real, codes=codes)


def readout_loss(model: WorldModel) -> Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]:
    """Return the loss of a model's readouts on the first frame of each window."""

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        parts = {
            name: model.readout(name).loss(batch["latents"][:, 0], batch[name][:, 0], generator)[0]
            for name in model.embodiment.readouts
        }
        return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}

    return loss


STAGES = ("tokenizer", "latent_actions", "adapter", "predictor", "readouts", "temporal_distance")


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
        ValueError: If the store lacks what the model needs, or a stage is unknown.
        TrainingError: If a loss is not finite.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise ValueError(f"unknown training stage {unknown[0]!r}; choose from: {', '.join(STAGES)}")
    camera = choose_camera(store, config.camera)
    if store.features[camera].shape != (*model_config.tokenizer.image_size, 3):
        raise ValueError(
            f"{store.path}: {camera!r} holds frames of {store.features[camera].shape}; the model is configured for "
            f"{(*model_config.tokenizer.image_size, 3)}. Set model.tokenizer.image_size, or import at that image_size."
        )
    torch.manual_seed(seed)
    model = WorldModel(model_config, describe_embodiment(store, camera))
    trainer = Trainer(store, model, config, run_dir, seed=seed, console=console)
    if start_from is not None:
        for name in ("tokenizer", "latent_actions"):
            if name not in stages:
                getattr(model, name).load_state_dict(getattr(start_from, name).state_dict())
    # Episodes that are too short, and NaN: say so before training.
    index_windows(store.episode_ends, trainer.train_episodes, config.sequence_length)
    labelled = [trainer.train_episodes[index] for index in trainer.labelled]
    index_windows(store.episode_ends, labelled, model_config.latent_actions.history + 1)
    for name in model.embodiment.readouts:
        compute_statistics(store, name, labelled)
    statistics = compute_statistics(store, "action", labelled)
    model.actions.mean.copy_(torch.from_numpy(statistics.mean))
    model.actions.std.copy_(torch.from_numpy(statistics.std).clamp_min(1e-4))
    model.action_low.copy_(torch.from_numpy(statistics.minimum))
    model.action_high.copy_(torch.from_numpy(statistics.maximum))
    for name in STAGES:
        if name in stages:
            getattr(trainer, f"train_{name}")()
            model.eval()
    model.card = {
        "store": store.path,
        "fingerprint": store.fingerprint(),
        "source": store.metadata.get("source"),
        "seed": seed,
        "episodes": len(trainer.train_episodes),
        "labelled_episodes": len(trainer.labelled),
        "held_out_episodes": len(trainer.held_out),
        "rows": int(store.episode_lengths[trainer.train_episodes].sum()),
        "steps": {name: getattr(config, name).num_steps for name in trainer.seconds},
        "seconds": trainer.seconds,
        "metrics": trainer.metrics,
    }
    model.save(run_dir / "model")
    return model


__all__ = ["STAGES", "TrainConfig", "Trainer", "check_compatible", "train_world_model"]
