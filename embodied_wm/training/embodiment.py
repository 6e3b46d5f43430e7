"""What a store says of the robot that a model of it belongs to, and whether a store and a model fit."""

import math
from typing import TYPE_CHECKING

import torch

from embodied_wm.data.cameras import camera_names, frame_shape
from embodied_wm.data.normalize import compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.embodiment import OUTCOMES, Embodiment
from embodied_wm.world_model import WorldModel, WorldModelConfig

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

READOUT_FEATURES = ("sim.quantities", "observation.state", "sim.contact", *OUTCOMES)
"""What is read from latents where a store has it."""


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


def describe_embodiment(store: EpisodeStore, camera: str, proprioception: str = "") -> Embodiment:
    """Read the embodiment that a model of this store belongs to.

    Args:
        store: The store.
        camera: Feature of the frames.
        proprioception: Feature that becomes tokens; it is read out, too.

    Raises:
        ValueError: If the store has no one-dimensional `action`.
    """
    action = store.features.get("action")
    if action is None or len(action.shape) != 1:
        raise ValueError(f"{store.path} needs a feature 'action' of shape (A,); it has: {', '.join(store.features)}")
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
    """Raise ValueError unless a store has the features that a model was trained on, in the same sizes."""
    camera, size = model.embodiment.camera, model.config.tokenizer.frame_size
    if frame_shape(store.features, camera) != (*size, 3):
        raise ValueError(
            f"{store.path}: the model wants {camera!r} of {size[0]}x{size[1]}x3; the store has "
            f"{ {name: each.shape for name, each in store.features.items()} }. "
            "Import or collect with these cameras and this image_size."
        )
    felt = store.features.get(model.config.proprioception)
    if model.proprioception is not None and (felt is None or felt.shape != (model.proprioception.size,)):
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


def fit_scales(trainer: "Trainer") -> None:
    """Set the scales of actions; episodes that are too short, and NaN, are reported before training."""
    store, model, config = trainer.store, trainer.model, trainer.config
    forced = config.self_forcing.length if config.self_forcing.num_steps else 0
    longest = (max(config.sequence_length, forced) - 1) * model.stride + 1
    index_windows(store.episode_ends, trainer.train_episodes, longest)
    labelled = [trainer.train_episodes[index] for index in trainer.labelled]
    index_windows(store.episode_ends, labelled, model.config.latent_actions.history * model.stride + 1)
    for name in model.embodiment.readouts:
        compute_statistics(store, name, labelled)
    if model.proprioception is not None:
        felt = compute_statistics(store, model.config.proprioception, trainer.train_episodes)
        model.proprioception.fit_statistics(felt)
    statistics = compute_statistics(store, "action", labelled)
    model.actions.mean.copy_(torch.from_numpy(statistics.mean))
    model.actions.std.copy_(torch.from_numpy(statistics.std).clamp_min(1e-4))
    model.action_low.copy_(torch.from_numpy(statistics.minimum))
    model.action_high.copy_(torch.from_numpy(statistics.maximum))
