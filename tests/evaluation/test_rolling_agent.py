"""An agent that rolls its context on plans from as many frames, and from what it really did."""

from pathlib import Path

import numpy as np
import pytest
import torch

from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.judged import JudgedModel, JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged
from planners import CEM, StepWeights

PLANNER = CEM(horizon=2, num_candidates=8, num_elites=2, num_iterations=1, num_kept=0)


def agent(checkpoint: Path, *, rolling: bool, context: int = 3) -> ModelAgent:
    setup = PlanningSetup(task="reach", planner=PLANNER, objective="latent", weights=StepWeights())
    found = ModelAgent(load_judged(checkpoint, setup), PLANNER, context=context, rolling=rolling)
    found.begin(frame(9, found), np.zeros(1), seed=0)
    return found


def frame(seed: int, of: ModelAgent) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*of.model.image_size, 3), dtype=np.uint8)


def test_before_frames_are_dropped_it_decides_as_an_agent_that_prefills(tiny_checkpoint: Path) -> None:
    rolls, prefills = (agent(tiny_checkpoint, rolling=rolling) for rolling in (True, False))
    for step in range(3):
        mine, theirs = (each.act(frame(step, each), np.zeros(1)) for each in (rolls, prefills))
        assert np.allclose(mine, theirs, atol=1e-4)


def test_its_context_is_bounded_and_knows_what_was_done(tiny_checkpoint: Path) -> None:
    first, second = (agent(tiny_checkpoint, rolling=True) for _ in range(2))
    for step in range(6):
        for each in (first, second):
            each.act(frame(step, each), np.zeros(1))
    assert first.rolled.num_frames == 3
    assert first.rolled.next_position == 6
    first.did(np.ones(2))
    for each in (first, second):
        each.act(frame(7, each), np.zeros(1))
    assert not torch.allclose(first.rolled.keys[0], second.rolled.keys[0])
    first.begin(frame(9, first), np.zeros(1), seed=0)
    assert first.rolled is None


def test_a_model_that_cannot_extend_says_so(tiny_checkpoint: Path) -> None:
    assert JudgedWorldModel.extend is not JudgedModel.extend
    with pytest.raises(ValueError, match="rolling=false"):
        JudgedModel.extend(
            agent(tiny_checkpoint, rolling=True).model, None, torch.zeros(1), torch.zeros(1), max_frames=2
        )
