"""Objectives against numbers worked out by hand."""

import pytest
import torch

from planners import ActionPenalty, GoalDistance, Reward, StateCost, StepWeights, TemporalDistance, WeightedSum
from planners.base import PlannerError

TRAJECTORY = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[3.0, 4.0], [3.0, 4.0]]])
ACTIONS = torch.tensor([[[1.0], [-1.0]], [[0.5], [0.5]]])
GOAL = torch.tensor([3.0, 4.0])


def test_goal_distance_weights_steps() -> None:
    """Squared distances per dimension 12.5 then 0, and 0 twice."""
    assert GoalDistance(goal=GOAL)(TRAJECTORY, ACTIONS).tolist() == pytest.approx([12.5 / 3, 0.0])
    terminal = GoalDistance(goal=GOAL, weights=StepWeights(running=0.0))
    assert terminal(TRAJECTORY, ACTIONS).tolist() == [0.0, 0.0]
    first = GoalDistance(goal=GOAL, weights=StepWeights(terminal=0.0, discount=0.5))
    assert first(TRAJECTORY, ACTIONS).tolist() == pytest.approx([12.5 * 2 / 3, 0.0])
    root = GoalDistance(goal=GOAL, weights=StepWeights(terminal=0.0), metric="euclidean")
    assert root(TRAJECTORY, ACTIONS).tolist() == pytest.approx([12.5**0.5 / 2, 0.0])


def test_goal_distance_takes_token_grids_and_refuses_other_shapes() -> None:
    """The goal has the shape of one step, whatever its rank."""
    goal = torch.ones(4, 8)
    assert GoalDistance(goal=goal)(torch.zeros(5, 3, 4, 8), torch.zeros(5, 3, 2)).tolist() == [1.0] * 5
    with pytest.raises(PlannerError, match=r"\(4, 7\), the goal \(4, 8\)"):
        GoalDistance(goal=goal)(torch.zeros(5, 3, 4, 7), torch.zeros(5, 3, 2))


def test_state_cost_reads_metres() -> None:
    """The cost is the weighted distance in the readout's unit."""
    objective = StateCost(readout=lambda z: z * 0.1, cost=lambda q: (q - 0.1 * GOAL).norm(dim=-1))
    assert objective(TRAJECTORY, ACTIONS).tolist() == pytest.approx([0.5 / 3, 0.0])
    with pytest.raises(PlannerError, match=r"shape \(2, 2, 2\); expected \(2, 2\)"):
        StateCost(readout=lambda z: z, cost=lambda q: q)(TRAJECTORY, ACTIONS)


def test_sum_and_penalties() -> None:
    """Effort and change are mean squares; a sum weighs its terms."""
    penalty = ActionPenalty(effort=1.0, change=0.5)
    assert penalty(TRAJECTORY, ACTIONS).tolist() == pytest.approx([1.0 + 0.5 * 4.0, 0.25])
    both = WeightedSum([(2.0, GoalDistance(goal=GOAL)), (0.1, penalty)])
    assert both(TRAJECTORY, ACTIONS).tolist() == pytest.approx([25 / 3 + 0.3, 0.025])
    with pytest.raises(PlannerError, match="no terms"):
        WeightedSum([])
    with pytest.raises(PlannerError, match="discount=0"):
        StepWeights(discount=0.0)


def test_temporal_distance_and_reward_are_weighted_over_the_horizon() -> None:
    """Four steps a metre away, then none; and minus the mean reward."""

    def steps(states: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (states - goal).norm(dim=-1) / 5 * 4

    distance = TemporalDistance(distance=steps, goal=GOAL, weights=StepWeights(terminal=3.0))
    assert distance(TRAJECTORY, ACTIONS).tolist() == pytest.approx([4 / 5, 0.0])
    reward = Reward(reward=lambda states, actions: states[..., 0] + actions[..., 0])
    assert reward(TRAJECTORY, ACTIONS).tolist() == pytest.approx([-1.5, -3.5])
    discounted = Reward(reward=lambda states, _: states[..., 0], weights=StepWeights(terminal=0.0, discount=0.5))
    assert discounted(TRAJECTORY, ACTIONS).tolist() == pytest.approx([-1.0, -3.0])
    valued = Reward(reward=lambda states, _: states[..., 0], weights=StepWeights(running=0.0))
    assert valued(TRAJECTORY, ACTIONS).tolist() == pytest.approx([-3.0, -3.0])
    both = WeightedSum([(1.0, distance), (0.1, reward)])
    assert both(TRAJECTORY, ACTIONS).tolist() == pytest.approx([0.8 - 0.15, -0.35])
    with pytest.raises(PlannerError, match=r"Reward: reward has shape \(2, 2, 2\); expected \(2, 2\)"):
        Reward(reward=lambda states, _: states)(TRAJECTORY, ACTIONS)
    with pytest.raises(PlannerError, match=r"TemporalDistance: distance has shape \(2,\)"):
        TemporalDistance(distance=lambda states, _: states.sum((1, 2)), goal=GOAL)(TRAJECTORY, ACTIONS)
