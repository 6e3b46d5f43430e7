"""Proposals mixed into any planner: what a policy, a model's action marginal or the data would do are candidates too.

As the policy's trajectories in TD-MPC2 (arXiv 2310.16828), but as a wrapper: every planner here takes further sequences
to start from.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import PlannerError, Proposals, check_knobs, check_sequences
from planners.cem import CEM
from planners.search import Ask, Choice, Search, Searcher, Space, plan_by_search


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedActions:
    """Propose stretches of recorded episodes: the data's own marginal, which needs no model.

    Attributes:
        episodes: Actions of each episode [T, A]; those shorter than a horizon are not used.
    """

    episodes: tuple[Float[Tensor, "_ A"], ...]

    def __call__(self, context: Any, num: int, horizon: int, generator: torch.Generator) -> Tensor:
        """Return stretches, every start in the data equally likely."""
        windows = [episode.unfold(0, horizon, 1) for episode in self.episodes if len(episode) >= horizon]
        if not windows:
            raise PlannerError(f"RecordedActions: no episode is as long as the horizon {horizon}.")
        every = torch.cat(windows)
        chosen = torch.randint(len(every), (num,), generator=generator, device=generator.device)
        return every[chosen.to(every.device)].transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Proposing:
    """Plan with proposals among the first candidates.

    Attributes:
        planner: Plans.
        num_proposals: Proposals per plan; they take the place of as many sampled candidates.
        proposals: Gives them; None asks the objective (planners.Guided), or else the dynamics' own `propose`.
        around: Search around the first proposal, with the warm start among the candidates, instead of around the warm
            start as without proposals. For a policy that knows the goal; one that does not knows no better place.
    """

    planner: Searcher = field(default_factory=CEM)
    num_proposals: int = 16
    proposals: Proposals | None = None
    around: bool = False

    def __post_init__(self) -> None:
        """Raise PlannerError for a useless number."""
        check_knobs(self, [(self.num_proposals >= 1, "num_proposals", "at least 1")])

    @property
    def horizon(self) -> int:
        """Return H."""
        return self.planner.horizon

    @property
    def num_iterations(self) -> int:
        """Return the planner's iterations."""
        return self.planner.num_iterations

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines at most."""
        return self.planner.num_sequences

    @property
    def num_recorded(self) -> int:
        """Return how many candidates a Plan records at most."""
        return self.planner.num_recorded

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Ask for proposals, then search; see planners.search.Searcher."""
        given = _proposed(self, space, generator)
        known = torch.cat([space.centre[None], space.starts[1:]])
        starts = torch.cat([given[:1], known, given[1:]] if self.around else [known, given])
        return (yield from self.planner.search(replace(space, starts=starts), generator))

    plan = plan_by_search


@dataclass(frozen=True, kw_only=True)
class BestProposal:
    """Plan without search: the cheapest of some proposals; with one, a policy alone, and what it is imagined to cost.

    Warm starts are not looked at: a policy decides anew at every step.

    Attributes:
        horizon: H, planned steps.
        num_proposals: Proposals that are imagined.
        proposals: As for `Proposing`.
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_proposals: int = 1
    proposals: Proposals | None = None
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_proposals >= 1, "num_proposals", "at least 1"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_iterations(self) -> int:
        """Return 1."""
        return 1

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines."""
        return self.num_proposals

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Ask for proposals, and for their costs; see planners.search.Searcher."""
        yield Ask(_proposed(self, space, generator))
        return Choice()

    plan = plan_by_search


def _proposed(planner: Proposing | BestProposal, space: Space, generator: torch.Generator) -> Tensor:
    """Return checked proposals [N, H, A] within the bounds."""
    name = type(planner).__name__
    proposals = planner.proposals or space.propose
    if proposals is None:
        raise PlannerError(
            f"{name}: neither {type(space.dynamics).__name__} nor the objective has a `propose`; expected dynamics "
            "that propose actions, an objective that is planners.Guided, or proposals=... a callable "
            f"(planners.Proposals). Inside Knots actions are knots: put {name} around Knots."
        )
    given = proposals(space.context, planner.num_proposals, planner.horizon, generator)
    return space.clamp(check_sequences(name, "a proposal", given.to(space.low), planner.horizon, len(space.low)))
