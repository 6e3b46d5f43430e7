"""A store of a moving dot and a world model of some thousand weights: enough to train, save, imagine and damage."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.goal_policy import GoalPolicyConfig
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.self_forcing import Rollouts
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.temporal_distance import TemporalDistanceConfig
from embodied_wm.tokenizer.actions import LatentActionConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizerConfig
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.stages import STAGES
from embodied_wm.training.train import TrainConfig
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel, WorldModelConfig

SIZE = 16
ROWS = 12
CAMERA = "observation.images.top"
MODEL = WorldModelConfig(
    tokenizer=FrameTokenizerConfig(image_size=(SIZE, SIZE), channels=(8, 16), bottleneck=BottleneckConfig(width=8)),
    latent_actions=LatentActionConfig(width=16),
    predictor=PredictorConfig(transformer=TransformerConfig(width=32, depth=1, num_heads=2, hidden=32), window=8),
    temporal_distance=TemporalDistanceConfig(components=2, intervals=3, width=16),
    goal_policy=GoalPolicyConfig(width=16, max_ahead=4),
)
PLAIN = replace(MODEL, goal_policy=GoalPolicyConfig())
"""The same without a goal policy, for models that do not imagine frame by frame."""
OVERRIDES = (
    f"model.tokenizer.image_size=[{SIZE},{SIZE}]",
    "model.tokenizer.channels=[8,16]",
    "model.tokenizer.bottleneck.width=8",
    "model.latent_actions.width=16",
    "model.predictor.window=8",
    "model.predictor.transformer.width=32",
    "model.predictor.transformer.depth=1",
    "model.predictor.transformer.num_heads=2",
    "model.predictor.transformer.hidden=32",
    "model.temporal_distance.components=2",
    "model.temporal_distance.intervals=3",
    "model.temporal_distance.width=16",
    "model.goal_policy.width=16",
    "model.goal_policy.max_ahead=4",
    "trainer.sequence_length=6",
)
"""The same sizes for the command line."""


def training(num_steps: int = 2, **changes: float) -> TrainConfig:
    """Return a training of a few steps per stage, with averaged predictor weights."""
    stage = StageConfig(num_steps=num_steps, batch_size=4)
    ema = StageConfig(num_steps=num_steps, batch_size=4, ema_decay=0.9)
    distillation = DistillationConfig(num_steps=num_steps, batch_size=4)
    forcing = SelfForcingConfig(num_steps=num_steps, batch_size=4, rollouts=Rollouts(context=2, horizon=4))
    stages = dict.fromkeys(STAGES, stage) | {"predictor": ema, "distillation": distillation, "self_forcing": forcing}
    return TrainConfig(**stages, **({"sequence_length": 6} | changes))  # type: ignore[arg-type]


def command_line(num_steps: int = 2) -> list[str]:
    """Return the overrides of `embodied-wm train` that make what `MODEL` and `training` are."""
    steps = [
        f"trainer.{stage}.{key}={value}"
        for stage in STAGES
        for key, value in (("num_steps", num_steps), ("batch_size", 4))
    ]
    return [*OVERRIDES, *steps, "trainer.watch.trackers=[]", "report=false"]


def features(*, size: int = SIZE, action_size: int = 2, camera: str = CAMERA) -> dict[str, FeatureSpec]:
    """Describe the store's features."""
    return {
        camera: FeatureSpec(dtype="uint8", shape=(size, size, 3)),
        "observation.state": FeatureSpec(dtype="float32", shape=(2,), names=("x", "y"), units=("px", "px")),
        "action": FeatureSpec(dtype="float32", shape=(action_size,), names=tuple("abc"[:action_size])),
    }


def episode(seed: int, *, rows: int = ROWS, size: int = SIZE, action_size: int = 2, camera: str = CAMERA) -> Episode:
    """Return an episode in which actions move a bright dot over a dark frame."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (rows, action_size)).astype(np.float32)
    place = rng.uniform(3, size - 3, 2)
    frames, states = np.full((rows, size, size, 3), 20, np.uint8), np.zeros((rows, 2), np.float32)
    for row in range(rows):
        x, y = place.round().astype(int)
        frames[row, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 230
        states[row] = place
        place = np.clip(place + 2 * actions[row, :2].mean() * np.array([1, -1]), 0, size - 1)
    return Episode(features={camera: frames, "observation.state": states, "action": actions}, info={"seed": seed})


def write_store(path: Path, episodes: Sequence[Episode] | None = None, **sizes: int | str) -> Path:
    """Write a store of the given episodes, or of six ordinary ones, and return its path."""
    chosen = [episode(seed, **sizes) for seed in range(6)] if episodes is None else episodes  # type: ignore[arg-type]
    with EpisodeStore.create(path, features=features(**sizes), fps=10.0, metadata={"robot": "dot"}) as store:  # type: ignore[arg-type]
        store.append(chosen)
    return path


def make_model() -> WorldModel:
    """Return a model whose every weight is at work, as after training; it has no readout of temporal distance."""
    torch.manual_seed(0)
    embodiment = Embodiment(
        camera=CAMERA,
        action_size=2,
        action_names=("a", "b"),
        readouts={"observation.state": (("x", "y"), ("px", "px"))},
    )
    config = replace(MODEL, temporal_distance=TemporalDistanceConfig())
    model = WorldModel(config, embodiment, card={"seed": 0})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
