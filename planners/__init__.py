"""Planners that search action sequences with any dynamics model: ours, MuJoCo itself, or a peer's.

`planners.base` holds the protocols, `planners.search` what all planners are made of, `planners.mpc` acts with one.
"""

from planners.base import Dynamics, Objective, Plan, Planner, PlannerError
from planners.cautious import Cautious, Disagreement, OverSamples, SampledDynamics
from planners.cem import CEM
from planners.control import Control
from planners.deadline import Deadline, OutOfTime
from planners.gradient import Gradient
from planners.icem import ICEM
from planners.knots import Knots
from planners.mpc import MPC, Decision, Times
from planners.mppi import MPPI
from planners.objectives import (
    ActionPenalty,
    Distance,
    GoalDistance,
    Reward,
    StateCost,
    StepWeights,
    TemporalDistance,
    WeightedSum,
)
from planners.polished import Polished
from planners.predictive_sampling import PredictiveSampling
from planners.proposing import Proposing, RecordedActions
from planners.random_shooting import RandomShooting
from planners.safety import Safety
from planners.search import BatchDynamics, Searcher, plan_batch
from planners.tree import TreeSearch

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "MPPI",
    "ActionPenalty",
    "BatchDynamics",
    "Cautious",
    "Control",
    "Deadline",
    "Decision",
    "Disagreement",
    "Distance",
    "Dynamics",
    "GoalDistance",
    "Gradient",
    "Knots",
    "Objective",
    "OutOfTime",
    "OverSamples",
    "Plan",
    "Planner",
    "PlannerError",
    "Polished",
    "PredictiveSampling",
    "Proposing",
    "RandomShooting",
    "RecordedActions",
    "Reward",
    "Safety",
    "SampledDynamics",
    "Searcher",
    "StateCost",
    "StepWeights",
    "TemporalDistance",
    "Times",
    "TreeSearch",
    "WeightedSum",
    "plan_batch",
]
