"""What a store says of the robot that a model of it belongs to, and whether a store and a model fit."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from embodied_wm.data.cameras import camera_names, frame_shape
from embodied_wm.data.layout import StoreError
from embodied_wm.data.normalize import Normalizer, compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.embodiment import OUTCOMES, Embodiment
from embodied_wm.training.adoption import REAL_ACTIONS
from embodied_wm.training.frames import TOKENIZER_WINDOW
from embodied_wm.types import FeatureSpec
from embodied_wm.world_model import WorldModel, WorldModelConfig

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

READOUT_FEATURES = ("sim.quantities", "observation.state", "sim.contact", *OUTCOMES)
"""What is read from latents where a store has it."""
NO_ACTION = "none: the video came without actions"
"""Name of the one action channel of a model whose store has no actions."""


def choose_camera(store: EpisodeStore, wanted: str) -> str:
    """Return the feature name of the wanted camera or cameras ("first+second"), or of the only one.

    Raises:
        ValueError: If there is none, several and none is named, or no such one.
    """
    cameras = [name for name, spec in store.features.items() if spec.is_image]
    names = camera_names(wanted)
    if wanted and all(name in cameras for name in names):
        if frame_shape(store.features, wanted) is None:
            shapes = ", ".join(f"{name} {store.features[name].shape}" for name in names)
            raise ValueError(f"{store.path}: cameras side by side must be of one size; got {shapes}")
        return wanted
    if wanted or len(cameras) != 1:
        raise ValueError(
            f"{store.path} has the cameras: {', '.join(cameras) or 'none'}; got camera={wanted!r}. "
            f"{'Name one with camera=NAME, or several with camera=NAME+NAME.' if cameras else 'It needs frames.'}"
        )
    return cameras[0]


def describe_embodiment(
    store: EpisodeStore, camera: str, proprioception: str = "", *, is_video_alone: bool = False
) -> Embodiment:
    """Read the embodiment that a model of this store belongs to.

    Args:
        store: The store.
        camera: Feature of the frames.
        proprioception: Feature that becomes tokens; it is read out, too.
        is_video_alone: Whether no label is read, so that there need be no `action`; then it is one number, always 0,
            that goes by the name `NO_ACTION`.

    Raises:
        ValueError: If the store has no one-dimensional `action` and needs one.
    """
    action = store.features.get("action")
    if action is None and is_video_alone:
        action = FeatureSpec(dtype="float32", shape=(1,), names=(NO_ACTION,))
    if action is None or len(action.shape) != 1:
        raise ValueError(
            f"{store.path} needs a feature 'action' of shape (A,); it has: {', '.join(store.features)}. Video without "
            "actions takes part in a training with other robots: data.path=ROBOT.zarr together.stores=[VIDEO.zarr] "
            "together.labelled=[1,0]"
        )
    readouts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    read = READOUT_FEATURES if proprioception in ("", *READOUT_FEATURES) else (*READOUT_FEATURES, proprioception)
    for name in read:
        spec = store.features.get(name)
        if spec is not None and len(spec.shape) <= 1 and (size := math.prod(spec.shape)):
            names = spec.names or (tuple(f"{name}[{index}]" for index in range(size)) if spec.shape else (name,))
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
    """Raise ValueError unless a store has a model's features, in the same sizes, and its actions by the same names."""
    camera, size = model.embodiment.camera, model.config.tokenizer.frame_size
    if frame_shape(store.features, camera) != (*size, 3):
        raise ValueError(
            f"{store.path}: the model wants {camera!r} of {size[0]}x{size[1]}x3; the store has "
            f"{ {name: each.shape for name, each in store.features.items()} }. "
            "Import or collect with these cameras and this image_size."
        )
    felt = store.features.get(model.config.proprioception)
    if model.proprioception is not None and (felt is None or (felt.shape or (1,)) != (model.proprioception.size,)):
        raise ValueError(
            f"{store.path}: the model wants {model.config.proprioception!r} of {model.proprioception.size} numbers "
            f"with each frame; the store has {felt.shape if felt else 'none'}. Use a store of the same robot "
            f"({model.embodiment.robot})."
        )
    action = store.features.get("action")
    if action is None or action.shape != (model.embodiment.action_size,):
        raise ValueError(
            f"{store.path}: the model wants actions of size {model.embodiment.action_size}; the store has "
            f"{action.shape if action else 'none'}. Use a store of the same robot ({model.embodiment.robot})."
        )
    known = model.embodiment.action_names
    if known and action.names and tuple(action.names) != known:
        raise ValueError(
            f"{store.path}: the model was trained on actions named {', '.join(known)}; the store has "
            f"{', '.join(action.names)}. Use a store of the same robot ({model.embodiment.robot})."
        )


