"""Random shooting: imagine random action sequences and take the cheapest. The baseline that CEM must beat."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planners.base import (
    CandidateLog,
    Dynamics,
    Objective,
    Plan,
    PlannerError,
    action_bounds,
    candidate_costs,
    check_warm_start,
)
from planners.deadline import Deadline, iterations
from planners.noise import correlated_noise, correlation_factor


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Plan by comparing sequences drawn uniformly from the action bounds.

    Attributes:
        horizon: H, planned steps.
        num_candidates: S, sequences imagined in every batch.
        num_iterations: Batches; the same knobs as CEM's compare the same number of sequences.
        noise_correlation: Correlation of neighbouring steps before the map to uniform marginals, in [0, 1).
        include_zero: Make zero actions a candidate of the first batch (the warm start always is one).
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 128
    num_iterations: int = 3
    noise_correlation: float = 0.5
    include_zero: bool = True
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        checks = [
            (self.horizon >= 1, "horizon", "at least 1"),
            (self.num_candidates >= 3, "num_candidates", "at least 3"),
            (self.num_iterations >= 1, "num_iterations", "at least 1"),
            (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
            (self.num_recorded >= 1, "num_recorded", "at least 1"),
        ]
        for valid, name, expected in checks:
            if not valid:
                raise PlannerError(f"RandomShooting: {name}={getattr(self, name)!r}; expected {expected}.")

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        context: Any,
        objective: Objective,
        *,
        warm_start: Tensor | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Return the cheapest sequence; see planners.base.Planner."""
        low, high = action_bounds("RandomShooting", dynamics)
        known = low.new_empty(0, self.horizon, dynamics.action_size)
        if warm_start is not None:
            check_warm_start("RandomShooting", warm_start, self.horizon, dynamics.action_size)
            known = warm_start.to(low).clamp(low, high)[None]
        if self.include_zero:
            zero = torch.zeros_like(low).clamp(low, high).expand(1, self.horizon, -1)
            known = torch.cat([known, zero])
        factor = correlation_factor(self.horizon, self.noise_correlation, like=low)
        log = CandidateLog()
        for iteration in iterations("RandomShooting", self.num_iterations, deadline):
            noise = correlated_noise(self.num_candidates - len(known), factor, dynamics.action_size, generator)
            uniform = torch.erf(noise * 0.5**0.5) * 0.5 + 0.5  # the normal distribution function
            sampled = torch.clamp(torch.lerp(low, high, uniform), low, high)
            candidates = torch.cat([known, sampled])
            known = known[:0]
            costs = candidate_costs("RandomShooting", iteration, dynamics, context, objective, candidates)
            log.add(candidates, costs)
        return log.plan(*log.best(), num_recorded=self.num_recorded)
