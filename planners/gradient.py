"""Gradient through imagination: Adam (Kingma and Ba 2015, arXiv 1412.6980) on actions, from several starts at once.

Actions are moved in half action ranges and put back into the bounds after every step (projected gradient descent).
Dynamics and objective must be differentiable: our world model is (it records a graph only for actions that require
one), MuJoCo is not. A backward pass costs about twice the forward one, so an imagined sequence here is about three
of a planner that samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.base import check_knobs
from planners.noise import annealed, correlated_noise, correlation_factor
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Plan by following the cost's gradient; the cheapest sequence on the way is chosen.

    Attributes:
        horizon: H, planned steps.
        num_candidates: Sequences that are improved at once: the warm starts, zero actions, and random ones.
        num_iterations: Steps of Adam, the first look at the starts counted.
        learning_rate: First step size, in half action ranges.
        final_rate: Last step size, at most the first.
        initial_std: Standard deviation of random starts around the warm start, in half action ranges.
        noise_correlation: Correlation of neighbouring steps of random starts, in [0, 1).
        include_zero: Make zero actions a start.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 16
    num_iterations: int = 20
    learning_rate: float = 0.2
    final_rate: float = 0.01
    initial_std: float = 0.7
    noise_correlation: float = 0.5
    include_zero: bool = True
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_candidates >= 1, "num_candidates", "at least 1"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (self.learning_rate > 0, "learning_rate", "above 0"),
                (0 < self.final_rate <= self.learning_rate, "final_rate", "above 0, at most learning_rate"),
                (self.initial_std > 0, "initial_std", "above 0"),
                (0 <= self.noise_correlation < 1, "noise_correlation", "in [0, 1)"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return self.num_candidates * self.num_iterations

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Follow the gradient; see planners.search.Searcher."""
        actions = self._starts(space, generator)
        middle, scale = (space.high + space.low) / 2, space.scale
        units = (actions - middle) / scale
        optimiser = torch.optim.Adam([units], lr=self.learning_rate)
        for iteration in range(self.num_iterations):
            told = yield Ask(actions, wants_gradient=True)
            assert told.gradient is not None
            units.grad = told.gradient * scale
            rate = annealed(self.learning_rate, self.final_rate, iteration, self.num_iterations)
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()  # pyright: ignore[reportUnknownMemberType]
            units.clamp_(-1.0, 1.0)
            actions = space.clamp(middle + scale * units)
        return Choice()

    def _starts(self, space: Space, generator: torch.Generator) -> Tensor:
        """Return what is improved [S, H, A]: as many of warm starts, zero and random sequences as there is room for."""
        known = space.starts
        if self.include_zero and len(known) < self.num_candidates:
            known = torch.cat([known, space.zero[None]])
        factor = correlation_factor(self.horizon, self.noise_correlation, like=space.low)
        noise = correlated_noise(space.room(self.num_candidates, known), factor, len(space.low), generator)
        return torch.cat([known, space.clamp(space.centre + self.initial_std * space.scale * noise)])

    plan = plan_by_search
