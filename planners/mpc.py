"""Model predictive control: plan, execute the first action, shift the plan, plan again. The only planner state."""

import time
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Dynamics, Objective, Plan, Planner, PlannerError


class Decision(NamedTuple):
    """Hold one action to execute, the plan it comes from, and the seconds that planning took (0 when reused)."""

    action: Tensor
    plan: Plan
    seconds: float


class MPC:
    """Act in receding horizon; keeps the last plan as the next warm start, and the random generator."""

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics,
        *,
        seed: int,
        replan_every: int = 1,
        tail: Literal["zero", "last"] = "zero",
    ) -> None:
        """Prepare control.

        Args:
            planner: What plans.
            dynamics: What it plans with.
            seed: Seed of the planner's samples.
            replan_every: Steps of a plan that are executed before the next one is made.
            tail: What fills the end of a shifted plan: zero actions, or its last action.
        """
        if not 1 <= replan_every <= planner.horizon:
            raise PlannerError(f"MPC: replan_every={replan_every}; expected 1 to the horizon {planner.horizon}.")
        if tail not in ("zero", "last"):
            raise PlannerError(f"MPC: tail={tail!r}; expected 'zero' or 'last'.")
        self._planner = planner
        self._dynamics = dynamics
        self._replan_every = replan_every
        self._tail = tail
        self._generator = torch.Generator()
        self.reset(seed=seed)

    def reset(self, *, seed: int) -> None:
        """Forget the last plan and seed the generator: call it at the start of every episode."""
        self._generator.manual_seed(seed)
        self._plan: Plan | None = None
        self._num_executed = 0

    @property
    def due(self) -> bool:
        """Tell whether the next act() plans; if not, it executes the last plan and needs no context."""
        return self._plan is None or self._num_executed >= self._replan_every

    @property
    def warm_start(self) -> Float[Tensor, "H A"] | None:
        """Return the last plan without its executed steps, filled at its end."""
        if self._plan is None:
            return None
        rest = self._plan.actions[self._num_executed :]
        low, high = self._dynamics.action_low, self._dynamics.action_high
        last = self._plan.actions[-1] if self._tail == "last" else torch.zeros_like(low).clamp(low, high)
        return torch.cat([rest, last.to(rest).expand(self._num_executed, -1)])

    def act(self, context: Any, objective: Objective) -> Decision:
        """Return the action [A] to execute now."""
        started = time.perf_counter()
        seconds = 0.0
        plan = self._plan
        if plan is None or self.due:
            plan = self._planner.plan(
                self._dynamics, context, objective, warm_start=self.warm_start, generator=self._generator
            )
            self._plan, self._num_executed = plan, 0
            seconds = time.perf_counter() - started
        action = plan.actions[self._num_executed]
        self._num_executed += 1
        return Decision(action, plan, seconds)
