"""A planner that polishes another's result: sampling finds the valley, the gradient its bottom.

CEM and gradient together are the model-based optimiser of Bharadhwaj et al. (L4DC 2020, arXiv 2003.08876); here any
search can follow any other.
"""

from dataclasses import dataclass, field, replace

import torch

from planners.base import PlannerError
from planners.cem import CEM
from planners.gradient import Gradient
from planners.search import CandidateLog, Choice, Search, Searcher, Space, logged, plan_by_search


@dataclass(frozen=True, kw_only=True)
class Polished:
    """Plan with one planner, then with another that starts from the best candidates of the first.

    Attributes:
        planner: Plans first.
        polish: Plans on; the cheapest sequence of both is chosen.
        num_polished: Candidates of the first, all different, that the second starts from.
    """

    planner: Searcher = field(default_factory=CEM)
    polish: Searcher = field(default_factory=lambda: Gradient(num_candidates=4, num_iterations=8))
    num_polished: int = 4

    def __post_init__(self) -> None:
        """Raise PlannerError where the two do not fit together."""
        if self.planner.horizon != self.polish.horizon:
            raise PlannerError(
                f"Polished: planner has horizon={self.planner.horizon}, polish horizon={self.polish.horizon}; expected "
                "the same."
            )
        if self.num_polished < 1:
            raise PlannerError(f"Polished: num_polished={self.num_polished}; expected at least 1.")

    @property
    def horizon(self) -> int:
        """Return H."""
        return self.planner.horizon

    @property
    def num_iterations(self) -> int:
        """Return the iterations of both."""
        return self.planner.num_iterations + self.polish.num_iterations

    @property
    def num_sequences(self) -> int:
        """Return how many sequences both imagine."""
        return self.planner.num_sequences + self.polish.num_sequences

    @property
    def num_recorded(self) -> int:
        """Return how many candidates a Plan records at most."""
        return self.planner.num_recorded

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Search twice; see planners.search.Searcher."""
        log = CandidateLog()
        first = yield from logged(self.planner.search(space, generator), log)
        best, _ = log.cheapest(self.num_polished)
        if first.actions is not None:
            best = torch.cat([first.actions[None], best])[: self.num_polished]
        second = yield from logged(self.polish.search(replace(space, starts=best), generator), log)
        actions, cost = second.actions, second.cost
        if actions is None:
            cheapest, costs = log.cheapest(1)
            actions, cost = cheapest[0], float(costs[0])
        carried = None if first.carried is None else torch.cat([actions[None], first.carried[1:]])
        return Choice(actions, cost, carried)

    plan = plan_by_search
