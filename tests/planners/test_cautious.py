"""Plans that avoid what imagination does not agree with itself about."""

import pytest
import torch
from torch import Tensor

from planners import CEM, Cautious, Deadline, Disagreement, OverSamples, SampledDynamics, StepWeights
from planners.base import PlannerError

HORIZON = 4


class Slippery:
    """Move a point along x by actions; where |y| is small the step is as uncertain as it is long."""

    action_size = 2
    action_low = torch.tensor([-1.0, -1.0])
    action_high = torch.tensor([1.0, 1.0])

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return places [S, H, 2]; all candidates get the same noise."""
        noise = torch.randn(1, actions.shape[1], generator=self.generator)
        y = actions[..., 1].cumsum(1)
        slip = 0.5 * noise * torch.exp(-y.square()) * actions[..., 0]
        return context + torch.stack([(actions[..., 0] + slip).cumsum(1), y], dim=-1)


def forward(trajectory: Tensor, actions: Tensor) -> Tensor:
    """Go to x = 2, and prefer y = 0 a little."""
    return (trajectory[:, -1, 0] - 2).square() + 0.05 * trajectory[..., 1].square().mean(1)


def sideways(planner: CEM | Cautious, seed: int) -> float:
    """Return the mean |y| of a plan."""
    plan = planner.plan(
        Slippery(), torch.zeros(2), forward, generator=torch.Generator().manual_seed(seed), deadline=None
    )
    return float(plan.actions[:, 1].cumsum(0).abs().mean())


def test_a_cautious_planner_leaves_the_uncertain_path() -> None:
    """The penalty on disagreement, and that on risk, each move the path to where samples agree."""
    cem = CEM(horizon=HORIZON, num_candidates=128, num_iterations=6)
    bold = sum(sideways(cem, seed) for seed in range(3)) / 3
    for cautious in (
        Cautious(planner=cem, num_samples=4, disagreement=3.0, risk=0.0),
        Cautious(planner=cem, num_samples=4, disagreement=0.0, risk=2.0),
    ):
        assert sum(sideways(cautious, seed) for seed in range(3)) / 3 > bold + 0.3


def test_disagreement_and_mean_over_samples_are_what_they_say() -> None:
    """Two samples 2 apart have a std of 1, in one of two dimensions; costs 1 and 5 have a mean of 3 and a std of 2."""
    trajectory = torch.zeros(1, 2, 2, 2)
    trajectory[0, 1, 1, 0] = 2.0
    actions = torch.zeros(1, 2, 1)
    assert Disagreement(weights=StepWeights(terminal=0.0))(trajectory, actions).tolist() == pytest.approx([0.5**1.5])
    samples = torch.tensor([[[[1.0], [5.0]]]])

    def first(states: Tensor, _: Tensor) -> Tensor:
        return states[:, 0, 0]

    assert OverSamples(objective=first)(samples, actions).tolist() == [3.0]
    assert OverSamples(objective=first, risk=0.5)(samples, actions).tolist() == pytest.approx([4.0])
    with pytest.raises(PlannerError, match=r"\(1, 2, 2\); expected \[S, H, M, ...\]"):
        Disagreement()(trajectory[:, :, 0], actions)


def test_samples_are_of_calls_and_what_else_dynamics_offer_is_kept() -> None:
    """Each sample is a call of its own; gradients have no edge where samples agree; the deadline is passed on."""
    dynamics = SampledDynamics(Slippery(), 3)
    actions = torch.ones(5, HORIZON, 2, requires_grad=True)
    states = dynamics.imagine(torch.zeros(2), actions)
    assert states.shape == (5, HORIZON, 3, 2)
    assert (states[:, -1, :, 0].std(dim=1) > 0).all()
    (gradient,) = torch.autograd.grad(Disagreement()(states, actions).sum(), actions)
    assert gradient.isfinite().all()
    assert dynamics.generator.initial_seed() == 0
    deadline = Deadline()
    deadline.start(float("inf"))
    planner = Cautious(planner=CEM(horizon=HORIZON))
    planner.plan(Slippery(), torch.zeros(2), lambda s, _: s.sum((1, 2)), generator=torch.Generator(), deadline=deadline)
    assert deadline.num_iterations == 3


def test_one_sample_cannot_disagree() -> None:
    """At least two are needed."""
    with pytest.raises(PlannerError, match="Cautious: num_samples=1; expected at least 2"):
        Cautious(num_samples=1)
