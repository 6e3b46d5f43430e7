"""iCEM: sample-efficient cross-entropy method (Pinneri et al., CoRL 2020, arXiv 2008.06389, algorithm 1).

What it adds to CEM: noise of a power-law spectrum, a population that shrinks from iteration to iteration, elites that
stay among the candidates, the mean as a candidate of the last iteration, and elites of one decision, shifted, among
the first candidates of the next (a Plan carries them; planners.mpc shifts). Two departures: kept elites are
imagined anew, as for planners.cem, and what is searched around is a candidate of the first iteration too, so that a
good warm start is not lost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.base import check_knobs
from planners.noise import correlated_noise, power_law_factor
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class ICEM:
    """Plan by iCEM; the cheapest candidate of all iterations is chosen.

    Attributes:
        horizon: H, planned steps.
        num_candidates: Sequences imagined in the first iteration.
        num_iterations: Refits.
        num_elites: Candidates that the Gaussian is refitted to.
        shrink: Factor, at least 1, by which the population falls with every iteration, down to twice the elites.
        initial_std: First standard deviation, in half action ranges.
        min_std: Lower bound of the standard deviation, in half action ranges; 0 as published.
        noise_exponent: The noise's power spectrum is f^-exponent; 0 is white, 2 to 4 for smooth tasks.
        momentum: Share of the old mean and std that a refit keeps, in [0, 1).
        num_kept: Elites that are candidates of the next iteration, and of the next decision.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 128
    num_iterations: int = 3
    num_elites: int = 10
    shrink: float = 1.25
    initial_std: float = 0.5
    min_std: float = 0.0
    noise_exponent: float = 2.0
    momentum: float = 0.1
    num_kept: int = 3
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (self.num_elites >= 2, "num_elites", "at least 2"),
                (self.num_candidates >= 2 * self.num_elites, "num_candidates", "at least twice num_elites"),
                (self.shrink >= 1, "shrink", "at least 1"),
                (self.initial_std > 0, "initial_std", "above 0"),
                (0 <= self.min_std <= self.initial_std, "min_std", "between 0 and initial_std"),
                (self.noise_exponent >= 0, "noise_exponent", "at least 0"),
                (0 <= self.momentum < 1, "momentum", "in [0, 1)"),
                (0 <= self.num_kept <= self.num_elites, "num_kept", "between 0 and num_elites"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def populations(self) -> tuple[int, ...]:
        """Return how many sequences each iteration imagines."""
        sizes = (int(self.num_candidates * self.shrink**-iteration) for iteration in range(self.num_iterations))
        return tuple(max(size, 2 * self.num_elites) for size in sizes)

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return sum(self.populations)

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Refit the Gaussian; see planners.search.Searcher."""
        mean = space.centre
        std = (self.initial_std * space.scale).expand(self.horizon, -1)
        factor = power_law_factor(self.horizon, self.noise_exponent, like=space.low)
        elites = space.starts[1:]
        for iteration, size in enumerate(self.populations):
            is_end = iteration in (0, self.num_iterations - 1)
            known = torch.cat([elites, mean[None]]) if is_end else elites
            noise = correlated_noise(space.room(size, known), factor, len(space.low), generator)
            candidates = torch.cat([known, space.clamp(mean + std * noise)])
            told = yield Ask(candidates)
            best = candidates[told.costs.topk(self.num_elites, largest=False).indices]
            mean, std = self._refit(best, mean, std, space)
            elites = best[: self.num_kept]
        return Choice(carried=torch.cat([mean[None], elites]))

    def _refit(self, elites: Tensor, mean: Tensor, std: Tensor, space: Space) -> tuple[Tensor, Tensor]:
        """Return the new mean and std [H, A]."""
        mean = torch.lerp(elites.mean(0), mean, self.momentum)
        std = torch.lerp(elites.std(0, correction=0), std, self.momentum)
        return mean, torch.maximum(std, self.min_std * space.scale)

    plan = plan_by_search
