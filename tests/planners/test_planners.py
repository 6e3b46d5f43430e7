"""The contract that every planner meets."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planners import (
    CEM,
    ICEM,
    MPPI,
    Cautious,
    Deadline,
    Gradient,
    Knots,
    OutOfTime,
    Polished,
    PredictiveSampling,
    Proposing,
    RandomShooting,
    Searcher,
    TreeSearch,
    plan_batch,
)
from planners.base import Dynamics, Plan, PlannerError

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

    def imagine_batch(self, contexts: Sequence[Tensor], actions: Tensor) -> Tensor:
        """Return states [B, S, H, 2A]."""
        return torch.stack([self.imagine(*each) for each in zip(contexts, actions, strict=True)])


START = torch.tensor([1.0, -1.0, 0.0, 0.2])


def to_origin(trajectory: Tensor, actions: Tensor) -> Tensor:
    """Sum squared states and actions over time."""
    return trajectory.square().sum((1, 2)) + actions.square().sum((1, 2))


def shaken(context: Tensor, num: int, horizon: int, generator: torch.Generator) -> Tensor:
    """Propose small random actions."""
    return 0.1 * torch.randn(num, horizon, 2, generator=generator)


SMALL = CEM(horizon=HORIZON, num_candidates=32, num_iterations=3, num_elites=6)
ADAM = Gradient(horizon=HORIZON, num_candidates=32, num_iterations=5)
PLANNERS: dict[str, Searcher] = {
    "cem": SMALL,
    "cem-mean": replace(SMALL, num_iterations=2, choose="mean", include_zero=False, num_kept=0),
    "icem": ICEM(horizon=HORIZON, num_candidates=32, num_elites=6, initial_std=0.7),
    "mppi": MPPI(horizon=HORIZON, num_candidates=32, std=0.7),
    "mppi-best": MPPI(horizon=HORIZON, num_candidates=32, std=0.7, choose="best"),
    "predictive-sampling": PredictiveSampling(horizon=HORIZON, num_candidates=32, num_iterations=3, std=0.9),
    "random-shooting": RandomShooting(horizon=HORIZON, num_candidates=32, num_iterations=3),
    "gradient": ADAM,
    "polished": Polished(planner=SMALL, polish=replace(ADAM, num_candidates=4), num_polished=3),
    "mean-polished": Polished(planner=replace(SMALL, choose="mean"), polish=MPPI(horizon=HORIZON, num_candidates=32)),
    "tree": TreeSearch(horizon=HORIZON, num_candidates=32),
    "proposing": Proposing(planner=SMALL, num_proposals=5, proposals=shaken),
    "around-proposals": Proposing(planner=SMALL, num_proposals=5, proposals=shaken, around=True),
    "knots-linear": Knots(planner=replace(SMALL, horizon=4), horizon=HORIZON),
    "knots-gradient": Knots(planner=replace(ADAM, horizon=3), horizon=HORIZON, interpolation="cubic"),
    "repeat": Knots(planner=replace(SMALL, horizon=3), horizon=HORIZON, interpolation="zero"),
}
RETURNS_MEAN = ("cem-mean", "mppi", "mean-polished")
"""These may return a sequence that costs more than the best candidate."""


def with_record(planner: Any, num_recorded: int) -> Any:
    """Return the planner with another `num_recorded`, which a wrapper takes from what it wraps."""
    if hasattr(planner, "planner"):
        return replace(planner, planner=with_record(planner.planner, num_recorded))
    return replace(planner, num_recorded=num_recorded)


def plan_with(planner: Searcher, dynamics: Dynamics, *, seed: int = 0, warm_start: Tensor | None = None) -> Plan:
    """Plan from START."""
    generator = torch.Generator().manual_seed(seed)
    return planner.plan(dynamics, START, to_origin, warm_start=warm_start, generator=generator)


@pytest.mark.parametrize(("name", "planner"), PLANNERS.items(), ids=PLANNERS)
class TestContract:
    """Hold for every planner."""

    def test_same_seed_is_bitwise_equal_and_other_seed_is_not(self, name: str, planner: Searcher) -> None:
        """The generator is the only source of randomness."""
        torch.manual_seed(1)
        first = plan_with(planner, DoubleIntegrator())
        torch.manual_seed(2)
        again = plan_with(planner, DoubleIntegrator())
        assert torch.equal(first.actions, again.actions)
        assert torch.equal(first.candidates, again.candidates)
        assert first.cost == again.cost
        assert not torch.equal(first.candidates, plan_with(planner, DoubleIntegrator(), seed=1).candidates)

    def test_every_imagined_action_is_within_bounds(self, name: str, planner: Searcher) -> None:
        """Bounds hold for what is imagined, not only for what is chosen; they are used to the full."""
        dynamics = DoubleIntegrator()
        plan = plan_with(planner, dynamics, warm_start=torch.full((HORIZON, 2), 9.0))
        imagined = torch.cat([*dynamics.batches, plan.actions[None]])
        assert (imagined >= dynamics.action_low).all()
        assert (imagined <= dynamics.action_high).all()
        assert (imagined.amax((0, 1)) > dynamics.action_high - 0.1).all()
        slack = 1.2 if isinstance(planner, Knots) else 0.4  # few knots are rarely far from where they start
        assert (imagined.amin((0, 1)) < dynamics.action_low + slack).all()

    def test_plan_reports_what_was_compared(self, name: str, planner: Searcher) -> None:
        """Costs belong to candidates, the count is exact, and the record is bounded."""
        dynamics = DoubleIntegrator()
        plan = plan_with(planner, dynamics)
        assert plan.num_imagined == sum(len(batch) for batch in dynamics.batches) <= planner.num_sequences
        assert len(plan.iteration_best_costs) <= planner.num_iterations
        recomputed = to_origin(dynamics.imagine(START, plan.candidates), plan.candidates)
        torch.testing.assert_close(plan.candidate_costs, recomputed)
        chosen = to_origin(dynamics.imagine(START, plan.actions[None]), plan.actions[None])
        assert plan.cost == pytest.approx(float(chosen[0]), rel=1e-5)
        assert plan.cost <= min(plan.iteration_best_costs) + 1e-6 or name in RETURNS_MEAN
        assert len(plan.iteration_best_costs) == len(plan.iteration_mean_costs)
        assert set(plan.candidate_iterations.tolist()) == set(range(len(plan.iteration_best_costs)))

    def test_a_good_warm_start_is_not_lost(self, name: str, planner: Searcher) -> None:
        """Given the optimum, a planner that takes the best candidate returns nothing worse; any gains from it."""
        best = CEM(horizon=HORIZON, num_candidates=256, num_iterations=10, num_elites=24)
        known = plan_with(best, DoubleIntegrator())
        warm = plan_with(planner, DoubleIntegrator(), warm_start=known.actions)
        assert warm.cost < plan_with(planner, DoubleIntegrator()).cost
        assert warm.cost <= known.cost * (1 + 1e-6) or name in RETURNS_MEAN
        starts = torch.stack([torch.zeros(HORIZON, 2), torch.ones(HORIZON, 2), known.actions])
        further = plan_with(planner, DoubleIntegrator(), warm_start=starts)
        fits = known.cost if "knots" not in name and name != "repeat" else warm.cost + 3.0  # a spline fits it roughly
        assert further.cost <= fits * (1 + 1e-6) or name in RETURNS_MEAN

    def test_the_next_decision_starts_from_what_is_carried(self, name: str, planner: Searcher) -> None:
        """What a plan carries is a valid warm start of the same planner."""
        plan = plan_with(planner, DoubleIntegrator())
        if plan.carried is not None:
            assert plan.carried.shape[1:] == (HORIZON, 2)
            again = plan_with(planner, DoubleIntegrator(), warm_start=plan.carried)
            assert again.cost <= plan.cost * (1 + 1e-6)
        assert (plan.carried is not None) == (name == "icem")

    def test_many_environments_get_the_plans_of_each(self, name: str, planner: Searcher) -> None:
        """One call for three environments gives the plans of three calls."""
        starts = [START, -START, 2 * START]
        warm = [None, None, None] if name != "cem" else [torch.zeros(HORIZON, 2)] * 3
        together = plan_batch(
            planner,
            DoubleIntegrator(),
            starts,
            [to_origin] * 3,
            warm_starts=warm,
            generators=[torch.Generator().manual_seed(seed) for seed in range(3)],
        )
        for seed, (start, plan) in enumerate(zip(starts, together, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            alone = planner.plan(DoubleIntegrator(), start, to_origin, warm_start=warm[seed], generator=generator)
            assert torch.equal(plan.actions, alone.actions)
            assert torch.equal(plan.candidate_costs, alone.candidate_costs)
            assert plan.num_imagined == alone.num_imagined

    def test_a_deadline_stops_between_iterations(self, name: str, planner: Searcher) -> None:
        """What was found so far is returned; without time for one iteration the planner says so."""
        dynamics = DoubleIntegrator()
        deadline = Deadline(clock=lambda: float(len(dynamics.batches)))
        deadline.start(0.5)
        generator = torch.Generator().manual_seed(0)
        plan = planner.plan(dynamics, START, to_origin, generator=generator, deadline=deadline)
        assert deadline.was_cut
        assert len(plan.iteration_best_costs) == deadline.num_iterations == 1
        assert plan.cost == plan.iteration_best_costs[0]
        deadline.start(0.0)
        with pytest.raises(OutOfTime, match=type(planner).__name__):
            planner.plan(dynamics, START, to_origin, generator=generator, deadline=deadline)

    def test_states_of_another_length_are_refused(self, name: str, planner: Searcher) -> None:
        """Dynamics must return a state for every action."""

        class Short(DoubleIntegrator):
            def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
                return super().imagine(context, actions)[:, 1:]

        with pytest.raises(PlannerError, match=r"iteration 0: the dynamics returned states of shape \(32, 5, 4\)"):
            plan_with(planner, Short())

    @pytest.mark.parametrize(
        ("warm_start", "message"),
        [(torch.zeros(HORIZON + 1, 2), r"\(7, 2\); expected \(6, 2\)"), (torch.full((HORIZON, 2), torch.nan), "NaN")],
    )
    def test_bad_warm_start_is_refused(self, name: str, planner: Searcher, warm_start: Tensor, message: str) -> None:
        """The error names what was got and what was expected."""
        with pytest.raises(PlannerError, match=message):
            plan_with(planner, DoubleIntegrator(), warm_start=warm_start)

    def test_bad_costs_name_planner_iteration_and_candidate(self, name: str, planner: Searcher) -> None:
        """A NaN or a wrong shape stops planning with a location."""

        def broken(trajectory: Tensor, actions: Tensor) -> Tensor:
            costs = to_origin(trajectory, actions)
            costs[7] = torch.nan
            return costs

        generator = torch.Generator().manual_seed(0)
        title = type(planner).__name__
        with pytest.raises(PlannerError, match=f"{title}, iteration 0, candidate 7: cost is nan"):
            planner.plan(DoubleIntegrator(), START, broken, generator=generator)
        with pytest.raises(PlannerError, match=rf"{title}, iteration 0.*\(32, 6\); expected \(32,\)"):
            planner.plan(DoubleIntegrator(), START, lambda s, a: s.sum(2), generator=generator)

    @pytest.mark.parametrize(("costs", "words"), [(0.5, r"a float, 0\.5"), (None, "a NoneType, None")])
    def test_costs_that_are_no_tensor_are_refused(
        self, name: str, planner: Searcher, costs: object, words: str
    ) -> None:
        """The error names planner, iteration and what came instead."""
        generator = torch.Generator().manual_seed(0)
        expected = rf"{type(planner).__name__}, iteration 0: the objective returned {words}; expected .*\(32,\)"
        with pytest.raises(PlannerError, match=expected):
            planner.plan(DoubleIntegrator(), START, lambda s, a: costs, generator=generator)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        ("high", "words"),
        [
            ([1.0, torch.inf], "finite with low < high"),
            ([1.0, -0.6], "finite with low < high"),
            ([1.0, -0.5], "finite with low < high"),
            ([1.0, 2.0, 3.0], r"shapes \(2,\) and \(3,\); expected \(2,\)"),
            ([[1.0, 2.0]], r"shapes \(2,\) and \(1, 2\); expected \(2,\)"),
        ],
        ids=["infinite", "reversed", "of no width", "of another size", "of another rank"],
    )
    def test_bad_bounds_are_refused(self, name: str, planner: Searcher, high: list[float], words: str) -> None:
        """Nothing can be drawn between them; the error names the planner, what was got and what was expected."""
        with pytest.raises(PlannerError, match=f"{type(planner).__name__}: action bounds .*{words}"):
            plan_with(planner, DoubleIntegrator(action_high=torch.tensor(high)))

    def test_record_is_bounded_and_spread_over_iterations(self, name: str, planner: Searcher) -> None:
        """The record is an even sample when more was compared."""
        plan = plan_with(with_record(planner, 30), DoubleIntegrator())
        assert plan.candidates.shape == (30, HORIZON, 2)
        assert len(set(plan.candidate_iterations.tolist())) == len(plan.iteration_best_costs)


def test_iterations_improve_the_candidates() -> None:
    """The mean cost of the candidates falls as the Gaussian is refitted."""
    plan = plan_with(CEM(horizon=HORIZON, num_candidates=128, num_iterations=5), DoubleIntegrator())
    means = plan.iteration_mean_costs
    assert all(later < earlier for earlier, later in itertools.pairwise(means))


def test_the_mean_is_chosen_without_imagining_it() -> None:
    """The plan is the same, one sequence less is imagined, and the elites' mean cost stands for the mean's own."""
    known = PLANNERS["cem-mean"]
    assert isinstance(known, CEM)
    with_cost = plan_with(known, DoubleIntegrator())
    without = plan_with(replace(known, imagine_mean=False), DoubleIntegrator())
    assert torch.equal(without.actions, with_cost.actions)
    assert without.num_imagined == with_cost.num_imagined - 1 == 64
    last = without.candidate_costs[without.candidate_iterations == 1]
    assert without.cost == pytest.approx(float(last.topk(known.num_elites, largest=False).values.mean()))
    assert with_cost.cost < without.cost  # a mean costs less than its elites do on average where costs are convex


@pytest.mark.parametrize(
    "knobs", [{"num_elites": 200}, {"horizon": 0}, {"noise_correlation": 1.0}, {"min_std": 2.0}, {"choose": "worst"}]
)
def test_cem_refuses_bad_knobs(knobs: dict[str, object]) -> None:
    """The error names the knob, its value and the valid range."""
    name, value = next(iter(knobs.items()))
    with pytest.raises(PlannerError, match=f"{name}={value!r}; expected"):
        CEM(**knobs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [CEM, ICEM, MPPI, PredictiveSampling, RandomShooting, Gradient, TreeSearch])
def test_a_horizon_of_nothing_is_refused(make: Any) -> None:
    """The error names planner, knob and range."""
    with pytest.raises(PlannerError, match=f"{make.__name__}: horizon=0; expected at least 1"):
        make(horizon=0)


def test_more_starts_than_candidates_are_refused() -> None:
    """Nothing that was given is dropped silently."""
    with pytest.raises(PlannerError, match=r"42 sequences are given.*at most num_candidates=32"):
        plan_with(SMALL, DoubleIntegrator(), warm_start=torch.zeros(41, HORIZON, 2))


def test_batches_that_do_not_fit_are_refused() -> None:
    """One of everything for each environment, and dynamics that imagine for several."""
    generators = [torch.Generator(), torch.Generator()]
    with pytest.raises(PlannerError, match="2 contexts, 1 objectives"):
        plan_batch(SMALL, DoubleIntegrator(), [START, START], [to_origin], generators=generators)

    def broken(trajectory: Tensor, actions: Tensor) -> Tensor:
        return to_origin(trajectory, actions) + torch.nan

    with pytest.raises(PlannerError, match="CEM, iteration 0, environment 1, candidate 0: cost is nan"):
        plan_batch(SMALL, DoubleIntegrator(), [START, START], [to_origin, broken], generators=generators)


class TwoActions(DoubleIntegrator):
    """Allow two actions only."""

    action_set = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize("starts", [[START, -START], [-START, START]])
def test_trees_of_a_batch_end_one_after_the_other(starts: list[Tensor]) -> None:
    """What polishes the plan of one wants gradients while the other's tree still grows."""
    tree = TreeSearch(horizon=2, num_candidates=2, num_iterations=20)
    polished = Polished(planner=tree, polish=Gradient(horizon=2, num_candidates=4, num_iterations=2), num_polished=2)
    generators = [torch.Generator(), torch.Generator()]
    together = plan_batch(polished, TwoActions(), starts, [to_origin, to_origin], generators=generators)
    for start, plan in zip(starts, together, strict=True):
        alone = polished.plan(TwoActions(), start, to_origin, generator=torch.Generator())
        assert torch.equal(plan.actions, alone.actions)


