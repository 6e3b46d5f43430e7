"""Temporal compression: a model whose step is several frames of data is an ordinary one on every other frame."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.imagined_env import ImaginedVectorEnv
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.latent_actions import measure_latent_actions
from embodied_wm.evaluation.speed import step_by_step
from embodied_wm.family import copy_shared
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.stride import chunked, filled, spread, thinned, unchunked
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel
from planners import CEM
from planners.objectives import StepWeights
from sim.tasks import get_task


def test_chunks_hold_every_action_once_and_repeat_the_last_where_one_is_missing() -> None:
    actions = torch.arange(14.0).reshape(7, 2)
    assert chunked(actions, 1) is actions
    chunks = chunked(actions, 3)
    assert chunks.shape == (3, 6)
    torch.testing.assert_close(unchunked(chunks, 3)[:7], actions)
    torch.testing.assert_close(unchunked(chunks, 3)[7:], actions[-1:].expand(2, -1))
    assert thinned(torch.arange(6), 2).tolist() == [1, 3, 5]
    assert thinned(torch.arange(2), 4).tolist() == [1]


def test_states_between_lie_on_straight_lines_from_the_last_known_one() -> None:
    last, states = torch.zeros(1, 3), torch.tensor([2.0, 6.0])[None, :, None, None].expand(4, 2, 1, 3)
    assert filled(last, states, 2)[0, :, 0, 0].tolist() == [1.0, 2.0, 4.0, 6.0]
    assert filled(last, states, 1) is states


@pytest.fixture(scope="module")
def models() -> tuple[WorldModel, WorldModel]:
    """Return a model of stride 2 and an ordinary one of the same weights, which takes two actions as one."""
    body = tiny.make_model().embodiment
    torch.manual_seed(0)
    config = replace(tiny.make_model().config, temporal_stride=2, goal_policy=tiny.PLAIN.goal_policy)
    model = WorldModel(config, body).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ordinary = WorldModel(
        replace(config, temporal_stride=1), replace(body, action_size=4, action_names=tuple("abcd"))
    ).eval()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("action")}
    assert ordinary.load_state_dict(kept, strict=False).unexpected_keys == []
    return model, ordinary


def test_imagination_is_that_of_an_ordinary_model_on_thinned_frame(models: tuple[WorldModel, WorldModel]) -> None:
    model, ordinary = models
    latents, past = torch.randn(6, model.num_tokens, model.token_width), torch.rand(5, 2)
    actions = torch.rand(3, 5, 2)
    context = model.prefill_latents(latents, past)
    pairs = past[1:].reshape(2, 4)  # the first frame, and what led away from it, is not looked at
    expected_context = ordinary.prefill_latents(latents[1::2], pairs)
    torch.testing.assert_close(context.last_latents, expected_context.last_latents)
    imagined = model.imagine(context, actions, generator=torch.Generator().manual_seed(0))
    assert imagined.shape[:2] == (3, 5)
    padded = torch.cat([actions, actions[:, -1:]], dim=1).reshape(3, 3, 4)
    expected = ordinary.imagine(expected_context, padded, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(imagined[:, 1::2], expected[:, :2])
    torch.testing.assert_close(imagined[:, 0], (latents[-1] + expected[:, 0]) / 2)
    torch.testing.assert_close(imagined[:, 4], (expected[:, 1] + expected[:, 2]) / 2)


def test_what_needs_one_action_a_step_says_so(models: tuple[WorldModel, WorldModel]) -> None:
    model, _ = models
    frames = torch.randint(0, 256, (3, tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8)
    context = model.prefill(frames, torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"takes 2 frames of data in one step and cannot extend; use rolling=false"):
        model.extend(context, frames[0], torch.rand(2))
    with pytest.raises(ValueError, match="cannot imagine one frame at a time"):
        model.imagine_frames([context], lambda: torch.rand(1, 2), torch.randn(1, 2, model.num_tokens, 1))
    with pytest.raises(ValueError, match="stands for 2 actions"):
        ImaginedDynamics(model, kind="latent")
    with pytest.raises(ValueError, match="got 2 frames; expected one more than a multiple of 2"):
        model.infer_actions(frames[:2])
    with pytest.raises(ValueError, match=r"got actions of size 3; this model .* wants 2"):
        model.imagine(context, torch.rand(2, 4, 3), generator=torch.Generator())
    assert model.infer_actions(frames).shape == (2, 2)
    with pytest.raises(ValueError, match="temporal_stride=0"):
        WorldModel(replace(model.config, temporal_stride=0), model.embodiment)


def test_an_agent_keeps_as_many_frames_as_its_model_looks_at(models: tuple[WorldModel, WorldModel]) -> None:
    judged = JudgedWorldModel(models[0], get_task("reach"), objective="latent", weights=StepWeights())
    agent = ModelAgent(judged, CEM(horizon=4), context=3)
    assert (judged.stride, agent.context, agent.codes.maxlen, agent.actions.maxlen) == (2, 5, 5, 4)


def test_a_rolling_agent_and_an_environment_refuse_it_at_once(models: tuple[WorldModel, WorldModel]) -> None:
    judged = JudgedWorldModel(models[0], get_task("reach"), objective="latent", weights=StepWeights())
    with pytest.raises(ValueError, match="a step of this model is 2"):
        ModelAgent(judged, CEM(horizon=4), rolling=True)
    with pytest.raises(ValueError, match="cannot be an environment"):
        ImaginedVectorEnv(models[0], lambda rng: pytest.fail("drew a start"), 2)


def test_latents_of_a_context_that_is_spread_are_those_it_looks_at(models: tuple[WorldModel, WorldModel]) -> None:
    model, ordinary = models
    latents = torch.randn(3, model.num_tokens, model.token_width)
    spread_out = spread(latents, 2)
    assert len(spread_out) == model.context_frames(3) == 5
    torch.testing.assert_close(thinned(spread_out, 2), latents)
    context = model.prefill_latents(spread_out, None, kind="latent")
    expected = ordinary.prefill_latents(latents, None, kind="latent")
    torch.testing.assert_close(context.last_latents, expected.last_latents)
    torch.testing.assert_close(context.before_last, expected.before_last)


def test_its_speed_is_that_of_its_steps_in_its_precision(models: tuple[WorldModel, WorldModel]) -> None:
    model, ordinary = models
    set_precision(model.predictor.transformer, "int8")
    steps = step_by_step(model)
    assert (steps.stride, steps.embodiment.action_size, steps.predictor.transformer.precision) == (1, 4, "int8")
    set_precision(model.predictor.transformer, "fp32")
    for name, value in step_by_step(model).predictor.state_dict().items():
        torch.testing.assert_close(value, ordinary.predictor.state_dict()[name])
    assert step_by_step(ordinary) is ordinary


def test_weights_of_other_steps_are_not_taken_over(models: tuple[WorldModel, WorldModel]) -> None:
    model, _ = models
    other = WorldModel(replace(model.config, temporal_stride=1), model.embodiment)
    with pytest.raises(ValueError, match=r"set model\.temporal_stride=2"):
        copy_shared(model, [other])
    with pytest.raises(ValueError, match="temporal_stride=1 cannot take over latent_actions of temporal_stride=2"):
        other.take_over("latent_actions", model)
    other.take_over("tokenizer", model)


def test_its_latent_actions_are_measured_step_by_step(models: tuple[WorldModel, WorldModel], tmp_path: Path) -> None:
    model, ordinary = models
    store = EpisodeStore.open(tiny.write_store(tmp_path / "dot.zarr"))
    found = measure_latent_actions(model, store, train=[0, 1, 2], held_out=[3, 4], context=2, seed=0)
    pairs = [tiny.episode(seed) for seed in range(6)]
    halved = [
        replace(
            each,
            features={
                tiny.CAMERA: each.features[tiny.CAMERA][1::2],
                "observation.state": each.features["observation.state"][1::2],
                "action": np.append(each.features["action"][1:], each.features["action"][-1:], axis=0).reshape(-1, 4),
            },
        )
        for each in pairs
    ]
    with EpisodeStore.create(tmp_path / "half.zarr", features=tiny.features(action_size=4), fps=5.0) as half:
        half.append(halved)
    half = EpisodeStore.open(tmp_path / "half.zarr")
    expected = measure_latent_actions(ordinary, half, train=[0, 1, 2], held_out=[3, 4], context=2, seed=0)
    assert found["r2"]["value"] == pytest.approx(expected["r2"]["value"], abs=1e-4)
    assert found["latent_mse_code"]["value"] == pytest.approx(expected["latent_mse_code"]["value"], rel=1e-4)


def test_it_is_trained_on_thinned_frame_and_all_actions(tmp_path: Path) -> None:
    store = EpisodeStore.open(tiny.write_store(tmp_path / "dot.zarr"))
    config = replace(tiny.PLAIN, temporal_stride=2)
    model = train_world_model(store, config, tiny.training(2, sequence_length=5), tmp_path / "run", seed=0)
    assert model.predictor.real_in[0].in_features == 4  # pyright: ignore[reportAttributeAccessIssue]
    data = LatentEpisodes(store, model.tokenizer, camera=tiny.CAMERA, episodes=[0], features=["action"])
    sampler = data.sampler(length=4, batch_size=8, seed=0, stride=2)
    batch = sampler.batch(0)
    assert int(sampler.starts.max()) == tiny.ROWS - 7  # a window is rows 0, 2, 4, 6
    for latents, actions in zip(batch["latents"], batch["action"], strict=True):
        row = int((data.features["action"] == actions[0, :2]).all(1).nonzero()[0])
        torch.testing.assert_close(latents, data.latents[row : row + 7 : 2])
        torch.testing.assert_close(actions[:3].reshape(6, 2), data.features["action"][row : row + 6])
    loaded = WorldModel.load(tmp_path / "run" / "model")
    context = loaded.prefill_latents(data.latents[:5], data.features["action"][:4])
    assert loaded.imagine(context, torch.rand(2, 3, 2), generator=torch.Generator()).shape[:2] == (2, 3)
