"""Rewards and successes of a store: read from latents, saved with the model, something to plan on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.losses import readout_loss
from embodied_wm.training.train import train_world_model
from embodied_wm.types import FeatureSpec
from embodied_wm.world_model import WorldModel


def rewarded_store(folder: Path) -> EpisodeStore:
    """Return the dot's store with a scalar reward, how far right the dot is, and a success where it is right enough."""
    specs = tiny.features() | {
        "next.reward": FeatureSpec(dtype="float64", shape=()),
        "next.success": FeatureSpec(dtype="bool", shape=(1,)),
    }
    store = EpisodeStore.create(folder, features=specs, fps=10.0)
    for seed in range(12):
        episode = tiny.episode(seed)
        place = episode.features["observation.state"][:, 0].astype(np.float64)
        reward = np.append(place[1:], place[-1])  # of where the action leads to
        features = {**episode.features, "next.reward": reward, "next.success": (reward > 8)[:, None]}
        store.append([replace(episode, features=features)])
    return store


def test_what_an_action_led_to_is_read_from_the_frame_after_it(tmp_path: Path) -> None:
    store = rewarded_store(tmp_path / "rewarded.zarr")
    model = tiny.make_model()
    data = LatentEpisodes(
        store, model.tokenizer, camera=tiny.CAMERA, episodes=[1, 2], features=["next.reward", "observation.state"]
    )
    for place, episode in enumerate((1, 2)):
        told = store.read("next.reward", episode * tiny.ROWS, (episode + 1) * tiny.ROWS)
        read = data.features["next.reward"][data.rows_of(place)].flatten().numpy()
        np.testing.assert_allclose(read[1:], told[:-1], rtol=1e-6)
        assert read[0] == np.float32(told[0])


def test_reward_and_success_of_a_store_are_read_from_latents_and_saved(tmp_path: Path) -> None:
    store = rewarded_store(tmp_path / "rewarded.zarr")
    training = tiny.training(2)
    training = replace(training, readouts=replace(training.readouts, num_steps=400, batch_size=64, learning_rate=3e-3))
    train_world_model(store, tiny.MODEL, training, tmp_path / "run", seed=0)
    model = WorldModel.load(tmp_path / "run" / "model")
    assert model.embodiment.reward_feature == "next.reward"
    assert model.embodiment.readouts["next.reward"] == (("next.reward",), ("",))
    frames = torch.from_numpy(store.read(tiny.CAMERA, 0, 10 * tiny.ROWS))
    latents = model.encode(frames)
    for name in ("next.reward", "next.success"):
        true = store.read(name, 0, 10 * tiny.ROWS).reshape(10, -1).astype(float)[:, :-1].ravel()
        read = model.readout(name)(latents).detach().numpy().reshape(10, -1)[:, 1:].ravel()
        assert np.corrcoef(true, read)[0, 1] > 0.9, name
    batch = {"latents": latents[:4, None], "observation.state": torch.zeros(4, 1, 2)}  # of episodes that tell no reward
    _, parts = readout_loss(model)(batch, torch.Generator())
    assert list(parts) == ["observation.state"]
