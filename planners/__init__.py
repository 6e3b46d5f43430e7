"""Planners that search action sequences with any dynamics model: ours, MuJoCo itself, or a peer's."""

from planners.base import Dynamics, Objective, Plan, Planner, PlannerError
from planners.cem import CEM
from planners.mpc import MPC, Decision
from planners.objectives import ActionPenalty, GoalDistance, StateCost, StepWeights, WeightedSum
from planners.random_shooting import RandomShooting

__all__ = [
    "CEM",
    "MPC",
    "ActionPenalty",
    "Decision",
    "Dynamics",
    "GoalDistance",
    "Objective",
    "Plan",
    "Planner",
    "PlannerError",
    "RandomShooting",
    "StateCost",
    "StepWeights",
    "WeightedSum",
]
