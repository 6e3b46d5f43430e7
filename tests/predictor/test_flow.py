"""The path, the sampler's order on a solved problem, and the shortcut target."""

from itertools import pairwise

import pytest
import torch

from embodied_wm.predictor import flow


def gaussian_posterior_mean(x: torch.Tensor, tau: float) -> torch.Tensor:
    """Return E[data | x_tau] when data are N(2, 0.5^2) and noise is N(0, 1): the exact x-prediction."""
    mean, std = 2.0, 0.5
    variance = (1 - tau) ** 2 + (tau * std) ** 2
    return mean + tau * std**2 / variance * (x - tau * mean)


def sample(num_steps: int, noise: torch.Tensor) -> torch.Tensor:
    x = noise
    for index in range(num_steps):
        tau = index / num_steps
        x = flow.euler_step(gaussian_posterior_mean(x, tau), x, tau, 1 / num_steps)
    return x


def test_path_ends_at_noise_and_data() -> None:
    noise, data = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(flow.interpolate(noise, data, torch.tensor(0.0)), noise)
    assert torch.equal(flow.interpolate(noise, data, torch.tensor(1.0)), data)


def test_velocity_of_the_true_data_is_constant_along_the_path() -> None:
    noise, data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    for level in (0.0, 0.3, 0.9):
        tau = torch.tensor(level, dtype=torch.float64)
        assert torch.allclose(flow.velocity(data, flow.interpolate(noise, data, tau), tau), data - noise)


def test_sampler_converges_to_the_exact_flow_of_a_gaussian() -> None:
    """The exact flow maps noise n to 2 + 0.5 n; Euler's error must fall with the first order of the step."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [float((sample(steps, noise) - (2 + 0.5 * noise)).abs().max()) for steps in (8, 16, 32, 64)]
    assert errors[-1] < 0.03
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


def test_two_half_steps_target_lands_where_two_half_steps_land() -> None:
    x = torch.randn(7, dtype=torch.float64)
    tau, step = torch.tensor(0.25, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    first = gaussian_posterior_mean(x, 0.25)
    middle = flow.euler_step(first, x, 0.25, 0.25)
    second = gaussian_posterior_mean(middle, 0.5)
    landed = flow.euler_step(second, middle, 0.5, 0.25)
    target = flow.two_half_steps_target(first, second, x, middle, tau, step)
    assert torch.allclose(flow.euler_step(target, x, 0.25, 0.5), landed)


def test_corrupted_data_keep_their_size_and_are_trusted_as_far_as_they_are_data() -> None:
    noise, data = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0)).double()
    for level in (0.2, 0.9, 0.97):
        tau = torch.tensor(level)
        corrupted = flow.corrupt(noise, data, tau)
        assert float(corrupted @ data / (data @ data)) == pytest.approx(1.0, abs=5e-3)  # never scaled
        slope = float(corrupted @ data / (corrupted @ corrupted))  # the best guess of the data is slope * corrupted
        assert float(flow.trust(tau)) == pytest.approx(slope, abs=5e-3)
    assert torch.equal(flow.corrupt(noise, data, torch.tensor(1.0)), data)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_last_step_returns_the_prediction_itself(tau: float) -> None:
    data = torch.randn(4)
    assert torch.equal(flow.euler_step(data, torch.randn(4), tau, 1 - tau), data)
