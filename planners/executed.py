"""Dynamics and objective as a controller sees them: sequences as they will be executed, and the time that they take."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Dynamics, Guided, Objective, Plan
from planners.safety import Safety, zero_action


class Executed:
    """Wrap dynamics for one search: the first actions may be settled already, and changes may be limited.

    What the dynamics offer beyond the protocol is passed through.

    Attributes:
        imagine_s: Seconds spent in imagination so far.
        objective_s: Seconds spent in the objective.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        safety: Safety,
        *,
        previous: Float[Tensor, " A"] | None = None,
        committed: Float[Tensor, "K A"] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take dynamics and what is known of the execution.

        Args:
            dynamics: What imagines.
            safety: Gives the limit of change.
            previous: The action executed last; None at the start of an episode.
            committed: Actions that will be executed first, whatever the plan says.
            clock: Seconds.
        """
        self._dynamics, self._safety, self._clock = dynamics, safety, clock
        self._previous = zero_action(dynamics) if previous is None else previous
        self._committed = committed
        self.imagine_s = self.objective_s = 0.0

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dynamics."""
        return getattr(self._dynamics, name)

    @property
    def action_size(self) -> int:
        """Return A."""
        return self._dynamics.action_size

    @property
    def action_low(self) -> Float[Tensor, " A"]:
        """Return the smallest allowed action."""
        return self._dynamics.action_low

    @property
    def action_high(self) -> Float[Tensor, " A"]:
        """Return the largest allowed action."""
        return self._dynamics.action_high

    def sequences(self, actions: Float[Tensor, "*batch H A"]) -> Float[Tensor, "*batch H A"]:
        """Return what will be executed where these actions are planned."""
        if self._committed is not None:
            settled = self._committed.to(actions).expand(*actions.shape[:-2], -1, -1)
            actions = torch.cat([settled, actions[..., len(self._committed) :, :]], dim=-2)
        if self._safety.max_change is None:
            return actions
        previous = self._previous.to(actions)
        return self._safety.limit(actions, previous, self.action_low.to(actions), self.action_high.to(actions))

    def imagine(self, context: Any, actions: Float[Tensor, "S H A"]) -> Float[Tensor, "S H *state"]:
        """Imagine the sequences as they will be executed."""
        began = self._clock()
        states = self._dynamics.imagine(context, self.sequences(actions))
        _wait_for(states)
        self.imagine_s += self._clock() - began
        return states

    def objective(self, objective: Objective) -> Objective:
        """Return the objective on sequences as they will be executed, timed, with what it proposes.

        Proposals are made as if nothing were settled and no change limited; what is compared, and chosen, is as it will
        be executed.
        """

        def cost(trajectory: Tensor, actions: Tensor) -> Tensor:
            began = self._clock()
            costs = objective(trajectory, self.sequences(actions))
            _wait_for(costs)
            self.objective_s += self._clock() - began
            return costs

        if not isinstance(objective, Guided):
            return cost

        def propose(context: Any, num: int, horizon: int, generator: torch.Generator) -> Tensor:
            began = self._clock()
            proposed = objective.propose(context, num, horizon, generator)
            _wait_for(proposed)
            self.imagine_s += self._clock() - began
            return proposed

        return Guided(objective=cost, propose=propose)

    def plan(self, plan: Plan) -> Plan:
        """Return a plan with its sequences as they will be executed."""
        if self._committed is None and self._safety.max_change is None:
            return plan
        return replace(plan, actions=self.sequences(plan.actions), candidates=self.sequences(plan.candidates))


def _wait_for(values: object) -> None:
    """Wait for a GPU, or its work would be counted where its result is first read; others refuse what is no tensor."""
    if isinstance(values, Tensor) and values.is_cuda:
        torch.cuda.synchronize(values.device)
