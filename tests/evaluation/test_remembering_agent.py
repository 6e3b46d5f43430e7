"""A model with a memory trains, is saved, and is told by its agent what has left the context."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel
from planners import CEM, StepWeights
from sim.tasks import get_task

PLANNER = CEM(horizon=2, num_candidates=8, num_elites=2, num_iterations=1, num_kept=0)


@pytest.fixture(scope="module")
def remembers(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    folder = tmp_path_factory.mktemp("memory")
    config = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, window=3, memory=2))
    stages = ("tokenizer", "latent_actions", "adapter", "predictor")
    store = EpisodeStore.open(tiny.write_store(folder / "store.zarr"))
    training = replace(tiny.training(), distillation=DistillationConfig(), self_forcing=SelfForcingConfig())
    train_world_model(store, config, training, folder / "run", seed=0, stages=stages).save(folder / "model")
    return WorldModel.load(folder / "model")


def judged(model: WorldModel) -> JudgedWorldModel:
    model.embodiment = replace(model.embodiment, readouts={})
    return JudgedWorldModel(model, get_task("reach"), objective="latent", weights=StepWeights())


def test_its_agent_hands_on_every_frame_that_left_the_context(
    remembers: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = judged(remembers), []
    true = model.prefill

    def prefill(codes: torch.Tensor, actions: torch.Tensor, past: torch.Tensor | None = None) -> object:
        told.append((codes, past))
        return true(codes, actions, past)

    monkeypatch.setattr(model, "prefill", prefill)
    agent, frames = ModelAgent(model, PLANNER, context=2), np.random.default_rng(0)
    shown = [frames.integers(0, 256, (*model.image_size, 3), dtype=np.uint8) for _ in range(6)]
    for episode in range(2):
        agent.begin(shown[0], np.zeros(1), seed=0)
        for frame in shown:
            agent.act(frame, np.zeros(1))
        rows = told[episode * 6 : episode * 6 + 6]
        assert [len(codes) for codes, _ in rows] == [1, 2, 2, 2, 2, 2]
        assert [0 if past is None else len(past) for _, past in rows] == [0, 0, 1, 2, 3, 4]
        every = model.encode(torch.from_numpy(np.stack(shown)))
        torch.testing.assert_close(torch.cat([rows[-1][1], rows[-1][0]]), every, atol=1e-5, rtol=1e-5)


def test_what_it_remembers_changes_what_it_imagines(remembers: WorldModel) -> None:
    latents, actions = torch.randn(9, 1, 8), torch.zeros(4, 3, 2)
    found = [
        remembers.imagine(
            remembers.prefill_latents(latents[-2:], None, past=past), actions, generator=torch.Generator()
        )
        for past in (None, latents[:3], latents[3:6])
    ]
    assert (found[0] - found[1]).abs().max() > 1e-6
    assert (found[1] - found[2]).abs().max() > 1e-6


def test_it_cannot_roll(remembers: WorldModel) -> None:
    with pytest.raises(ValueError, match="rolling=true"):
        ModelAgent(judged(remembers), PLANNER, context=2, rolling=True)
