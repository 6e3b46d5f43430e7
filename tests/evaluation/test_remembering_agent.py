"""A model with a memory trains, is saved, and is told by its agent what has left the context."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.branches import BranchConfig, branch_starts
from embodied_wm.evaluation.growth import _decision
from embodied_wm.evaluation.imagination import ImaginationJudge
from embodied_wm.evaluation.imagine import imagine_episode
from embodied_wm.evaluation.imagined_env import Imagination, ImaginedEnvConfig
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.report import load_report
from embodied_wm.evaluation.speed import imagination_pair
from embodied_wm.evaluation.training_report import write_training_report
from embodied_wm.predictor.memory import recall
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig
from planners import CEM, StepWeights
from sim.tasks import get_task

PLANNER = CEM(horizon=2, num_candidates=8, num_elites=2, num_iterations=1, num_kept=0)
TRAINING = replace(tiny.training(), distillation=DistillationConfig(), self_forcing=SelfForcingConfig())


def train(config: WorldModelConfig, folder: Path) -> WorldModel:
    stages = ("tokenizer", "latent_actions", "adapter", "predictor")
    store = EpisodeStore.open(tiny.write_store(folder / "store.zarr"))
    train_world_model(store, config, TRAINING, folder / "run", seed=0, stages=stages).save(folder / "model")
    return WorldModel.load(folder / "model")


@pytest.fixture(scope="module")
def remembers(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    config = replace(tiny.PLAIN, predictor=replace(tiny.MODEL.predictor, window=3, memory=2))
    return train(config, tmp_path_factory.mktemp("memory"))


def judged(model: WorldModel) -> JudgedWorldModel:
    other = copy(model)  # without the readouts of the made-up robot, which are no quantities of a task
    other.embodiment = replace(model.embodiment, readouts={})
    return JudgedWorldModel(other, get_task("reach"), objective="latent", weights=StepWeights())


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


def test_a_stride_of_two_has_a_memory_of_every_frame(tmp_path: Path) -> None:
    config = replace(
        tiny.PLAIN, temporal_stride=2, predictor=replace(tiny.MODEL.predictor, window=3, memory=2, action_token=False)
    )
    model = train(config, tmp_path)
    latents, actions = torch.randn(9, 1, 8), torch.zeros(4, 4, 2)
    found = [model.imagine(model.prefill_latents(latents[-3:], None, past=past), actions, generator=torch.Generator())
             for past in (latents[:3], latents[3:6])]  # fmt: skip
    assert found[0].shape == (4, 4, 1, 8)
    assert (found[0] - found[1]).abs().max() > 1e-6


def test_an_imagined_episode_and_a_branch_remember_what_was_before(
    remembers: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def counted(past: torch.Tensor, latents: torch.Tensor, num: int) -> torch.Tensor | None:
        told.append(len(past))
        return recall(past, latents, num)

    monkeypatch.setattr("embodied_wm.predictor.model.recall", counted)
    store = EpisodeStore.open(tiny.write_store(tmp_path / "store.zarr"))
    imagine_episode(remembers, store, 0, tmp_path / "run", start=5, context_frames=2, horizon=3, seed=0)
    assert told == [5]
    with pytest.raises(ValueError, match=r"num_steps=3 denoising steps.*\[1, 2, 4\]"):
        imagine_episode(
            remembers, store, 0, tmp_path / "r", start=5, context_frames=2, horizon=3, denoising_steps=3, seed=0
        )
    model, task = judged(remembers), get_task("reach")
    (start,) = branch_starts(
        task, BranchConfig(num_branch_points=1, horizon=4, context=2), image_size=model.image_size, camera="top", seed=0
    )
    ImaginationJudge(task, model, weights=StepWeights()).context(start)
    assert told[-1] == len(start.earlier_frames) == len(start.earlier_physics) > 0


def test_its_speed_is_measured_and_it_is_no_environment(remembers: WorldModel) -> None:
    cached, uncached = imagination_pair(remembers, num_candidates=4, context=3, horizon=4, num_steps=1)
    torch.testing.assert_close(cached(), uncached(), atol=1e-4, rtol=1e-4)
    decide = _decision(remembers, 4)
    assert list(decide) == ["prefilled"]
    decide["prefilled"]()
    with pytest.raises(ValueError, match=r"predictor\.memory=0"):
        Imagination(remembers, ImaginedEnvConfig(), None)


def test_its_card_says_what_it_remembers_and_what_it_took_over(remembers: WorldModel, tmp_path: Path) -> None:
    remembers.save(tmp_path / "model")
    assert "remembers 2 of those before" in (tmp_path / "model" / "README.md").read_text()
    store = EpisodeStore.open(tiny.write_store(tmp_path / "store.zarr"))
    again = train_world_model(
        store, remembers.config, TRAINING, tmp_path / "run", seed=0, stages=("adapter",), start_from=remembers
    )
    assert again.card["adopted"] == ["tokenizer", "latent_actions"]
    assert again.card["seconds"]["tokenizer"] == remembers.card["seconds"]["tokenizer"]
    report = load_report(write_training_report(tmp_path / "run", again, {}).parent)
    assert list(report["tasks"]) == ["adapter"]
    assert report["run"]["wall_seconds"] == pytest.approx(again.card["seconds"]["adapter"], abs=0.01)


def test_it_cannot_roll(remembers: WorldModel) -> None:
    with pytest.raises(ValueError, match="rolling=true"):
        ModelAgent(judged(remembers), PLANNER, context=2, rolling=True)
