"""Budgets in milliseconds, with a clock that only the dynamics move: what is decided is known to the microsecond."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from planners import CEM, MPC, Control, Decision, RandomShooting
from planners.control import with_fewer_candidates
from planners.deadline import PATIENCE, Deadline, Durations, OutOfTime, iterations

HORIZON = 4


@dataclass
class Clock:
    """Tell the time that was set."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Return seconds."""
        return self.now_s


@dataclass
class SlowIntegrator:
    """Add actions to a position; imagining takes `per_call_s` plus `per_candidate_s` each."""

    clock: Clock
    per_call_s: float = 0.0
    per_candidate_s: float = 0.0
    action_size: int = 1
    action_low: Tensor = field(default_factory=lambda: torch.tensor([-1.0]))
    action_high: Tensor = field(default_factory=lambda: torch.tensor([1.0]))
    counts: list[int] = field(default_factory=list)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return positions [S, H, 1]."""
        self.counts.append(len(actions))
        self.clock.now_s += self.per_call_s + self.per_candidate_s * len(actions)
        return context + actions.cumsum(1)


def near_three(trajectory: Tensor, actions: Tensor) -> Tensor:
    """Cost of being away from 3."""
    return (trajectory - 3.0).square().mean((1, 2))


def controller(clock: Clock, dynamics: SlowIntegrator, planner: CEM | RandomShooting, **control: float) -> MPC:
    """Return a controller that knows its durations."""
    mpc = MPC(planner, dynamics, seed=0, control=Control(**control), clock=clock)  # pyright: ignore[reportArgumentType]
    mpc.learn_durations(torch.zeros(1), near_three)
    mpc.reset(seed=0)
    dynamics.counts.clear()
    return mpc


def test_iterations_without_a_deadline_are_all_of_them() -> None:
    assert list(iterations("CEM", 3, None)) == [0, 1, 2]


def test_the_prediction_is_the_ninth_decile_and_ignores_the_first_duration() -> None:
    durations = Durations()
    assert durations.expected == 0.0
    for seconds in (100.0, *range(1, 12)):
        durations.add(seconds)
    assert durations.expected == 10.0
    durations.add(500.0)  # one hiccup changes little
    assert durations.expected == 11.0


def test_no_iteration_begins_that_would_not_end_in_time() -> None:
    """Iterations of 10 ms and a budget of 35 ms: three end in time, the fourth would not."""
    clock = Clock()
    deadline = Deadline(clock=clock)
    for _ in range(2):  # the first duration is not believed, so learn twice
        deadline.start(float("inf"))
        for _ in iterations("CEM", 1, deadline):
            clock.now_s += 0.010
    began = clock.now_s
    deadline.start(0.035)
    done = []
    for index in iterations("CEM", 9, deadline):
        clock.now_s += 0.010
        done.append(index)
    assert done == [0, 1, 2]
    assert clock.now_s - began == pytest.approx(0.030)
    assert deadline.was_cut
    assert deadline.num_iterations == 3
    deadline.start(0.035)
    assert len(list(iterations("other planner", 2, deadline))) == 2  # nothing is known of it


def test_a_refused_deadline_says_what_is_missing_and_tries_again_some_day() -> None:
    clock = Clock()
    deadline = Deadline(clock=clock)
    for _ in range(2):
        deadline.start(float("inf"))
        for _ in iterations("CEM", 1, deadline):
            clock.now_s += 0.010
    for _ in range(PATIENCE):
        deadline.start(0.004)
        with pytest.raises(OutOfTime, match=r"CEM: 4.0 ms are left and one iteration takes about 10.0 ms"):
            next(iterations("CEM", 3, deadline))
    deadline.start(0.004)
    assert next(iterations("CEM", 3, deadline)) == 0


def test_a_budget_returns_the_best_plan_so_far() -> None:
    """The same plan as a planner of fewer iterations makes, bit for bit, in the predicted time."""
    clock = Clock()
    dynamics = SlowIntegrator(clock, per_call_s=0.010)
    cem = CEM(horizon=HORIZON, num_candidates=32, num_iterations=5, num_elites=4)
    decision = controller(clock, dynamics, cem, budget_ms=35.0).act(torch.zeros(1), near_three)
    assert decision.status == "cut"
    assert decision.seconds == pytest.approx(0.030)
    assert dynamics.counts == [32, 32, 32]
    shorter = CEM(horizon=HORIZON, num_candidates=32, num_iterations=3, num_elites=4)
    expected = shorter.plan(
        SlowIntegrator(clock), torch.zeros(1), near_three, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(decision.plan.actions, expected.actions)
    assert decision.plan.iteration_best_costs == expected.iteration_best_costs


def test_enough_time_changes_nothing() -> None:
    clock = Clock()
    cem = CEM(horizon=HORIZON, num_candidates=32, num_iterations=3, num_elites=4)
    decision = controller(clock, SlowIntegrator(clock, 0.010), cem, budget_ms=30.5).act(torch.zeros(1), near_three)
    assert decision.status == "planned"
    assert decision.seconds == pytest.approx(0.030)
    assert len(decision.plan.iteration_best_costs) == 3


def test_too_little_time_for_all_candidates_takes_fewer() -> None:
    """At 1 ms a candidate, 20 ms are enough for one iteration of 16 of the 64 candidates, not for 32."""
    clock = Clock()
    dynamics = SlowIntegrator(clock, per_candidate_s=0.001)
    shooting = RandomShooting(horizon=HORIZON, num_candidates=64, num_iterations=3)
    decision = controller(clock, dynamics, shooting, budget_ms=20.0).act(torch.zeros(1), near_three)
    assert dynamics.counts == [16]
    assert decision.seconds == pytest.approx(0.016)
    assert decision.plan.num_imagined == 16


def test_fewer_candidates_keep_their_shares_and_stop_where_the_planner_does() -> None:
    cem = CEM(horizon=HORIZON, num_candidates=48, num_elites=8, num_kept=4)
    assert [
        (p.num_candidates, p.num_elites, p.num_kept) for p in with_fewer_candidates(cem, 8) if isinstance(p, CEM)
    ] == [
        (24, 4, 2),
        (12, 2, 1),
    ]
    assert [p.num_candidates for p in with_fewer_candidates(cem, 1) if isinstance(p, CEM)] == [24, 12, 6, 3]
    assert list(with_fewer_candidates(cem, 48)) == []


def test_a_budget_below_one_iteration_returns_the_warm_start_and_says_so() -> None:
    clock = Clock()
    dynamics = SlowIntegrator(clock, per_call_s=0.010)
    cem = CEM(horizon=HORIZON, num_candidates=32, num_iterations=3, num_elites=4)
    mpc = controller(clock, dynamics, cem, budget_ms=15.0)
    first = mpc.act(torch.zeros(1), near_three)
    assert first.status == "cut"
    dynamics.counts.clear()
    late = mpc.act(torch.zeros(1), near_three, began=clock() - 0.008)  # 8 of the 15 ms went into the input
    assert late.status == "warm_start"
    assert dynamics.counts == []
    assert torch.equal(late.plan.actions, torch.cat([first.plan.actions[1:], torch.zeros(1, 1)]))
    assert torch.equal(late.action, first.plan.actions[1])
    assert late.plan.cost != late.plan.cost
    assert late.plan.num_imagined == 0
    assert late.seconds == pytest.approx(0.008)


def test_without_a_warm_start_either_the_action_is_zero() -> None:
    clock = Clock()
    cem = CEM(horizon=HORIZON, num_candidates=32, num_elites=4)
    decision = controller(clock, SlowIntegrator(clock, 0.010), cem, budget_ms=2.0).act(torch.zeros(1), near_three)
    assert decision.status == "warm_start"
    assert torch.equal(decision.plan.actions, torch.zeros(HORIZON, 1))


def test_time_after_the_search_is_kept_free() -> None:
    """The mean of CEM is imagined once more at the end: that time is learnt, too."""
    clock = Clock()
    cem = CEM(horizon=HORIZON, num_candidates=32, num_iterations=9, num_elites=4, choose="mean")
    mpc = controller(clock, SlowIntegrator(clock, 0.010), cem, budget_ms=45.0)
    seconds = [mpc.act(torch.zeros(1), near_three).seconds for _ in range(4)]
    assert seconds == pytest.approx([0.040] * 4)


def test_late_decisions_are_rare_on_a_noisy_clock() -> None:
    """Where iterations take 4 to 6 ms, 99% of decisions end within 1.2 times their budget, and use most of it."""
    clock, generator = Clock(), torch.Generator().manual_seed(0)
    dynamics = SlowIntegrator(clock)
    cem = CEM(horizon=HORIZON, num_candidates=8, num_iterations=20, num_elites=2, num_kept=0)
    mpc = controller(clock, dynamics, cem, budget_ms=30.0, min_candidates=8)
    seconds = []
    for _ in range(300):
        dynamics.per_call_s = float(torch.rand(1, generator=generator)) * 0.002 + 0.004
        seconds.append(mpc.act(torch.zeros(1), near_three).seconds)
    seconds = sorted(seconds[50:])
    assert seconds[int(0.99 * len(seconds))] <= 0.036
    assert seconds[len(seconds) // 2] > 0.022


def test_the_times_of_a_decision_add_up() -> None:
    clock = Clock()
    cem = CEM(horizon=HORIZON, num_candidates=16, num_iterations=2, num_elites=4)

    def slow_cost(trajectory: Tensor, actions: Tensor) -> Tensor:
        clock.now_s += 0.003
        return near_three(trajectory, actions)

    mpc = MPC(cem, SlowIntegrator(clock, per_call_s=0.010), seed=0, clock=clock)
    clock.now_s += 0.5
    decision: Decision = mpc.act(torch.zeros(1), slow_cost, began=clock() - 0.004)
    times = decision.times
    assert (times.encode_s, times.imagine_s, times.objective_s) == pytest.approx((0.004, 0.020, 0.006))
    assert times.rest_s == pytest.approx(0.0, abs=1e-9)
    assert decision.seconds == pytest.approx(0.030)
    costs = decision.plan.candidate_costs.view(2, 16)
    assert decision.plan.iteration_cost_stds == pytest.approx(costs.std(1, correction=0).tolist())
