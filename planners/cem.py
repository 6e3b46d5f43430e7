"""Cross-entropy method (Rubinstein 1999), with the useful parts of iCEM (Pinneri et al. 2020, arXiv 2008.06389).

From iCEM: noise that is correlated along time, elites that stay among the candidates, the mean as a candidate. Kept
elites are imagined anew, so that a stochastic model cannot keep a sequence that was lucky once, and every iteration
imagines the same number of candidates.
"""

from dataclasses import dataclass
from typing import Any, Literal

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
class CEM:
    """Plan by refitting a Gaussian over action sequences to the best candidates.

    Attributes:
        horizon: H, planned steps.
        num_candidates: S, sequences imagined in every iteration.
        num_iterations: Refits.
        num_elites: Candidates that the Gaussian is refitted to.
        initial_std: First standard deviation, in half action ranges.
        min_std: Lower bound of the standard deviation, in half action ranges.
        noise_correlation: Correlation of the noise of neighbouring steps, in [0, 1).
        momentum: Share of the old mean and std that a refit keeps, in [0, 1).
        num_kept: Elites of one iteration that are candidates of the next one too.
        include_mean: Make the Gaussian's mean (the warm start at first) a candidate of every iteration.
        include_zero: Make zero actions a candidate of the first iteration.
        choose: "best" takes the cheapest candidate of all iterations; "mean" the last mean, which costs imagining one
            more sequence and trusts single candidates less.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 128
    num_iterations: int = 3
    num_elites: int = 16
    initial_std: float = 0.7
    min_std: float = 0.05
    noise_correlation: float = 0.5
    momentum: float = 0.1
    num_kept: int = 4
    include_mean: bool = True
    include_zero: bool = True
    choose: Literal["best", "mean"] = "best"
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        fixed = self.num_kept + int(self.include_mean) + int(self.include_zero)
        checks = [
            (self.horizon >= 1, "horizon", "at least 1"),
            (self.num_candidates >= 2, "num_candidates", "at least 2"),
            (self.num_iterations >= 1, "num_iterations", "at least 1"),
            (2 <= self.num_elites <= self.num_candidates, "num_elites", "between 2 and num_candidates"),
            (self.initial_std > 0, "initial_std", "above 0"),
            (0 <= self.min_std <= self.initial_std, "min_std", "between 0 and initial_std"),
            (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
            (0 <= self.momentum < 1, "momentum", "in [0, 1)"),
            (0 <= self.num_kept <= self.num_elites, "num_kept", "between 0 and num_elites"),
            (fixed < self.num_candidates, "num_kept", "small enough to leave sampled candidates"),
            (self.choose in ("best", "mean"), "choose", "'best' or 'mean'"),
            (self.num_recorded >= 1, "num_recorded", "at least 1"),
        ]
        for valid, name, expected in checks:
            if not valid:
                raise PlannerError(f"CEM: {name}={getattr(self, name)!r}; expected {expected}.")

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
        """Return the chosen sequence; see planners.base.Planner."""
        low, high = action_bounds("CEM", dynamics)
        scale = (high - low) / 2
        zero = torch.zeros_like(low).clamp(low, high).expand(self.horizon, -1)
        mean = zero
        if warm_start is not None:
            check_warm_start("CEM", warm_start, self.horizon, dynamics.action_size)
            mean = warm_start.to(low).clamp(low, high)
        std = (self.initial_std * scale).expand(self.horizon, -1)
        factor = correlation_factor(self.horizon, self.noise_correlation, like=low)
        elites = low.new_empty(0, self.horizon, dynamics.action_size)
        log = CandidateLog()
        for iteration in iterations("CEM", self.num_iterations, deadline):
            fixed = [elites[: self.num_kept]]
            if self.include_mean:
                fixed.append(mean[None])
            if self.include_zero and iteration == 0:
                fixed.append(zero[None])
            known = torch.cat(fixed)
            noise = correlated_noise(self.num_candidates - len(known), factor, dynamics.action_size, generator)
            candidates = torch.cat([known, torch.clamp(mean + std * noise, low, high)])
            costs = candidate_costs("CEM", iteration, dynamics, context, objective, candidates)
            log.add(candidates, costs)
            elites = candidates[costs.topk(self.num_elites, largest=False).indices]
            mean = torch.lerp(elites.mean(0), mean, self.momentum)
            std = torch.lerp(elites.std(0, correction=0), std, self.momentum)
            std = torch.maximum(std, self.min_std * scale)
        if self.choose == "best":
            return log.plan(*log.best(), num_recorded=self.num_recorded)
        cost = candidate_costs("CEM", self.num_iterations, dynamics, context, objective, mean[None])
        return log.plan(mean, float(cost[0]), num_recorded=self.num_recorded, num_extra=1)
