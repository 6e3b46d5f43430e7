"""Plans that are made while the last one is executed, with an executor that works when it is told to."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch
from test_mpc import HORIZON, Integrator, near_three
from torch import Tensor

from planners import CEM, MPC, Control
from planners.base import PlannerError


class Later(Executor):
    """Run what was submitted when `work` is called."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def work(self) -> None:
        """Do all that is waiting."""
        for future, job in self.waiting:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except PlannerError as error:
                    future.set_exception(error)
        self.waiting.clear()


class Watched(Integrator):
    """Remember what was imagined, and from where."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Tensor]] = []

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return positions [S, H, 1]."""
        self.seen.append((float(context), actions))
        return super().imagine(context, actions)


def planner(horizon: int = HORIZON) -> CEM:
    return CEM(horizon=horizon, num_candidates=32, num_iterations=2, num_elites=4)


def test_a_plan_begins_with_what_is_executed_while_it_is_made() -> None:
    """The next two actions are settled; the plan that is adopted after them goes on from there."""
    executor, dynamics = Later(), Watched()
    control = Control(replan_every=2, asynchronous=True)
    mpc = MPC(planner(), dynamics, seed=0, control=control, executor=executor)
    first = [mpc.act(torch.zeros(1), near_three)]
    dynamics.seen.clear()
    executor.work()
    settled = first[0].plan.actions[:2]
    assert all(context == 0.0 for context, _ in dynamics.seen)
    assert all(torch.equal(actions[:, :2], settled.expand(len(actions), -1, -1)) for _, actions in dynamics.seen)
    assert not mpc.due
    first.append(mpc.act(torch.full((1,), 7.0), near_three))  # nothing is due: this context is not read
    assert [decision.status for decision in first] == ["planned", "reused"]
    assert mpc.due
    second = mpc.act(torch.ones(1), near_three)
    assert torch.equal(torch.stack([d.action for d in first]), settled)
    assert torch.equal(second.plan.actions[:2], settled)
    assert (second.status, second.index, float(second.context)) == ("planned", 2, 0.0)
    assert torch.equal(second.action, second.plan.actions[2])
    dynamics.seen.clear()
    executor.work()  # the plan after that starts from the context of this step
    assert {context for context, _ in dynamics.seen} == {1.0}


def test_a_late_plan_leaves_the_last_one_in_force_and_is_joined_at_the_right_step() -> None:
    executor = Later()
    control = Control(replan_every=1, asynchronous=True, max_wait_ms=0.0)
    mpc = MPC(planner(), Integrator(), seed=0, control=control, executor=executor)
    decisions = [mpc.act(torch.zeros(1), near_three) for _ in range(3)]
    assert [d.status for d in decisions] == ["planned", "late", "late"]
    assert [d.index for d in decisions] == [0, 1, 2]
    assert all(d.plan is decisions[0].plan for d in decisions)
    executor.work()
    joined = mpc.act(torch.zeros(1), near_three)
    assert (joined.status, joined.index) == ("planned", 3)
    assert joined.plan is not decisions[0].plan


def test_where_the_last_plan_ends_first_the_fallback_is_executed() -> None:
    control = Control(replan_every=1, asynchronous=True, max_wait_ms=0.0)
    executor = Later()
    mpc = MPC(planner(), Integrator(), seed=0, control=control, executor=executor)
    decisions = [mpc.act(torch.zeros(1), near_three) for _ in range(HORIZON + 2)]
    assert [d.status for d in decisions[-2:]] == ["spent", "spent"]
    assert [d.action.tolist() for d in decisions[-2:]] == [[0.0], [0.0]]
    executor.work()  # a plan that begins so long ago has ended, too, but the next one is asked for at once
    assert mpc.act(torch.zeros(1), near_three).status == "spent"
    executor.work()
    assert mpc.act(torch.zeros(1), near_three).status == "planned"


def test_an_episode_that_ends_mid_plan_leaves_nothing_behind() -> None:
    """The search under way is dropped; the next episode is the same as in a fresh controller."""
    control = Control(replan_every=2, asynchronous=True)
    executor = Later()
    used = MPC(planner(), Integrator(), seed=0, control=control, executor=executor)
    used.act(torch.zeros(1), near_three)
    ((unfinished, _),) = executor.waiting
    used.reset(seed=5)
    assert unfinished.cancelled()
    executor.work()
    fresh = MPC(planner(), Integrator(), seed=5, control=control, executor=Later())
    assert torch.equal(used.act(torch.ones(1), near_three).action, fresh.act(torch.ones(1), near_three).action)


def test_a_search_that_fails_says_so_when_its_plan_is_due() -> None:
    executor = Later()
    control = Control(replan_every=1, asynchronous=True)
    mpc = MPC(planner(), Integrator(), seed=0, control=control, executor=executor)
    mpc.act(torch.zeros(1), near_three)
    executor.work()
    mpc.act(torch.full((1,), torch.nan), near_three)  # the search from here is asked for
    executor.work()
    with pytest.raises(PlannerError, match="CEM, iteration 0, candidate 0: cost is nan"):
        mpc.act(torch.zeros(1), near_three)


def test_a_real_thread_gives_what_waiting_gives() -> None:
    """A thread is repeatable where its plans are waited for, and reaches the goal."""

    def drive() -> list[float]:
        mpc = MPC(planner(8), Integrator(), seed=0, control=Control(replan_every=2, asynchronous=True))
        position, path = torch.zeros(1), []
        for _ in range(12):
            position = position + mpc.act(position, near_three).action
            path.append(float(position))
        mpc.reset(seed=1)
        mpc.close()
        return path

    path = drive()
    assert path == drive()
    assert path[-4:] == pytest.approx([3.0] * 4, abs=0.15)


def test_half_a_horizon_is_needed() -> None:
    with pytest.raises(PlannerError, match=r"replan_every=3; expected 1 to 2 \(the horizon 5 // 2: an asynchronous"):
        MPC(planner(), Integrator(), seed=0, control=Control(replan_every=3, asynchronous=True))
