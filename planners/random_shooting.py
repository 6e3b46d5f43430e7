"""Random shooting: imagine random action sequences and take the cheapest. The baseline that every planner must beat."""

from dataclasses import dataclass

import torch

from planners.base import check_knobs
from planners.noise import correlated_noise, correlation_factor
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Plan by comparing sequences drawn uniformly from the action bounds.

    Attributes:
        horizon: H, planned steps.
        num_candidates: S, sequences imagined in every batch.
        num_iterations: Batches; the same knobs as CEM's compare the same number of sequences.
        noise_correlation: Correlation of neighbouring steps before the map to uniform marginals, in [0, 1).
        include_zero: Make zero actions a candidate of the first batch (warm starts always are).
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
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_candidates >= 3, "num_candidates", "at least 3"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return self.num_candidates * self.num_iterations

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Draw and compare; see planners.search.Searcher."""
        known = space.starts
        if self.include_zero:
            known = torch.cat([known, space.zero[None]])
        factor = correlation_factor(self.horizon, self.noise_correlation, like=space.low)
        for _ in range(self.num_iterations):
            noise = correlated_noise(space.room(self.num_candidates, known), factor, len(space.low), generator)
            uniform = torch.erf(noise * 0.5**0.5) * 0.5 + 0.5  # the normal distribution function
            sampled = space.clamp(torch.lerp(space.low, space.high, uniform))
            yield Ask(torch.cat([known, sampled]))
            known = known[:0]
        return Choice()

    plan = plan_by_search
