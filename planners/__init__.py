"""Planners that search action sequences with any dynamics model: ours, MuJoCo itself, or a peer's.

`planners.base` holds the protocols, `planners.search` what all planners are made of, `planners.mpc` acts with one.
Wrappers change any planner: `Knots` (few knots of a spline, or held actions, instead of every action), `Proposing`
(candidates of a policy or of the data), `Polished` (another search from the best candidates), `Cautious` (several
samples of each future). `plan_batch` plans for many environments with one imagination per iteration.

How much dearer than the optimum a plan is, median of five seeds, 1,536 sequences from nothing (a quadratic partly out
of bounds, Riccati's double integrator, a detour round a hill; `python scripts/bench_planners.py analytic`):

===========================  =========  =================  ======
planner                      quadratic  double integrator  detour
===========================  =========  =================  ======
random shooting              325%       137%               284%
predictive sampling          10%        67%                59%
  on cubic knots             73%        31%                21%
CEM                          9%         15%                22%
  on linear knots            166%       10%                10%
iCEM                         29%        14%                19%
MPPI                         8%         34%                20%
tree search                  133%       60%                96%
gradient                     0.00%      0.00%              0.00%
CEM, then gradient           0.00%      0.01%              0.00%
===========================  =========  =================  ======

A gradient is worth many samples where there is one: smooth costs, and a model that is differentiable and right. Its
sequences take two to three times as long as those of a sampler. Half as many knots as steps pay where the best actions
are smooth, and cannot reach others. Tree search is for few discrete actions; here it draws them from a range.
"""

from planners.base import Dynamics, Guided, Objective, Plan, Planner, PlannerError, Proposals
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
from planners.proposing import BestProposal, Proposing, RecordedActions
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
    "BestProposal",
    "Cautious",
    "Control",
    "Deadline",
    "Decision",
    "Disagreement",
    "Distance",
    "Dynamics",
    "GoalDistance",
    "Gradient",
    "Guided",
    "Knots",
    "Objective",
    "OutOfTime",
    "OverSamples",
    "Plan",
    "Planner",
    "PlannerError",
    "Polished",
    "PredictiveSampling",
    "Proposals",
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
