"""Planners that search action sequences with any dynamics model: ours, MuJoCo itself, or a peer's."""

from planners.base import Dynamics, Objective, Plan, Planner, PlannerError
from planners.cem import CEM
from planners.control import Control
from planners.deadline import Deadline, OutOfTime
from planners.mpc import MPC, Decision, Times
from planners.objectives import ActionPenalty, GoalDistance, StateCost, StepWeights, WeightedSum
from planners.random_shooting import RandomShooting
from planners.safety import Safety

__all__ = [
    "CEM",
    "MPC",
    "ActionPenalty",
    "Control",
    "Deadline",
    "Decision",
    "Dynamics",
    "GoalDistance",
    "Objective",
    "OutOfTime",
    "Plan",
    "Planner",
    "PlannerError",
    "RandomShooting",
    "Safety",
    "StateCost",
    "StepWeights",
    "Times",
    "WeightedSum",
]
