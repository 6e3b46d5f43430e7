"""Plan against disagreement: imagine every candidate several times, and make those dear on which the samples differ.

A search finds the action sequences that only imagination believes in; where a generative model's samples disagree it
says so itself (as the penalty on ensembles in Chua et al., arXiv 1805.12114, and MOPO, arXiv 2005.13239).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Dynamics, Guided, Objective, Plan, PlannerError, check_knobs
from planners.cem import CEM
from planners.deadline import Deadline
from planners.objectives import StepWeights
from planners.search import Searcher


class SampledDynamics:
    """Imagine every candidate M times, one call after the other: states [S, H, M, ...].

    The dynamics must draw new noise at each call. That a call may share its noise between candidates is an advantage:
    candidates are then compared on the same M draws.
    """

    def __init__(self, dynamics: Dynamics, num_samples: int) -> None:
        """Wrap dynamics; what else they offer is passed through."""
        self._dynamics, self._num_samples = dynamics, num_samples

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dynamics."""
        return getattr(self._dynamics, name)

    @property
    def action_size(self) -> int:
        """Return A."""
        return self._dynamics.action_size

    @property
    def action_low(self) -> Float[Tensor, " A"]:
        """Return the smallest allowed action."""
        return self._dynamics.action_low

    @property
    def action_high(self) -> Float[Tensor, " A"]:
        """Return the largest allowed action."""
        return self._dynamics.action_high

    def imagine(self, context: Any, actions: Float[Tensor, "S H A"]) -> Float[Tensor, "S H M *state"]:
        """Return M samples of the state after every action."""
        return torch.stack([self._dynamics.imagine(context, actions) for _ in range(self._num_samples)], dim=2)


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Cost of samples that differ: the std over M samples, root mean square over the state's dimensions.

    Attributes:
        weights: How much each step counts.
    """

    weights: StepWeights = field(default_factory=StepWeights)

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S] of trajectories [S, H, M, ...], in the unit of the state."""
        if trajectory.ndim < 4 or trajectory.shape[2] < 2:
            raise PlannerError(
                f"Disagreement: the trajectory has shape {tuple(trajectory.shape)}; expected [S, H, M, ...] with "
                "M at least 2 samples. Imagine with planners.cautious.SampledDynamics."
            )
        variance = trajectory.var(dim=2, correction=0).flatten(2).mean(2)
        return self.weights.reduce((variance + torch.finfo(variance.dtype).tiny).sqrt())


@dataclass(frozen=True, kw_only=True, eq=False)
class OverSamples:
    """Mean of an objective over M samples of each candidate, and what its spread costs.

    Attributes:
        objective: Takes trajectories [S, H, ...].
        risk: Weight of the std of the costs over samples; 0 trusts the mean, above 0 avoids what may go wrong.
    """

    objective: Objective
    risk: float = 0.0

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S] of trajectories [S, H, M, ...]."""
        costs = torch.stack([self.objective(sample, actions) for sample in trajectory.unbind(2)])
        if not self.risk:
            return costs.mean(0)
        return costs.mean(0) + self.risk * (costs.var(0, correction=0) + torch.finfo(costs.dtype).tiny).sqrt()


@dataclass(frozen=True, kw_only=True)
class Cautious:
    """Plan as another planner does, with a penalty where samples of imagination disagree.

    Attributes:
        planner: Plans.
        num_samples: M, samples of every candidate; imagining takes M times as long.
        disagreement: Weight of `Disagreement` of the states, in units of cost per unit of state.
        risk: Weight of the std of the costs over samples.
        weights: How much each step's disagreement counts.
    """

    planner: Searcher = field(default_factory=CEM)
    num_samples: int = 3
    disagreement: float = 0.0
    risk: float = 1.0
    weights: StepWeights = field(default_factory=StepWeights)

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.num_samples >= 2, "num_samples", "at least 2"),
                (self.disagreement >= 0, "disagreement", "at least 0"),
                (self.risk >= 0, "risk", "at least 0"),
            ],
        )

    @property
    def horizon(self) -> int:
        """Return H."""
        return self.planner.horizon

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines at most, each sample counted."""
        return self.num_samples * self.planner.num_sequences

    def plan(
        self,
        dynamics: Dynamics,
        context: Any,
        objective: Objective,
        *,
        warm_start: Float[Tensor, "*N H A"] | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Return the best plan by the mean over samples and the penalties; see planners.base.Planner."""
        means, spread = OverSamples(objective=objective, risk=self.risk), Disagreement(weights=self.weights)

        def cost(trajectory: Tensor, actions: Tensor) -> Tensor:
            costs = means(trajectory, actions)
            return costs + self.disagreement * spread(trajectory, actions).to(costs) if self.disagreement else costs

        return self.planner.plan(
            SampledDynamics(dynamics, self.num_samples),
            context,
            Guided(objective=cost, propose=objective.propose) if isinstance(objective, Guided) else cost,
            warm_start=warm_start,
            generator=generator,
            deadline=deadline,
        )
