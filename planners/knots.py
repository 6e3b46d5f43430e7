"""Few knots instead of every action: any planner here searches a spline's knots, or actions that are held.

Smooth actions need far fewer numbers than one per step, and a sampler needs far fewer candidates for them (spline
knots: Howell et al. 2022, arXiv 2212.00541). Every interpolation here is linear in the knots, a matrix [H, knots], so
gradients go back through it and a warm start is fitted by least squares. Actions repeated r times are "zero" with H / r
knots.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from planners.base import PlannerError
from planners.cem import CEM
from planners.search import Choice, Search, Searcher, Space, Told, plan_by_search

Interpolation = Literal["zero", "linear", "cubic"]


def interpolation_matrix(num_knots: int, horizon: int, interpolation: Interpolation, *, like: Tensor) -> Tensor:
    """Return [H, knots], the weight of every knot at every step; each row sums to one.

    Knots stand evenly from the first step to the last. "zero" holds each for an equal number of steps (the last ones
    for one less where H is no multiple), "linear" joins them by lines, "cubic" by Hermite polynomials whose slope at a
    knot is that of its neighbours (Catmull-Rom; one-sided at the ends), which may leave the range of the knots.
    """
    steps = torch.arange(horizon, dtype=like.dtype, device=like.device)
    eye = torch.eye(num_knots, dtype=like.dtype, device=like.device)
    if interpolation == "zero" or num_knots == 1:
        return eye[(steps * num_knots / horizon).long()]
    place = steps * (num_knots - 1) / (horizon - 1)
    left = place.long().clamp(max=num_knots - 2)
    part = (place - left)[:, None]
    if interpolation == "linear":
        return torch.lerp(eye[left], eye[left + 1], part)
    slope = torch.gradient(eye, dim=0)[0]
    square, cube = part**2, part**3
    return (
        (2 * cube - 3 * square + 1) * eye[left]
        + (cube - 2 * square + part) * slope[left]
        + (3 * square - 2 * cube) * eye[left + 1]
        + (cube - square) * slope[left + 1]
    )


@dataclass(frozen=True, kw_only=True)
class Knots:
    """Let a planner search the knots of a spline; its horizon is the number of knots.

    Attributes:
        planner: Searches the knots; its noise correlation and exponent are of knots.
        horizon: H, planned steps, at least as many as knots.
        interpolation: "zero" (held actions), "linear" or "cubic".
    """

    planner: Searcher = field(default_factory=lambda: CEM(horizon=4))
    horizon: int = 16
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        """Raise PlannerError for an impossible spline."""
        if not 1 <= self.planner.horizon <= self.horizon:
            raise PlannerError(
                f"Knots: the planner's horizon={self.planner.horizon} is the number of knots; expected 1 to the "
                f"horizon {self.horizon}."
            )
        if self.interpolation not in ("zero", "linear", "cubic"):
            raise PlannerError(f"Knots: interpolation={self.interpolation!r}; expected 'zero', 'linear' or 'cubic'.")

    @property
    def num_iterations(self) -> int:
        """Return the planner's iterations."""
        return self.planner.num_iterations

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines at most."""
        return self.planner.num_sequences + 1

    @property
    def num_recorded(self) -> int:
        """Return how many candidates a Plan records at most."""
        return self.planner.num_recorded

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Search the knots; see planners.search.Searcher.

        The warm start's knots are where the planner starts; the warm start itself is one candidate more, so that
        nothing is lost by fitting it.
        """
        basis = interpolation_matrix(self.planner.horizon, self.horizon, self.interpolation, like=space.low)
        fitted = space.clamp(basis.pinverse() @ space.starts)
        inner = replace(space, horizon=self.planner.horizon, starts=fitted, dynamics=None, propose=None)
        search = self.planner.search(inner, generator)
        ask, exact = next(search), space.starts[:1]
        while True:
            smooth = basis @ ask.actions
            actions = space.clamp(smooth)
            told = yield ask._replace(actions=torch.cat([actions, exact]))
            exact = exact[:0]
            try:
                ask = search.send(_to_knots(told, basis, actions == smooth))
            except StopIteration as end:
                return _to_actions(end.value, basis, space)

    plan = plan_by_search


def _to_knots(told: Told, basis: Tensor, is_free: Tensor) -> Told:
    """Return costs and gradients of knots; where an action was put back into the bounds it has no slope."""
    count = len(is_free)
    gradient = None if told.gradient is None else basis.T @ (told.gradient[:count] * is_free)
    return Told(told.costs[:count], gradient)


def _to_actions(choice: Choice, basis: Tensor, space: Space) -> Choice:
    """Return a choice of knots as one of actions."""
    chosen = None if choice.actions is None else space.clamp(basis @ choice.actions)
    carried = None if choice.carried is None else space.clamp(basis @ choice.carried)
    return Choice(chosen, choice.cost, carried)
