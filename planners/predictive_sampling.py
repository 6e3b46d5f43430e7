"""Predictive sampling (Howell et al. 2022, arXiv 2212.00541): perturb the last plan, take the cheapest.

The simplest planner that profits from a warm start. As published it perturbs the knots of a spline once per decision;
put it into planners.knots for that.
"""

from dataclasses import dataclass

import torch

from planners.base import check_knobs
from planners.noise import annealed, correlated_noise, correlation_factor
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class PredictiveSampling:
    """Plan by comparing perturbations of the best sequence so far, the warm start at first.

    Attributes:
        horizon: H, planned steps.
        num_candidates: S, sequences imagined in every iteration, the one that is perturbed among them.
        num_iterations: Rounds of perturbation; one as published.
        std: Standard deviation of a perturbation in the first iteration, in half action ranges.
        final_std: That of the last of several iterations, at most `std`.
        noise_correlation: Correlation of neighbouring steps, in [0, 1).
        include_zero: Make zero actions a candidate of the first iteration.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 128
    num_iterations: int = 1
    std: float = 0.5
    final_std: float = 0.1
    noise_correlation: float = 0.5
    include_zero: bool = True
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_candidates >= 3, "num_candidates", "at least 3"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (self.std > 0, "std", "above 0"),
                (0 < self.final_std <= self.std, "final_std", "above 0, at most std"),
                (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return self.num_candidates * self.num_iterations

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Perturb and compare; see planners.search.Searcher."""
        best, others = space.centre, space.starts[1:]
        if self.include_zero:
            others = torch.cat([others, space.zero[None]])
        factor = correlation_factor(self.horizon, self.noise_correlation, like=space.low)
        for iteration in range(self.num_iterations):
            known = torch.cat([best[None], others])
            others = others[:0]
            noise = correlated_noise(space.room(self.num_candidates, known), factor, len(space.low), generator)
            std = annealed(self.std, self.final_std, iteration, self.num_iterations) * space.scale
            candidates = torch.cat([known, space.clamp(best + std * noise)])
            told = yield Ask(candidates)
            best = candidates[told.costs.argmin()]
        return Choice()

    plan = plan_by_search
