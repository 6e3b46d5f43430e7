"""Model predictive path integral control (Williams et al., ICRA 2017, arXiv 1707.02342, algorithm 2).

Candidates are the mean plus noise; the new mean is their average, weighted by exp(-cost / temperature). Several
iterations per decision, and noise that falls from one to the next, are as in DIAL-MPC (Xue et al., arXiv 2409.15610).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planners.base import check_knobs
from planners.noise import annealed, correlated_noise, correlation_factor
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """Plan by averaging candidates with weights that fall exponentially with their costs.

    Attributes:
        horizon: H, planned steps.
        num_candidates: S, sequences imagined in every iteration.
        num_iterations: Averages per decision; one as published.
        temperature: Lambda: how much dearer a candidate is whose weight is 1/e of the cheapest one's.
        is_relative: Count the temperature in standard deviations of the iteration's costs, so that it does not depend
            on the objective's unit; False counts it in the unit of the cost, as published.
        std: Standard deviation of the noise in the first iteration, in half action ranges.
        final_std: That of the last iteration, at most `std`; the same as published.
        noise_correlation: Correlation of neighbouring steps, in [0, 1); 0 as published.
        control_weight: Share of the control cost lambda * mean / std^2 * noise that importance sampling asks for, in
            [0, 1]; 1 as published, 0 leaves the objective alone to decide.
        include_mean: Make the mean a candidate of every iteration.
        include_zero: Make zero actions a candidate of the first iteration.
        choose: "mean" takes the weighted mean, as published, which costs imagining one more sequence; "best" the
            cheapest candidate of all iterations.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 128
    num_iterations: int = 3
    temperature: float = 0.1
    is_relative: bool = True
    std: float = 0.5
    final_std: float = 0.2
    noise_correlation: float = 0.5
    control_weight: float = 0.0
    include_mean: bool = True
    include_zero: bool = True
    choose: Literal["best", "mean"] = "mean"
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_candidates >= 3, "num_candidates", "at least 3"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (self.temperature > 0, "temperature", "above 0"),
                (self.std > 0, "std", "above 0"),
                (0 < self.final_std <= self.std, "final_std", "above 0, at most std"),
                (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
                (0 <= self.control_weight <= 1, "control_weight", "in [0, 1]"),
                (self.choose in ("best", "mean"), "choose", "'best' or 'mean'"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return self.num_candidates * self.num_iterations + (self.choose == "mean")

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Average and sample again; see planners.search.Searcher."""
        mean = space.centre
        factor = correlation_factor(self.horizon, self.noise_correlation, like=space.low)
        for iteration in range(self.num_iterations):
            known = [mean[None]] if self.include_mean else []
            if iteration == 0:
                known += [space.starts[1:], *([space.zero[None]] if self.include_zero else [])]
            fixed = torch.cat([space.starts[:0], *known])
            noise = correlated_noise(space.room(self.num_candidates, fixed), factor, len(space.low), generator)
            std = annealed(self.std, self.final_std, iteration, self.num_iterations) * space.scale
            candidates = torch.cat([fixed, space.clamp(mean + std * noise)])
            told = yield Ask(candidates)
            mean = torch.einsum("s,sha->ha", self._weights(told.costs, candidates - mean, mean / std**2), candidates)
            mean = space.clamp(mean)
        if self.choose == "best":
            return Choice()
        told = yield Ask(mean[None], is_compared=False)
        return Choice(mean, float(told.costs[0]))

    def _weights(self, costs: Tensor, noise: Tensor, precision_mean: Tensor) -> Tensor:
        """Return weights [S] that sum to one, from costs [S], noise [S, H, A] and mean / std^2 [H, A]."""
        temperature = self.temperature
        if self.is_relative:
            temperature *= max(float(costs.std(correction=0)), torch.finfo(costs.dtype).tiny)
        control = self.control_weight * torch.einsum("ha,sha->s", precision_mean, noise)
        return torch.softmax(-(costs - costs.min()) / temperature - control, dim=0).to(noise.dtype)

    plan = plan_by_search
