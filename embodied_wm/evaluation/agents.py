"""Agents of the closed-loop benchmark: each sees what it may see and returns an action.

The world model's planner, the oracle (the same planner on MuJoCo), random and zero actions, and goal policies without
search.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from embodied_wm.evaluation.judged import JudgedModel, encode_seen, goal_image, prefill_seen
from embodied_wm.evaluation.oracle import OracleDynamics, oracle_objective
from embodied_wm.goal_policy import GoalPolicy
from embodied_wm.stride import context_frames
from embodied_wm.world_model import WorldModel
from planners.base import Objective, Planner
from planners.control import Control
from planners.mpc import MPC, Decision
from planners.objectives import StepWeights
from sim.tasks.base import Task


class Agent(Protocol):
    """Act in one episode after another.

    Attributes:
        needs_frames: Whether `act` and `begin` read frames; where not, none are rendered.
        seconds: Time of every decision so far, from its input to its action; actions of an earlier plan are none.
    """

    needs_frames: bool
    seconds: list[float]

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Start an episode. Only the oracle may look at `goal_physics`."""
        ...

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return an action [A]. Only the oracle may look at `physics`; a model takes what its robot feels of it."""
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

    def __init__(
        self,
        task: Task,
        planner: Planner,
        weights: StepWeights,
        *,
        control: Control | None = None,
        num_threads: int = 2,
    ) -> None:
        self.task, self.weights = task, weights
        self.control = MPC(planner, OracleDynamics(task, num_threads=num_threads), seed=0, control=control)
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Take the true goal."""
        self.control.reset(seed=seed)
        self.objective = oracle_objective(self.task, goal_physics, self.weights)

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Plan from the true state."""
        decision = self.control.act(physics, self.objective)
        if decision.is_new:
            self.seconds.append(decision.seconds)
        return decision.action.numpy()


class ModelAgent:
    """Plan by imagination: from frames to a goal image, with the last C frames as context.

    C counts the frames that the model looks at; where its step is several frames of data, as many more are kept. The
    context is prefilled anew at each decision, or rolled on from frame to frame, which encodes one frame whatever C
    is, and in which the oldest frames still know what was before them (`embodied_wm.predictor.rolling`). A model that
    remembers is also given all frames of the episode before the context.

    Attributes:
        decision: The last decision, with its context; None before the first.
        record: Every decision so far that made a plan, without its context and candidates.
    """

    needs_frames = True

    def __init__(
        self,
        model: JudgedModel,
        planner: Planner,
        *,
        context: int = 3,
        rolling: bool = False,
        control: Control | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.rolling, self.clock = model, rolling, clock
        if rolling and model.stride > 1:
            raise ValueError(f"rolling=true extends a context by one frame; a step of this model is {model.stride}")
        if rolling and model.remembers:
            raise ValueError(
                "rolling=true keeps no frames from before the window, which this model (predictor.memory > 0) "
                "remembers; use rolling=false"
            )
        self.context = context = context_frames(context, model.stride)
        self.rolled: Any = None
        self.control = MPC(planner, model, seed=0, control=control, clock=clock)
        self.codes: deque[Tensor] = deque(maxlen=context)
        self.actions: deque[Tensor] = deque(maxlen=max(1, context - 1))
        self.past: list[Tensor] = []
        self.objective: Objective | None = None
        self.seconds: list[float] = []
        self.decision: Decision | None = None
        self.record: list[Decision] = []
        self.knows_durations = self.control.control.budget_ms is None

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Take the goal image and forget the last episode, wherever it ended."""
        goal = goal_image(goal_frame, self.model.image_size)
        self.control.reset(seed=seed)
        self.objective = self.model.objective(goal)
        if not self.knows_durations:
            self._learn_durations(goal, goal_physics, self.objective)
            self.control.reset(seed=seed)
        self.codes.clear()
        self.actions.clear()
        self.past.clear()
        self.rolled = None

    def _learn_durations(self, frame: Tensor, physics: np.ndarray, objective: Objective) -> None:
        """Time searches from a context that is as long as those of an episode."""
        code = encode_seen(self.model, frame[None], physics[None])
        codes = torch.cat([code] * self.context)
        rest = torch.zeros_like(self.model.action_low).expand(self.context - 1, -1)
        self.control.learn_durations(self.model.prefill(codes, rest), objective)
        self.knows_durations = True

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Encode the newest frame, prefill the context where a plan is due, plan."""
        if frame is None or self.objective is None:
            raise ValueError("ModelAgent.act needs a frame, after begin() gave the goal")
        began = self.clock()
        if self.model.remembers and len(self.codes) == self.context:
            self.past.append(self.codes[0])
        self.codes.append(encode_seen(self.model, torch.from_numpy(frame)[None], physics[None])[0])
        if self.rolling and self.rolled is not None:
            self.rolled = self.model.extend(self.rolled, self.codes[-1], self.actions[-1], max_frames=self.context)
        elif self.rolling:
            self.rolled = self._prefilled()
        context = self.rolled
        if self.control.due and not self.rolling:
            context = self._prefilled()
        decision = self.control.act(context, self.objective, began=began)
        self.decision = decision
        if decision.is_new:
            self.seconds.append(decision.seconds)
            self.record.append(replace(decision, context=None, plan=decision.plan.without_candidates()))
        self.actions.append(decision.action)
        return decision.action.cpu().numpy()

    def _prefilled(self) -> Any:
        """Return the context of the last frames and the actions between them."""
        past = list(self.actions)[len(self.actions) - len(self.codes) + 1 :]
        none = self.model.action_low.new_zeros(0, self.model.action_size)
        codes = torch.stack(list(self.codes))
        earlier = torch.stack(self.past) if self.past else codes[:0]
        return prefill_seen(self.model, codes, torch.stack(past) if past else none, earlier)

    def did(self, action: np.ndarray) -> None:
        """Say that another action than the one returned last was applied, so that the context tells the truth."""
        self.actions[-1] = torch.as_tensor(action).to(self.actions[-1])


class PolicyAgent:
    """Act by one pass of a goal policy."""

    needs_frames = True

    def __init__(
        self,
        world_model: WorldModel,
        policy: GoalPolicy,
        feel: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Prepare; `feel` takes proprioception from a physics state, for models that have tokens for it."""
        self.model, self.policy, self.feel = world_model, policy.eval(), feel
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Encode the goal image."""
        self.goal = self.model.encode_picture(goal_image(goal_frame, self.model.config.tokenizer.frame_size))

    @torch.no_grad()
    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return the policy's action, within the data's bounds."""
        if frame is None:
            raise ValueError("PolicyAgent.act needs a frame")
        began = time.perf_counter()
        felt = self.feel and torch.from_numpy(self.feel(physics).astype(np.float32))
        now = self.model.encode(torch.from_numpy(frame), felt)
        action = self.model.actions.denormalize(self.policy(now, self.goal))
        action = torch.maximum(torch.minimum(action, self.model.action_high), self.model.action_low)
        self.seconds.append(time.perf_counter() - began)
        return action.numpy()