def check_camera(store: EpisodeStore, wanted: str, model_config: WorldModelConfig) -> str:
    """Return the feature name of the wanted camera, or of the only one; raise ValueError unless its frames fit."""
    camera = choose_camera(store, wanted)
    tokenizer, shape = model_config.tokenizer, frame_shape(store.features, camera)
    if shape != (*tokenizer.frame_size, 3) or len(camera_names(camera)) != tokenizer.cameras:
        raise ValueError(
            f"{store.path}: {camera!r} holds frames of {shape}; the model is configured for "
            f"{(*tokenizer.frame_size, 3)} of {tokenizer.cameras} camera(s). Set model.tokenizer.image_size and "
            "model.tokenizer.cameras, or import at that image_size."
        )
    return camera


def check_episodes(trainer: "Trainer", stages: Sequence[str]) -> None:
    """Find what would stop a training later: episodes that are too short, and numbers that are not finite.

    Held-out episodes are looked at where their loss is measured; the one that pictures show, where they are drawn.
    Episodes too short for the longest windows are counted on the console: those windows are of the others alone.

    Args:
        trainer: Has the episodes.
        stages: What will be trained.

    Raises:
        ValueError: If a stage could not take windows, or reads numbers that are not finite; the message names the
            store and its own episode numbers.
    """
    store, model, config = trainer.store, trainer.model, trainer.config
    stride, history = model.stride, model.config.latent_actions.history
    labelled = [trainer.train_episodes[index] for index in trainer.labelled]
    steps = [1]
    if {"predictor", "distillation", REAL_ACTIONS} & set(stages):
        steps.append(config.sequence_length)
    if "self_forcing" in stages and config.self_forcing.num_steps and labelled:
        steps.append(config.self_forcing.length)
    if {"latent_actions", "adapter"} & set(stages):
        steps.append(history + 1)
    longest = max((max(steps) - 1) * stride + 1, TOKENIZER_WINDOW if "tokenizer" in stages else 2)
    skipped = _check_windows(store, "training", trainer.train_episodes, longest)
    if labelled and "adapter" in stages:
        _check_windows(store, "labelled", labelled, history * stride + 1)
    if labelled and REAL_ACTIONS in stages:
        _check_windows(store, "labelled", labelled, (config.sequence_length - 1) * stride + 1)
    if skipped and trainer.processes.is_main:
        console = trainer.console or Console(stderr=True)
        console.print(
            f"note: {skipped} of {len(trainer.train_episodes)} training episodes of {store.path} are shorter than a "
            f"window of {longest} rows; stages with windows that long train on the others",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    plannable = config.plannable
    if plannable.state_weight and plannable.state not in model.embodiment.readouts:
        raise ValueError(
            f"trainer.plannable.state={plannable.state}: expected a feature of the store that can be read, one of "
            f"{', '.join(model.embodiment.readouts) or 'none'}; or trainer.plannable.state_weight=0"
        )
    told = ["action", *model.embodiment.readouts] if labelled else []
    felt = [] if model.proprioception is None else [model.config.proprioception]
    measured = trainer.held_out if config.keep.evaluate_every else []
    shown = [trainer.shown] if config.watch.picture_every else []
    if measured:
        _check_windows(store, "held-out", measured, longest)
    for name in dict.fromkeys([*told, *felt]):
        read = set(trainer.train_episodes if name in felt else labelled) | set(measured)
        compute_statistics(store, name, sorted(read | set(shown if name in ("action", *felt) else [])))


def _check_windows(store: EpisodeStore, which: str, episodes: Sequence[int], length: int) -> int:
    """Return how many of some episodes are too short for a window; raise StoreError if all of them are."""
    try:
        return len(index_windows(store.episode_ends, episodes, length).skipped)
    except StoreError as error:
        raise StoreError(
            f"{store.path}, {which} episodes: {error} What sets the length is the longest of trainer.sequence_length "
            "and, if they are trained, trainer.self_forcing.rollouts."
        ) from error


def fit_felt_scale(trainer: "Trainer") -> None:
    """Set the scale of what is felt, if anything is, from all episodes that are trained on; it is no label."""
    store, model = trainer.store, trainer.model
    if model.proprioception is not None:
        felt = compute_statistics(store, model.config.proprioception, trainer.train_episodes)
        model.proprioception.fit_statistics(felt)


def fit_action_scale(trainer: "Trainer") -> None:
    """Set the scale and the bounds of actions, from the labelled episodes."""
    store, model = trainer.store, trainer.model
    labelled = [trainer.train_episodes[index] for index in trainer.labelled]
    statistics = compute_statistics(store, "action", labelled)
    model.actions.load_state_dict(Normalizer.from_statistics(statistics).state_dict())
    model.action_low.copy_(torch.from_numpy(statistics.minimum))
    model.action_high.copy_(torch.from_numpy(statistics.maximum))
