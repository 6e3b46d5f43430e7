"""Models with tokens of proprioception, judged and planning in MuJoCo: they feel what the robot feels and no more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.baselines import BaselineConfig
from embodied_wm.evaluation.branches import BranchConfig
from embodied_wm.evaluation.imagination import judge_imagination
from embodied_wm.evaluation.judged import PROPRIOCEPTION, QUANTITIES, JudgedWorldModel, encode_seen
from embodied_wm.evaluation.lineup import train_baselines
from embodied_wm.evaluation.planning import Arena
from embodied_wm.training.latents import LatentEpisodes, felt_by
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import train_world_model
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.collect import collect, features
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

TASK = get_task("reach")
PLANNER = CEM(horizon=3, num_candidates=8, num_iterations=1, num_elites=2, num_kept=1)
WEIGHTS = StepWeights()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, WorldModel, Path]:
    """Return a store of `reach`, and a model of it that was trained for two steps."""
    folder = tmp_path_factory.mktemp("felt_reach")
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in features(TASK, tiny.SIZE).items()
    }
    with EpisodeStore.create(folder / "s.zarr", features=specs, fps=10.0, metadata={"robot": "reach"}) as store:
        found = collect("reach", num_episodes=3, seed=0, image_size=tiny.SIZE, num_workers=1, num_rows=12)
        store.append([Episode(features=episode["features"], info=episode["info"]) for episode in found])
    store = EpisodeStore.open(folder / "s.zarr")
    config = replace(tiny.MODEL, proprioception=PROPRIOCEPTION)
    return store, train_world_model(store, config, tiny.training(), folder / "run", seed=0), folder / "run"


@pytest.mark.render
def test_what_is_felt_in_mujoco_is_what_the_store_holds(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    store, model, _ = trained
    judged = JudgedWorldModel(model, TASK, objective="state", weights=WEIGHTS)
    frames = torch.from_numpy(store.read("observation.images.top", 0, 5))
    codes = encode_seen(judged, frames, store.read("sim.physics", 0, 5))
    felt = torch.from_numpy(store.read(PROPRIOCEPTION, 0, 5))
    assert torch.equal(codes, model.encode(frames, felt))
    assert model.proprioception is not None
    assert torch.allclose(model.proprioception.decode(codes), felt, atol=1e-5)


@pytest.mark.render
def test_imagination_is_judged_and_an_episode_planned(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    _, model, _ = trained
    judged = JudgedWorldModel(model, TASK, objective="state", weights=WEIGHTS)
    config = BranchConfig(num_branch_points=2, num_candidates=6, horizon=3)
    found = judge_imagination(TASK, judged, PLANNER, config, weights=WEIGHTS, seed=0).measures
    assert {"psnr", "latent_mse", "state_error", "spearman", "spearman_true"} <= set(found)
    arena = Arena(TASK, image_size=judged.image_size, camera=judged.camera)
    costs = [arena.run(ModelAgent(judged, PLANNER, context=2), evaluation_pairs("reach", 1, 0)[0])[0] for _ in range(2)]
    arena.close()
    assert np.array_equal(*costs)


@pytest.mark.render
def test_policies_without_search_feel_too(trained: tuple[EpisodeStore, WorldModel, Path], tmp_path: Path) -> None:
    store, model, _ = trained
    data = LatentEpisodes(
        store, model.tokenizer, camera=model.embodiment.camera, episodes=[0, 1], features=["action"],
        felt=felt_by(model),
    )  # fmt: skip
    config = BaselineConfig(width=16, stage=StageConfig(num_steps=3, batch_size=8))
    checkpoint = tmp_path / "model"  # of a robot that is named otherwise than the task, as that of an import may be
    WorldModel(model.config, replace(model.embodiment, robot="planar arm")).save(checkpoint)
    agents = train_baselines(checkpoint, data, tmp_path, task="reach", seed=0, config=config)
    agent = agents["behaviour_cloning"]()
    size = (*model.config.tokenizer.image_size, 3)
    agent.begin(np.zeros(size, np.uint8), np.zeros(5), 0)
    assert agent.act(np.full(size, 200, np.uint8), np.zeros(5)).shape == (2,)


def test_a_model_that_feels_what_no_task_tells_is_refused() -> None:
    readouts = {QUANTITIES: (TASK.quantity_names, TASK.quantity_units), "observation.force": (("force",), ("N",))}
    embodiment = Embodiment(camera="observation.images.top", action_size=2, readouts=readouts)
    model = WorldModel(replace(tiny.MODEL, proprioception="observation.force"), embodiment)
    with pytest.raises(ValueError, match=r"tasks tell 'observation\.state' alone"):
        JudgedWorldModel(model, TASK, objective="state", weights=WEIGHTS)
