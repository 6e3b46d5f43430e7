"""Every planner reaches optima that are known: a quadratic, Riccati's double integrator, two ways round a hill."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor

from planners import (
    CEM,
    ICEM,
    MPPI,
    BestProposal,
    Gradient,
    Knots,
    PlannerError,
    Polished,
    PredictiveSampling,
    Proposing,
    RandomShooting,
    RecordedActions,
    Searcher,
    TreeSearch,
)
from planners.knots import Interpolation, interpolation_matrix
from planners.noise import annealed, correlated_noise, correlation_factor, power_law_factor
from scripts.bench_planners import PROBLEMS, PointMass, Problem, detour, double_integrator, plan_for

HORIZON = 6
SIZES: dict[str, Any] = {"horizon": HORIZON, "num_candidates": 192, "num_iterations": 20}
ADAM = Gradient(horizon=HORIZON, num_candidates=24, num_iterations=80, final_rate=1e-3)
SHOOTING = RandomShooting(**SIZES)
# Planner, and how much dearer than the optimum its plan may be.
PLANNERS: dict[str, tuple[Searcher, float]] = {
    "cem": (CEM(**SIZES, num_elites=20, min_std=0.002, noise_correlation=0.0), 0.01),
    "cem-mean": (CEM(**SIZES, num_elites=20, min_std=0.002, noise_correlation=0.0, choose="mean"), 0.01),
    "icem": (ICEM(**SIZES, num_elites=20, noise_exponent=0.5, shrink=1.03), 0.01),
    "mppi": (MPPI(**SIZES, std=0.7, final_std=0.02, noise_correlation=0.0), 0.01),
    "predictive-sampling": (PredictiveSampling(**SIZES, std=0.7, final_std=0.02, noise_correlation=0.0), 0.04),
    "gradient": (ADAM, 1e-3),
    "polished": (
        Polished(planner=CEM(horizon=HORIZON, num_candidates=192, num_iterations=6, num_elites=20), polish=ADAM),
        1e-3,
    ),
}


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {name: make(HORIZON) for name, make in PROBLEMS.items()}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("planner", "excess"), PLANNERS.values(), ids=PLANNERS)
def test_planners_reach_the_optimum(problems: dict[str, Problem], name: str, planner: Searcher, excess: float) -> None:
    problem = problems[name]
    best = problem.cost(problem.optimum)
    plan = plan_for(planner, problem, 0)
    assert best <= plan.cost * (1 + 1e-9)
    if name == "detour":  # with lesser optima on each side, too
        assert plan.cost < 1.05 * best
        return
    assert plan.cost < best * (1 + excess)
    assert (plan.actions - problem.optimum).abs().max() < 0.2
    assert plan_for(SHOOTING, problem, 0).cost - best > 10 * (plan.cost - best)


def test_the_optima_are_optima(problems: dict[str, Problem]) -> None:
    """Small changes within the bounds never make them cheaper, and the detour's mirror image costs the same."""
    for problem in problems.values():
        generator = torch.Generator().manual_seed(0)
        for size in (1e-3, 1e-2, 1e-1):
            change = size * torch.randn(200, HORIZON, 2, generator=generator, dtype=torch.float64)
            tried = (problem.optimum + change).clamp(problem.dynamics.action_low, problem.dynamics.action_high)
            costs = problem.objective(problem.dynamics.imagine(problem.start, tried), tried)
            assert (costs >= problem.cost(problem.optimum) - 1e-9).all()
    mirrored = problems["detour"].optimum * torch.tensor([1.0, -1.0])
    assert problems["detour"].cost(mirrored) == pytest.approx(problems["detour"].cost(problems["detour"].optimum))


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "polished"])
def test_both_ways_round_the_hill_are_found(problems: dict[str, Problem], name: str) -> None:
    """A planner commits to one of two modes; their average would go over the top."""
    problem, sides = problems["detour"], set[bool]()
    for seed in range(12):
        plan = plan_for(PLANNERS[name][0], problem, seed)
        assert plan.cost < 1.2 * problem.cost(problem.optimum)
        sides.add(bool(problem.dynamics.imagine(problem.start, plan.actions[None])[0, HORIZON // 2, 1] > 0))
        if len(sides) == 2:
            break
    assert sides == {True, False}
    assert problem.cost((problem.optimum + problem.optimum * torch.tensor([1.0, -1.0])) / 2) > 2 * plan.cost


def test_a_gradient_alone_stays_in_its_valley() -> None:
    """From zero actions the line over the top is never left: what several starts, or CEM before, are for."""
    problem = detour(HORIZON)
    alone = plan_for(Gradient(horizon=HORIZON, num_candidates=1, num_iterations=120), problem, 0)
    assert torch.equal(alone.actions[:, 1], torch.zeros(HORIZON, dtype=torch.float64))
    assert alone.cost > 1.5 * problem.cost(problem.optimum)


@dataclass
class Levels(PointMass):
    """A point mass whose actions have five levels in each direction."""

    num_levels: int = 5

    @property
    def action_set(self) -> Tensor:
        """Return every allowed action [25, 2]."""
        levels = torch.linspace(-self.bound, self.bound, self.num_levels, dtype=torch.float64)
        return torch.cartesian_prod(levels, levels)


def test_tree_search_finds_the_best_of_all_sequences() -> None:
    """Of 15,625 sequences of three actions, an eighth is imagined; every imagined action is an allowed one."""
    dynamics, horizon = Levels(1, 1.0), 3
    problem = detour(horizon)
    every = dynamics.action_set[torch.tensor(list(itertools.product(range(25), repeat=horizon)))]
    costs = problem.objective(dynamics.imagine(problem.start, every), every)
    tree = TreeSearch(horizon=horizon, num_candidates=64, num_iterations=30)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        plan = tree.plan(dynamics, problem.start, problem.objective, generator=generator)
        assert plan.cost == pytest.approx(float(costs.min()))
        assert (torch.cdist(plan.candidates.flatten(0, 1), dynamics.action_set).amin(1) == 0).all()
    warm = tree.plan(
        dynamics, problem.start, problem.objective, warm_start=torch.full((3, 2), 0.7).double(), generator=generator
    )
    assert warm.candidates[0].unique().tolist() == [0.5]  # the nearest allowed


def test_tree_search_ends_when_everything_was_tried() -> None:
    """Nothing is imagined twice, and the search stops early."""
    dynamics = Levels(1, 1.0, num_levels=3)
    problem = double_integrator(2)
    tree = TreeSearch(horizon=2, num_candidates=16, num_iterations=50, num_recorded=1000)
    plan = tree.plan(dynamics, problem.start[:2], lambda s, _: s.square().sum((1, 2)), generator=torch.Generator())
    assert plan.num_imagined <= 81 + 8  # the best path so far is imagined once as a leaf, and its tail as another
    assert len(plan.candidates.unique(dim=0)) == 81


def test_tree_search_refuses_actions_outside_the_bounds() -> None:
    """A set must consist of actions of the right size, within the bounds."""
    dynamics = Levels(1, 1.0)
    dynamics.action_high = dynamics.action_high / 2
    with pytest.raises(PlannerError, match=r"action_set has shape \(25, 2\); expected \[M, 2\].*within"):
        TreeSearch(horizon=2).plan(dynamics, torch.zeros(2), lambda s, _: s.sum((1, 2)), generator=torch.Generator())


@pytest.mark.parametrize("interpolation", ["zero", "linear", "cubic"])
def test_knots_find_a_spline(interpolation: Interpolation) -> None:
    """Where the best actions lie on a spline of four knots, searching the knots finds them, sooner than all actions."""
    horizon = 16
    basis = interpolation_matrix(4, horizon, interpolation, like=torch.zeros(1, dtype=torch.float64))
    target = basis @ torch.tensor([[0.5, -0.8], [-0.4, 0.1], [0.6, 0.6], [0.0, -0.2]], dtype=torch.float64)
    cem = CEM(horizon=4, num_candidates=96, num_iterations=12, num_elites=12, min_std=0.002, noise_correlation=0.0)

    def cost(_: Tensor, actions: Tensor) -> Tensor:
        return (actions - target).square().sum((1, 2))

    def plan(planner: Searcher) -> float:
        generator = torch.Generator().manual_seed(0)
        return planner.plan(PointMass(1, 1.0), torch.zeros(2).double(), cost, generator=generator).cost

    found = plan(Knots(planner=cem, horizon=horizon, interpolation=interpolation))
    assert found < 1e-2
    every = CEM(horizon=horizon, num_candidates=96, num_iterations=12, num_elites=12)
    assert plan(every) > 20 * found
    adam = Gradient(horizon=4, num_candidates=4, num_iterations=120, final_rate=1e-4)
    assert plan(Knots(planner=adam, horizon=horizon, interpolation=interpolation)) < 1e-3


def test_interpolation_agrees_with_numpy_and_scipy() -> None:
    """Linear as numpy.interp, cubic as scipy's Hermite spline with central slopes, zero-order as repeats."""
    knots = np.random.default_rng(0).normal(size=5)
    place, steps = np.arange(5.0), np.linspace(0.0, 4.0, 13)
    like = torch.zeros(1, dtype=torch.float64)

    def ours(interpolation: Interpolation, horizon: int) -> np.ndarray:
        return (interpolation_matrix(5, horizon, interpolation, like=like) @ torch.from_numpy(knots)).numpy()

    np.testing.assert_allclose(ours("linear", 13), np.interp(steps, place, knots), atol=1e-12)
    cubic = CubicHermiteSpline(place, knots, np.gradient(knots))
    np.testing.assert_allclose(ours("cubic", 13), cubic(steps), atol=1e-12)
    np.testing.assert_allclose(ours("zero", 15), knots.repeat(3), atol=0)
    assert ours("zero", 13).tolist() == knots[[0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]].tolist()
    for interpolation in ("zero", "linear", "cubic"):
        assert interpolation_matrix(1, 4, interpolation, like=like).tolist() == [[1.0]] * 4


def test_impossible_splines_are_refused() -> None:
    """More knots than steps, or an interpolation that does not exist."""
    with pytest.raises(PlannerError, match="horizon=8 is the number of knots; expected 1 to the horizon 4"):
        Knots(planner=CEM(horizon=8), horizon=4)
    with pytest.raises(PlannerError, match="interpolation='sinc'; expected 'zero', 'linear' or 'cubic'"):
        Knots(planner=CEM(horizon=2), horizon=4, interpolation="sinc")  # pyright: ignore[reportArgumentType]


def test_good_proposals_are_found_and_bad_ones_do_no_harm(problems: dict[str, Problem]) -> None:
    """Random shooting with the optimum among its proposals returns it; useless proposals change little."""
    problem = problems["double_integrator"]
    rows = torch.cat([torch.zeros(3, 2).double(), problem.optimum, torch.zeros(2, 2).double()])
    data = RecordedActions(episodes=(rows, torch.zeros(2, 2).double()))
    plan = plan_for(Proposing(planner=SHOOTING, num_proposals=32, proposals=data), problem, 0)
    assert plan.cost == pytest.approx(problem.cost(problem.optimum))
    junk = RecordedActions(episodes=(torch.full((HORIZON, 2), 3.0).double(),))
    cem = PLANNERS["cem"][0]
    harmed = plan_for(Proposing(planner=cem, num_proposals=32, proposals=junk), problem, 0)
    assert harmed.cost < 1.01 * problem.cost(problem.optimum)


def test_dynamics_can_propose_and_missing_proposals_are_refused(problems: dict[str, Problem]) -> None:
    """Without a callable the dynamics are asked; what they give is checked and put into the bounds."""
    problem = problems["double_integrator"]

    class Proposes(PointMass):
        num_rows = HORIZON

        def propose(self, context: Tensor, num: int, horizon: int, generator: torch.Generator) -> Tensor:
            assert torch.equal(context, problem.start)
            return 9 * problem.optimum[: self.num_rows].expand(num, -1, -1)

    dynamics = Proposes(2, 3.0)
    planner = Proposing(planner=replace(SHOOTING, num_recorded=10_000), num_proposals=3)
    generator = torch.Generator().manual_seed(0)
    plan = planner.plan(dynamics, problem.start, problem.objective, generator=generator)
    torch.testing.assert_close(plan.candidates[1], (9 * problem.optimum).clamp(-3.0, 3.0))
    dynamics.num_rows = 2
    with pytest.raises(PlannerError, match=r"a proposal has shape \(3, 2, 2\); expected \(6, 2\)"):
        planner.plan(dynamics, problem.start, problem.objective, generator=generator)
    with pytest.raises(PlannerError, match="neither PointMass nor the objective has a `propose`"):
        plan_for(planner, problem, 0)
    with pytest.raises(PlannerError, match="no episode is as long as the horizon 6"):
        plan_for(Proposing(proposals=RecordedActions(episodes=()), planner=SHOOTING), problem, 0)


def test_a_policy_alone_gives_a_plan_without_search(problems: dict[str, Problem]) -> None:
    """One proposal is imagined and returned; of several the cheapest is."""
    problem = problems["double_integrator"]
    data = RecordedActions(episodes=(torch.cat([torch.zeros(1, 2).double(), problem.optimum]),))
    alone = plan_for(BestProposal(horizon=HORIZON, proposals=data), problem, 0)
    assert alone.num_imagined == 1
    assert alone.cost == pytest.approx(problem.cost(alone.actions))
    best = plan_for(BestProposal(horizon=HORIZON, num_proposals=20, proposals=data), problem, 0)
    assert torch.equal(best.actions, problem.optimum)
    with pytest.raises(PlannerError, match="BestProposal: neither PointMass nor the objective has a `propose`"):
        plan_for(BestProposal(horizon=HORIZON), problem, 0)


def test_parts_of_a_polished_planner_must_fit() -> None:
    """Both plan the same number of steps."""
    with pytest.raises(PlannerError, match="planner has horizon=4, polish horizon=5"):
        Polished(planner=CEM(horizon=4), polish=Gradient(horizon=5))


def test_noise_has_unit_variance_and_the_stated_correlation() -> None:
    """Marginals are standard normal; steps k apart correlate by correlation ** k."""
    factor = correlation_factor(5, 0.6, like=torch.zeros(1, dtype=torch.float64))
    steps = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, 0.6 ** (steps[:, None] - steps).abs())
    noise = correlated_noise(20_000, factor, 1, torch.Generator().manual_seed(0))[..., 0]
    torch.testing.assert_close(torch.cov(noise.T), factor @ factor.T, atol=0.04, rtol=0)
    assert torch.equal(correlation_factor(4, 0.0, like=torch.zeros(1)), torch.eye(4))


@pytest.mark.parametrize("horizon", [1, 2, 7, 8])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_coloured_noise_has_unit_variance_and_the_stated_spectrum(horizon: int, exponent: float) -> None:
    """The power of frequency f is proportional to f^-exponent, the constant part as strong as the lowest."""
    factor = power_law_factor(horizon, exponent, like=torch.zeros(1, dtype=torch.float64))
    covariance = (factor @ factor.T).numpy()
    np.testing.assert_allclose(np.diag(covariance), 1.0)
    power = np.fft.rfft(covariance[0]).real
    frequencies = np.maximum(np.fft.rfftfreq(horizon), 1 / horizon)
    np.testing.assert_allclose(power / power[0], (frequencies / frequencies[0]) ** -exponent, rtol=1e-9)


def test_annealing_is_geometric() -> None:
    """From the first value to the last, and the first alone where there is one iteration."""
    assert [annealed(1.0, 0.01, index, 3) for index in range(3)] == pytest.approx([1.0, 0.1, 0.01])
    assert annealed(0.5, 0.1, 0, 1) == 0.5
