"""Proposals mixed into any planner: what a policy, a model's action marginal or the data would do are candidates too.

As the policy's trajectories in TD-MPC2 (arXiv 2310.16828), but as a wrapper: every planner here takes further sequences
to start from.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import PlannerError, check_sequences
from planners.cem import CEM
from planners.search import Search, Searcher, Space, plan_by_search


@runtime_checkable
class Proposals(Protocol):
    """Give action sequences that are worth a try in a context."""

    def __call__(
        self, context: Any, num: int, horizon: int, generator: torch.Generator, /
    ) -> Float[Tensor, "num horizon A"]:
        """Return `num` sequences; they are put into the bounds by the caller."""
        ...


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
        planner: Plans; around the warm start as without proposals.
        num_proposals: Proposals per plan; they take the place of as many sampled candidates.
        proposals: Gives them; None asks the dynamics, which must have `propose`, a planners.proposing.Proposals.
    """

    planner: Searcher = field(default_factory=CEM)
    num_proposals: int = 16
    proposals: Proposals | None = None

    def __post_init__(self) -> None:
        """Raise PlannerError for a useless number."""
        if self.num_proposals < 1:
            raise PlannerError(f"Proposing: num_proposals={self.num_proposals}; expected at least 1.")

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
        proposals = self.proposals or getattr(space.dynamics, "propose", None)
        if proposals is None:
            raise PlannerError(
                f"Proposing: {type(space.dynamics).__name__} has no `propose`; expected dynamics that propose actions, "
                "or proposals=... a callable (planners.proposing.Proposals). Inside Knots actions are knots: put "
                "Proposing around Knots."
            )
        given = proposals(space.context, self.num_proposals, self.horizon, generator)
        checked = check_sequences("Proposing", "a proposal", given.to(space.low), self.horizon, len(space.low))
        starts = torch.cat([space.centre[None], space.starts[1:], space.clamp(checked)])
        return (yield from self.planner.search(replace(space, starts=starts), generator))

    plan = plan_by_search