def test_gradients_that_are_none_or_not_finite_are_refused() -> None:
    """Dynamics outside of torch have no gradient, a root has none at zero."""

    class Outside(DoubleIntegrator):
        def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
            return super().imagine(context, actions.detach())

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(PlannerError, match=r"Gradient, iteration 0: the costs have no gradient.*such as CEM"):
        ADAM.plan(Outside(), START, lambda states, _: states.sum((1, 2)), generator=generator)
    with pytest.raises(PlannerError, match="Gradient, iteration 0, candidate 0: gradient is nan"):
        ADAM.plan(Outside(), START, lambda _, actions: actions.square().sum((1, 2)).sqrt(), generator=generator)


def test_cem_overhead_is_below_a_millisecond_per_iteration() -> None:
    """Planning itself is cheap beside imagining (S=128, H=8, A=2)."""
    cem = CEM(horizon=8, num_candidates=128, num_iterations=20, num_elites=16)
    dynamics = DoubleIntegrator()

    def seconds() -> float:
        started = time.perf_counter()
        plan_with(cem, dynamics)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(10)) / 20 < 1e-3


def test_what_is_no_dynamics_or_plans_for_one_alone_is_named() -> None:
    with pytest.raises(PlannerError, match="object has no action_size and no action_low and no action_high and no im"):
        CEM().plan(object(), None, to_origin, generator=torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(
        PlannerError, match="Cautious plans for one environment at a time; expected a planner with a `s"
    ):
        plan_batch(Cautious(), object(), [None], [None], generators=[torch.Generator()])  # type: ignore[arg-type,list-item]
