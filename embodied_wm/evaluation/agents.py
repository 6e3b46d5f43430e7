"""Agents of the closed-loop benchmark: each sees what it may see and returns an action.

The world model's planner, the oracle (the same planner on MuJoCo), random and zero actions, and goal policies without
search.
"""

import time
from collections import deque
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embodied_wm.evaluation.baselines import GoalPolicy
from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.oracle import OracleDynamics, oracle_objective
from embodied_wm.world_model import WorldModel
from planners.base import Objective, Planner
from planners.mpc import MPC, Decision
from planners.objectives import StepWeights
from sim.tasks.base import Task


class Agent(Protocol):
    """Act in one episode after another.

    Attributes:
        needs_frames: Whether `act` and `begin` read frames; where not, none are rendered.
        seconds: Time of every decision so far, from its input to its action.
    """

    needs_frames: bool
    seconds: list[float]

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Start an episode. Only the oracle may look at `goal_physics`."""
        ...

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return an action [A]. Only the oracle may look at `physics`."""
        ...


class RandomAgent:
    """Act uniformly at random, or not at all."""

    needs_frames = False

    def __init__(self, action_size: int, *, scale: float) -> None:
        """Prepare; scale 1 draws from [-1, 1], 0 always returns zero."""
        self.action_size, self.scale = action_size, scale
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Seed the actions."""
        self.rng = np.random.default_rng(seed)

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return a random (or zero) action."""
        return self.scale * self.rng.uniform(-1.0, 1.0, size=self.action_size)


class OracleAgent:
    """Plan with MuJoCo as the dynamics, from the true state to the true goal."""

    needs_frames = False

    def __init__(self, task: Task, planner: Planner, weights: StepWeights, *, num_threads: int = 2) -> None:
        self.task, self.weights = task, weights
        self.control = MPC(planner, OracleDynamics(task, num_threads=num_threads), seed=0)
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Take the true goal."""
        self.control.reset(seed=seed)
        self.objective = oracle_objective(self.task, goal_physics, self.weights)

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Plan from the true state."""
        began = time.perf_counter()
        action = self.control.act(physics, self.objective).action.numpy()
        self.seconds.append(time.perf_counter() - began)
        return action


class ModelAgent:
    """Plan by imagination: from frames to a goal image, with the last C frames as context.

    Attributes:
        decision: The last one, with the plan that it comes from; None before the first.
    """

    needs_frames = True

    def __init__(self, model: JudgedModel, planner: Planner, *, context: int = 3) -> None:
        self.model = model
        self.control = MPC(planner, model, seed=0)
        self.codes: deque[Tensor] = deque(maxlen=context)
        self.actions: deque[Tensor] = deque(maxlen=max(1, context - 1))
        self.objective: Objective | None = None
        self.decision: Decision | None = None
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Take the goal image and forget the last episode."""
        if goal_frame is None:
            raise ValueError("a model plans towards a goal image; got none")
        self.control.reset(seed=seed)
        self.model.reseed(seed)
        self.codes.clear()
        self.actions.clear()
        self.objective = self.model.objective(torch.from_numpy(goal_frame))

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Encode the newest frame, prefill the context, plan."""
        if frame is None or self.objective is None:
            raise ValueError("ModelAgent.act needs a frame, after begin() gave the goal")
        began = time.perf_counter()
        self.codes.append(self.model.encode(torch.from_numpy(frame)[None])[0])
        past = list(self.actions)[len(self.actions) - len(self.codes) + 1 :]
        none = self.model.action_low.new_zeros(0, self.model.action_size)
        context = self.model.prefill(torch.stack(list(self.codes)), torch.stack(past) if past else none)
        self.decision = self.control.act(context, self.objective)
        self.seconds.append(time.perf_counter() - began)
        self.actions.append(self.decision.action)
        return self.decision.action.cpu().numpy()

    def did(self, action: np.ndarray) -> None:
        """Say that another action than the one returned last was applied, so that the context tells the truth."""
        self.actions[-1] = torch.as_tensor(action).to(self.actions[-1])


class PolicyAgent:
    """Act by one pass of a goal policy."""

    needs_frames = True

    def __init__(self, world_model: WorldModel, policy: GoalPolicy) -> None:
        self.model, self.policy = world_model, policy.eval()
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Encode the goal image."""
        if goal_frame is None:
            raise ValueError("a goal policy acts towards a goal image; got none")
        self.goal = self.model.encode(torch.from_numpy(goal_frame))

    @torch.no_grad()
    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return the policy's action, within the data's bounds."""
        if frame is None:
            raise ValueError("PolicyAgent.act needs a frame")
        began = time.perf_counter()
        action = self.model.actions.denormalize(self.policy(self.model.encode(torch.from_numpy(frame)), self.goal))
        action = torch.maximum(torch.minimum(action, self.model.action_high), self.model.action_low)
        self.seconds.append(time.perf_counter() - began)
        return action.numpy()
