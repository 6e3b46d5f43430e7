"""Agreement with pytorch_mppi and pytorch-icem on the same problem (`pip install pytorch_mppi pytorch-icem`)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from planners import ICEM, MPPI
from planners.noise import power_law_factor
from scripts.bench_planners import Problem, double_integrator, plan_for

HORIZON, NUM_CANDIDATES = 8, 256


@pytest.fixture(scope="module")
def problem() -> Problem:
    return double_integrator(HORIZON)


def step(state: Tensor, action: Tensor) -> Tensor:
    """Move one step, as the problem's dynamics do."""
    velocity = state[:, 2:] + 0.5 * action
    return torch.cat([state[:, :2] + 0.5 * velocity, velocity], dim=-1)


def running_cost(state: Tensor, action: Tensor) -> Tensor:
    """Return the cost of one step, of the state after the action: what both peers ask for."""
    return state.square().sum(-1) + action.square().sum(-1)


@pytest.mark.filterwarnings("ignore")
def test_mppi_makes_the_step_of_pytorch_mppi(problem: Problem) -> None:
    """From the same noise both average to the same sequence, one iteration after the other."""
    peer_module = pytest.importorskip("pytorch_mppi")
    low, high = problem.dynamics.action_low, problem.dynamics.action_high
    peer = peer_module.MPPI(
        step,
        running_cost,
        4,
        noise_sigma=torch.eye(2, dtype=torch.float64) * (0.3 * 3.0) ** 2,
        num_samples=NUM_CANDIDATES,
        horizon=HORIZON,
        lambda_=0.7,
        u_min=low,
        u_max=high,
        U_init=torch.zeros(HORIZON, 2, dtype=torch.float64),
    )
    ours = MPPI(
        horizon=HORIZON,
        num_candidates=NUM_CANDIDATES,
        num_iterations=4,
        temperature=0.7,
        is_relative=False,
        std=0.3,
        final_std=0.3,
        noise_correlation=0.0,
        control_weight=1.0,
        include_mean=False,
        include_zero=False,
    )
    torch.manual_seed(3)
    for _ in range(4):
        peer.command(problem.start, shift_nominal_trajectory=False)
    plan = plan_for(ours, problem, 3)
    torch.testing.assert_close(plan.actions, peer.get_action_sequence(), rtol=1e-9, atol=1e-9)
    assert plan.cost < 2 * problem.cost(problem.optimum)


@pytest.mark.filterwarnings("ignore")
def test_icem_agrees_with_pytorch_icem(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same noise both choose the same sequence."""
    peer_module = pytest.importorskip("pytorch_icem")
    factor = power_law_factor(HORIZON, 2.0, like=torch.zeros(1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(5)

    def same_noise(exponent: float, size: tuple[int, int, int]) -> np.ndarray:
        assert exponent == 2.0
        white = torch.randn(size[0], size[2], size[1], generator=generator, dtype=torch.float64)
        return (factor @ white).transpose(1, 2).numpy()

    monkeypatch.setattr("colorednoise.powerlaw_psd_gaussian", same_noise)
    peer = peer_module.iCEM(
        step,
        lambda states, actions: running_cost(states, actions).sum(-1),
        nx=4,
        nu=2,
        sigma=torch.full((2,), 1.5, dtype=torch.float64),
        num_samples=NUM_CANDIDATES,
        num_elites=NUM_CANDIDATES // 8,
        horizon=HORIZON,
        elites_keep_fraction=0.25,
        alpha=0.1,
        noise_beta=2.0,
        warmup_iters=12,
    )
    chosen, _ = peer.command(problem.start, shift_nominal_trajectory=False, return_full_trajectories=True)
    ours = ICEM(
        horizon=HORIZON,
        num_candidates=NUM_CANDIDATES,
        num_iterations=12,
        num_elites=NUM_CANDIDATES // 8,
        shrink=1.0,
        initial_std=0.5,
        noise_exponent=2.0,
        num_kept=NUM_CANDIDATES // 32,
    )
    plan = plan_for(ours, problem, 5)
    best, theirs = problem.cost(problem.optimum), problem.cost(chosen[:, 4:])
    assert plan.cost / best - 1 < 1.5 * (theirs / best - 1) + 0.005
    assert theirs / best - 1 < 1.5 * (plan.cost / best - 1) + 0.005
    assert (plan.actions - chosen[:, 4:]).abs().max() < 0.2


def test_coloured_noise_has_the_spectrum_of_colorednoise() -> None:
    """The same power at every frequency, relative to the others, as the package that iCEM's authors use."""
    colorednoise = pytest.importorskip("colorednoise")
    for horizon, exponent in ((8, 2.0), (9, 1.0)):
        theirs = colorednoise.powerlaw_psd_gaussian(exponent, (40_000, horizon), random_state=0)
        power = (np.abs(np.fft.rfft(theirs, axis=1)) ** 2).mean(0)
        factor = power_law_factor(horizon, exponent, like=torch.zeros(1, dtype=torch.float64)).numpy()
        ours = np.fft.rfft((factor @ factor.T)[0]).real
        np.testing.assert_allclose(power / power.sum(), ours / ours.sum(), rtol=0.05)
