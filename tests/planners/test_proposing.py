"""Proposals of objectives that know their goal: who asks for them, and what the search does with them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planners import CEM, MPC, BestProposal, Cautious, Control, Guided, Knots, Proposing, plan_batch
from planners.safety import Safety
from scripts.bench_planners import PointMass, Problem, double_integrator

HORIZON = 6
NARROW = CEM(
    horizon=HORIZON,
    num_candidates=24,
    num_iterations=1,
    num_elites=4,
    initial_std=1e-3,
    min_std=1e-4,
    include_zero=False,
    num_kept=0,
)
"""Finds nothing that is far from where it starts."""


class Sampled(PointMass):
    """A point mass of which there are samples, all alike."""

    def imagine_samples(self, context: Any, actions: Tensor, num_samples: int) -> Tensor:
        """Return futures [N, H, 2A]."""
        return self.imagine(context, actions.expand(num_samples, -1, -1))

    def imagine_batch(self, contexts: Any, actions: Tensor) -> Tensor:
        """Return states [B, S, H, 2A]."""
        return torch.stack([self.imagine(*each) for each in zip(contexts, actions, strict=True)])

    def propose(self, context: Any, num: int, horizon: int, generator: torch.Generator) -> Tensor:
        """Propose what leads nowhere: that of the objective goes first."""
        raise AssertionError("the objective knows better")


@pytest.fixture(scope="module")
def problem() -> Problem:
    found = double_integrator(HORIZON)
    return replace(found, dynamics=Sampled(2, 3.0))


def guided(problem: Problem, *, times: float = 1.0) -> Guided:
    """Return the problem's objective, with a policy that knows the optimum, up to a factor."""

    def propose(context: Any, num: int, horizon: int, generator: torch.Generator) -> Tensor:
        far = torch.full_like(problem.optimum, 9.0).expand(num - 1, -1, -1)
        return torch.cat([times * problem.optimum[None, :horizon], far[:, :horizon]])

    return Guided(objective=problem.objective, propose=propose)


def test_a_search_around_the_first_proposal_begins_there_and_one_without_does_not(problem: Problem) -> None:
    """A little beside the optimum the best is found near it; else the warm start's surroundings are searched."""
    objective, warm = guided(problem, times=0.999), torch.zeros_like(problem.optimum)
    beside = problem.cost(0.999 * problem.optimum)
    for around in (True, False):
        planner = Proposing(planner=replace(NARROW, num_recorded=999), num_proposals=3, around=around)
        generator = torch.Generator().manual_seed(0)
        plan = planner.plan(problem.dynamics, problem.start, objective, warm_start=warm, generator=generator)
        near = (plan.candidates - problem.optimum).abs().amax((1, 2)) < 0.1
        assert plan.cost <= beside * (1 + 1e-12)
        assert int(near.sum()) == (24 - 1 - 2 if around else 1)
        assert (plan.candidates == warm).all((1, 2)).any()
        assert int((plan.candidates == 3.0).all((1, 2)).sum()) == 2  # put into the bounds


@pytest.mark.parametrize(
    "planner",
    [
        Proposing(planner=NARROW, num_proposals=2, around=True),
        Proposing(planner=Knots(planner=replace(NARROW, horizon=3), horizon=HORIZON), num_proposals=2),
        Cautious(planner=Proposing(planner=NARROW, num_proposals=2)),
        BestProposal(horizon=HORIZON, num_proposals=2),
    ],
    ids=["around", "knots", "cautious", "best"],
)
def test_proposals_reach_every_planner_through_a_controller(problem: Problem, planner: Any) -> None:
    controller = MPC(planner, problem.dynamics, seed=0)
    decision = controller.act(problem.start, guided(problem))
    expected = problem.cost(problem.optimum)
    assert decision.plan.cost == pytest.approx(expected, rel=0.05)


def test_what_is_proposed_is_compared_as_it_will_be_executed(problem: Problem) -> None:
    """Where changes are limited, the plan and its cost are those of the limited sequence."""
    control = Control(safety=Safety(max_change=0.1))
    controller = MPC(BestProposal(horizon=HORIZON, num_proposals=1), problem.dynamics, seed=0, control=control)
    plan = controller.act(problem.start, guided(problem)).plan
    steps = torch.cat([plan.actions[:1], plan.actions.diff(dim=0)]).abs()
    assert float(steps.max()) == pytest.approx(0.1 * 3.0 if float(steps.max()) > 0.2 else 0.1)
    assert plan.cost == pytest.approx(problem.cost(plan.actions))
    assert plan.cost > problem.cost(problem.optimum)


def test_proposing_takes_time_from_the_budget_and_is_not_done_where_none_is_left(problem: Problem) -> None:
    """Time of proposals is time of imagination; a decision that comes too late asks for none."""
    now = [0.0]
    objective = guided(problem)
    asked = []

    def propose(context: Any, num: int, horizon: int, generator: torch.Generator) -> Tensor:
        asked.append(num)
        now[0] += 0.03
        return objective.propose(context, num, horizon, generator)

    slow = Guided(objective=objective, propose=propose)
    planner = Proposing(planner=replace(NARROW, num_candidates=8), num_proposals=2, around=True)
    control = Control(budget_ms=100, min_candidates=8, min_horizon=HORIZON)
    controller = MPC(planner, problem.dynamics, seed=0, control=control, clock=lambda: now[0])
    for _ in range(2):  # what the first takes is not believed, since what is cold is slow
        decision = controller.act(problem.start, slow)
        assert decision.times.imagine_s == pytest.approx(0.03)
    assert (decision.status, asked) == ("planned", [2, 2])
    late = controller.act(problem.start, slow, began=now[0] - 0.2)
    assert (late.status, asked) == ("warm_start", [2, 2])
    hurried = controller.act(problem.start, slow, began=now[0] - 0.08)  # 20 ms are left, and it is known to take 30
    assert (hurried.status, asked) == ("warm_start", [2, 2])


def test_each_of_many_environments_has_its_own_goal(problem: Problem) -> None:
    """Plans of a batch are those of separate calls, though the objectives propose different ways."""
    planner = Proposing(planner=NARROW, num_proposals=2, around=True)
    objectives = [guided(problem), guided(problem, times=0.5)]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    together = plan_batch(planner, problem.dynamics, [problem.start] * 2, objectives, generators=generators)  # type: ignore[arg-type]
    for seed, (objective, plan) in enumerate(zip(objectives, together, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        alone = planner.plan(problem.dynamics, problem.start, objective, generator=generator)
        assert torch.equal(plan.actions, alone.actions)
    assert together[0].cost < together[1].cost
