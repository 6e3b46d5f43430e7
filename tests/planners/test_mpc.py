"""Receding horizon: warm starts, seeds, replanning."""

import pytest
import torch
from torch import Tensor

from planners import CEM, ICEM, MPC, Control, RandomShooting
from planners.base import PlannerError

HORIZON = 5


class Integrator:
    """Add actions to a position; context is the position [1]."""

    action_size = 1
    action_low = torch.tensor([-1.0])
    action_high = torch.tensor([1.0])

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return positions [S, H, 1]."""
        return context + actions.cumsum(1)


def near_three(trajectory: Tensor, actions: Tensor) -> Tensor:
    """Cost of being away from 3."""
    return (trajectory - 3.0).square().mean((1, 2))


def drive(mpc: MPC, steps: int) -> list[float]:
    """Execute decisions on the true dynamics and return positions."""
    position, path = torch.zeros(1), []
    for _ in range(steps):
        position = position + mpc.act(position, near_three).action
        path.append(float(position))
    return path


def test_reaches_and_holds_the_goal() -> None:
    """Three steps at full action reach 3, and it stays there."""
    path = drive(MPC(CEM(horizon=HORIZON), Integrator(), seed=0), 8)
    assert path[2] == pytest.approx(3.0, abs=0.15)
    assert path[3:] == pytest.approx([3.0] * 5, abs=0.08)


def test_reset_repeats_the_episode_bit_for_bit() -> None:
    """Nothing but the seed carries over a reset."""
    mpc = MPC(CEM(horizon=HORIZON), Integrator(), seed=3)
    first = drive(mpc, 4)
    assert drive(mpc, 4) != first
    mpc.reset(seed=3)
    assert drive(mpc, 4) == first


@pytest.mark.parametrize(("tail", "filler"), [("zero", 0.0), ("last", None)])
def test_warm_start_is_the_plan_without_its_executed_steps(tail: str, filler: float | None) -> None:
    """Executed steps leave at the front; the end is filled as asked."""
    mpc = MPC(RandomShooting(horizon=HORIZON), Integrator(), seed=0, control=Control(replan_every=2, tail=tail))  # pyright: ignore[reportArgumentType]
    assert mpc.warm_start is None
    plan = mpc.act(torch.zeros(1), near_three).plan
    mpc.act(torch.zeros(1), near_three)
    warm_start = mpc.warm_start
    assert warm_start is not None
    assert torch.equal(warm_start[:3], plan.actions[2:])
    assert (warm_start[3:] == (plan.actions[-1] if filler is None else filler)).all()


def test_replans_only_when_due() -> None:
    """Between plans the same plan is executed step by step, in no planning time."""
    mpc = MPC(CEM(horizon=HORIZON), Integrator(), seed=0, control=Control(replan_every=3))
    decisions = []
    for step in range(4):
        assert mpc.due == (step in (0, 3))
        decisions.append(mpc.act(torch.zeros(1), near_three))
    assert decisions[1].plan is decisions[0].plan
    assert decisions[1].seconds == 0.0
    assert decisions[0].seconds > 0.0
    assert torch.equal(decisions[2].action, decisions[0].plan.actions[2])
    assert decisions[3].plan is not decisions[0].plan


def test_refuses_bad_settings() -> None:
    """More executed steps than planned ones make no sense."""
    with pytest.raises(PlannerError, match="replan_every=9"):
        MPC(CEM(horizon=HORIZON), Integrator(), seed=0, control=Control(replan_every=9))
    with pytest.raises(PlannerError, match="tail='loop'"):
        Control(tail="loop")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("high", [[-2.0], [1.0, 1.0]], ids=["reversed", "of another shape"])
def test_refuses_bad_bounds(high: list[float]) -> None:
    """Before anything is planned, or limited to such bounds."""
    dynamics = Integrator()
    dynamics.action_high = torch.tensor(high)
    with pytest.raises(PlannerError, match="MPC: action bounds"):
        MPC(CEM(horizon=HORIZON), dynamics, seed=0)


def test_an_objective_that_returns_a_number_is_refused_where_it_is_timed_too() -> None:
    """The planner's own message comes through."""
    mpc = MPC(CEM(horizon=HORIZON), Integrator(), seed=0)
    with pytest.raises(PlannerError, match=r"CEM, iteration 0: the objective returned a float, 0\.0"):
        mpc.act(torch.zeros(1), lambda states, _: float(states[0, 2]))  # pyright: ignore[reportArgumentType]


def test_elites_are_carried_to_the_next_decision() -> None:
    """What iCEM carries is shifted with the plan, and its elites are candidates of the next decision."""
    mpc = MPC(ICEM(horizon=HORIZON, num_kept=2), Integrator(), seed=0)
    plan = mpc.act(torch.zeros(1), near_three).plan
    carried = mpc.warm_start
    assert plan.carried is not None
    assert carried is not None
    assert torch.equal(carried, torch.cat([plan.carried[:, 1:], torch.zeros(3, 1, 1)], dim=1))
    following = mpc.act(torch.zeros(1), near_three).plan
    assert torch.equal(following.candidates[:2], carried[1:])
