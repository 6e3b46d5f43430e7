"""The contract that every planner meets, and the optimum that CEM reaches."""

import itertools
import time
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from torch import Tensor

from planners import CEM, RandomShooting
from planners.base import Dynamics, Plan, Planner, PlannerError
from planners.noise import correlated_noise, correlation_factor

HORIZON = 6


@dataclass
class DoubleIntegrator:
    """Move a point mass: acceleration is the action; context is the state [2A]."""

    action_size: int = 2
    action_low: Tensor = field(default_factory=lambda: torch.tensor([-1.0, -0.5]))
    action_high: Tensor = field(default_factory=lambda: torch.tensor([1.0, 2.0]))
    dt_s: float = 0.5
    batches: list[Tensor] = field(default_factory=list)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return states [S, H, 2A] after every action."""
        self.batches.append(actions)
        position, velocity = context.chunk(2)
        velocities = velocity + self.dt_s * actions.cumsum(1)
        return torch.cat([position + self.dt_s * velocities.cumsum(1), velocities], dim=-1)


START = torch.tensor([1.0, -1.0, 0.0, 0.2])


def to_origin(trajectory: Tensor, actions: Tensor) -> Tensor:
    """Sum squared states and actions over time."""
    return trajectory.square().sum((1, 2)) + actions.square().sum((1, 2))


PLANNERS: list[Planner] = [
    CEM(horizon=HORIZON, num_candidates=32, num_iterations=3, num_elites=6),
    CEM(
        horizon=HORIZON,
        num_candidates=32,
        num_iterations=2,
        num_elites=6,
        choose="mean",
        include_zero=False,
        num_kept=0,
    ),
    RandomShooting(horizon=HORIZON, num_candidates=32, num_iterations=3),
]


def plan_with(planner: Planner, dynamics: Dynamics, *, seed: int = 0, warm_start: Tensor | None = None) -> Plan:
    """Plan from START."""
    generator = torch.Generator().manual_seed(seed)
    return planner.plan(dynamics, START, to_origin, warm_start=warm_start, generator=generator)


@pytest.mark.parametrize("planner", PLANNERS, ids=["cem", "cem-mean", "random-shooting"])
class TestContract:
    """Hold for every planner."""

    def test_same_seed_is_bitwise_equal_and_other_seed_is_not(self, planner: Planner) -> None:
        """The generator is the only source of randomness."""
        torch.manual_seed(1)
        first = plan_with(planner, DoubleIntegrator())
        torch.manual_seed(2)
        again = plan_with(planner, DoubleIntegrator())
        assert torch.equal(first.actions, again.actions)
        assert torch.equal(first.candidates, again.candidates)
        assert first.cost == again.cost
        assert not torch.equal(first.candidates, plan_with(planner, DoubleIntegrator(), seed=1).candidates)

    def test_every_imagined_action_is_within_bounds(self, planner: Planner) -> None:
        """Bounds hold for what is imagined, not only for what is chosen; they are used to the full."""
        dynamics = DoubleIntegrator()
        plan = plan_with(planner, dynamics, warm_start=torch.full((HORIZON, 2), 9.0))
        imagined = torch.cat([*dynamics.batches, plan.actions[None]])
        assert (imagined >= dynamics.action_low).all()
        assert (imagined <= dynamics.action_high).all()
        assert (imagined.amax((0, 1)) > dynamics.action_high - 0.1).all()
        assert (imagined.amin((0, 1)) < dynamics.action_low + 0.4).all()

    def test_plan_reports_what_was_compared(self, planner: Planner) -> None:
        """Costs belong to candidates, the count is exact, and the record is bounded."""
        dynamics = DoubleIntegrator()
        plan = plan_with(planner, dynamics)
        assert plan.num_imagined == sum(len(batch) for batch in dynamics.batches)
        recomputed = to_origin(dynamics.imagine(START, plan.candidates), plan.candidates)
        torch.testing.assert_close(plan.candidate_costs, recomputed)
        chosen = to_origin(dynamics.imagine(START, plan.actions[None]), plan.actions[None])
        assert plan.cost == pytest.approx(float(chosen[0]), rel=1e-5)
        assert plan.cost <= min(plan.iteration_best_costs) + 1e-6 or getattr(planner, "choose", "best") == "mean"
        assert len(plan.iteration_best_costs) == len(plan.iteration_mean_costs)
        assert set(plan.candidate_iterations.tolist()) == set(range(len(plan.iteration_best_costs)))

    def test_a_good_warm_start_is_not_lost(self, planner: Planner) -> None:
        """Given the optimum, a planner that takes the best candidate returns nothing worse; any gains from it."""
        best = CEM(horizon=HORIZON, num_candidates=256, num_iterations=10, num_elites=24)
        known = plan_with(best, DoubleIntegrator())
        warm = plan_with(planner, DoubleIntegrator(), warm_start=known.actions)
        assert warm.cost < plan_with(planner, DoubleIntegrator()).cost
        assert warm.cost <= known.cost * (1 + 1e-6) or getattr(planner, "choose", "best") == "mean"

    @pytest.mark.parametrize(
        ("warm_start", "message"),
        [(torch.zeros(HORIZON + 1, 2), r"\(7, 2\); expected \(6, 2\)"), (torch.full((HORIZON, 2), torch.nan), "NaN")],
    )
    def test_bad_warm_start_is_refused(self, planner: Planner, warm_start: Tensor, message: str) -> None:
        """The error names what was got and what was expected."""
        with pytest.raises(PlannerError, match=message):
            plan_with(planner, DoubleIntegrator(), warm_start=warm_start)

    def test_bad_costs_name_planner_iteration_and_candidate(self, planner: Planner) -> None:
        """A NaN or a wrong shape stops planning with a location."""

        def broken(trajectory: Tensor, actions: Tensor) -> Tensor:
            costs = to_origin(trajectory, actions)
            costs[7] = torch.nan
            return costs

        generator = torch.Generator().manual_seed(0)
        name = type(planner).__name__
        with pytest.raises(PlannerError, match=f"{name}, iteration 0, candidate 7: cost is nan"):
            planner.plan(DoubleIntegrator(), START, broken, generator=generator)
        with pytest.raises(PlannerError, match=rf"{name}, iteration 0.*\(32, 6\); expected \(32,\)"):
            planner.plan(DoubleIntegrator(), START, lambda s, a: s.sum(2), generator=generator)

    def test_bad_bounds_are_refused(self, planner: Planner) -> None:
        """Infinite bounds cannot be sampled."""
        with pytest.raises(PlannerError, match="finite"):
            plan_with(planner, DoubleIntegrator(action_high=torch.tensor([1.0, torch.inf])))

    def test_record_is_bounded_and_spread_over_iterations(self, planner: Planner) -> None:
        """The record is an even sample when more was compared."""
        small = type(planner)(**{**vars(planner), "num_recorded": 9})
        plan = plan_with(small, DoubleIntegrator())
        assert plan.candidates.shape == (9, HORIZON, 2)
        assert len(set(plan.candidate_iterations.tolist())) == len(plan.iteration_best_costs)


def riccati_actions(start: Tensor, horizon: int, dt_s: float) -> Tensor:
    """Return the optimum [H, A] of the unbounded problem by the finite-horizon Riccati recursion."""
    size = len(start) // 2
    eye, none = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    transition = torch.cat([torch.cat([eye, dt_s * eye], 1), torch.cat([none, eye], 1)])
    control = torch.cat([dt_s**2 * eye, dt_s * eye])
    cost_to_go = torch.eye(2 * size, dtype=torch.float64)
    gains = []
    for _ in range(horizon):
        inner = eye + control.T @ cost_to_go @ control
        gain = torch.linalg.solve(inner, control.T @ cost_to_go @ transition)
        cost_to_go = torch.eye(2 * size, dtype=torch.float64) + transition.T @ cost_to_go @ (
            transition - control @ gain
        )
        gains.append(gain)
    state, actions = start.double(), []
    for gain in reversed(gains):
        actions.append(-gain @ state)
        state = transition @ state + control @ actions[-1]
    return torch.stack(actions).float()


@pytest.mark.parametrize("choose", ["best", "mean"])
def test_cem_solves_the_double_integrator(choose: Literal["best", "mean"]) -> None:
    """CEM reaches the Riccati optimum within 1% of its cost, and much closer than random shooting."""
    dynamics = DoubleIntegrator(action_low=torch.full((2,), -3.0), action_high=torch.full((2,), 3.0))
    optimum = riccati_actions(START, HORIZON, dynamics.dt_s)[None]
    optimal_cost = float(to_origin(dynamics.imagine(START, optimum), optimum)[0])
    cem = CEM(
        horizon=HORIZON,
        num_candidates=256,
        num_iterations=20,
        num_elites=24,
        min_std=0.002,
        noise_correlation=0.0,
        choose=choose,
    )
    plan = plan_with(cem, dynamics)
    assert optimal_cost <= plan.cost * (1 + 1e-5)
    assert plan.cost < optimal_cost * 1.01
    assert (plan.actions - optimum[0]).abs().max() < 0.1
    shooting = plan_with(RandomShooting(horizon=HORIZON, num_candidates=256, num_iterations=20), dynamics)
    assert shooting.cost - optimal_cost > 10 * (plan.cost - optimal_cost)


def test_cem_reaches_the_optimum_of_a_quadratic_on_the_bound() -> None:
    """An optimum outside the bounds is met at the nearest allowed action."""
    target = torch.tensor([0.3, 9.0]).expand(HORIZON, 2)
    cem = CEM(horizon=HORIZON, num_candidates=128, num_iterations=15, num_elites=12, min_std=0.005)
    plan = cem.plan(
        DoubleIntegrator(),
        START,
        lambda _, actions: (actions - target).square().sum((1, 2)),
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(plan.actions, torch.tensor([0.3, 2.0]).expand(HORIZON, 2), atol=0.05, rtol=0)


def test_iterations_improve_the_candidates() -> None:
    """The mean cost of the candidates falls as the Gaussian is refitted."""
    plan = plan_with(CEM(horizon=HORIZON, num_candidates=128, num_iterations=5), DoubleIntegrator())
    means = plan.iteration_mean_costs
    assert all(later < earlier for earlier, later in itertools.pairwise(means))


def test_noise_has_unit_variance_and_the_stated_correlation() -> None:
    """Marginals are standard normal; steps k apart correlate by correlation ** k."""
    factor = correlation_factor(5, 0.6, like=torch.zeros(1, dtype=torch.float64))
    steps = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, 0.6 ** (steps[:, None] - steps).abs())
    noise = correlated_noise(20_000, factor, 1, torch.Generator().manual_seed(0))[..., 0]
    torch.testing.assert_close(torch.cov(noise.T), factor @ factor.T, atol=0.04, rtol=0)
    assert torch.equal(correlation_factor(4, 0.0, like=torch.zeros(1)), torch.eye(4))


@pytest.mark.parametrize(
    "knobs", [{"num_elites": 200}, {"horizon": 0}, {"noise_correlation": 1.0}, {"min_std": 2.0}, {"choose": "worst"}]
)
def test_cem_refuses_bad_knobs(knobs: dict[str, object]) -> None:
    """The error names the knob, its value and the valid range."""
    name, value = next(iter(knobs.items()))
    with pytest.raises(PlannerError, match=f"{name}={value!r}; expected"):
        CEM(**knobs)  # pyright: ignore[reportArgumentType]


def test_cem_overhead_is_below_a_millisecond_per_iteration() -> None:
    """Planning itself is cheap beside imagining (S=128, H=8, A=2)."""
    cem = CEM(horizon=8, num_candidates=128, num_iterations=20, num_elites=16)
    dynamics = DoubleIntegrator()

    def seconds() -> float:
        started = time.perf_counter()
        plan_with(cem, dynamics)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(10)) / 20 < 1e-3
