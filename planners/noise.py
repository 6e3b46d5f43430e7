"""Gaussian noise that is correlated along time, so that sampled actions do not cancel themselves out.

Two families, each as a matrix that white noise is multiplied by: `correlation_factor` forgets by a constant share per
step (most samplers here), `power_law_factor` has the power spectrum f^-exponent of iCEM.
"""

import torch
from torch import Tensor


def correlation_factor(horizon: int, correlation: float, *, like: Tensor) -> Tensor:
    """Return L [H, H] such that L @ white noise is a stationary AR(1) process of unit variance.

    Neighbouring steps have the given correlation, steps k apart have correlation ** k. L is the Cholesky factor of
    that Toeplitz matrix in closed form: L[i, 0] = rho^i and L[i, j] = sqrt(1 - rho^2) rho^(i - j) for 0 < j <= i.
    """
    steps = torch.arange(horizon, dtype=like.dtype, device=like.device)
    lag = steps[:, None] - steps[None, :]
    factor = torch.where(
        lag >= 0, torch.pow(torch.full_like(lag, correlation), lag.clamp(min=0)), torch.zeros_like(lag)
    )
    factor[:, 1:] *= (1.0 - correlation**2) ** 0.5
    return factor


def power_law_factor(horizon: int, exponent: float, *, like: Tensor) -> Tensor:
    """Return L [H, H] such that L @ white noise has unit variance and a power spectrum proportional to f^-exponent.

    The spectrum is that of Timmer and Koenig (1995) as iCEM uses it: over the frequencies of H points, with the
    constant part as strong as the lowest frequency. Exponent 0 is white, 1 pink, 2 red. L is circulant: filtering
    white noise by the root of the spectrum.
    """
    steps = torch.arange(horizon, dtype=like.dtype, device=like.device)
    frequencies = torch.minimum(steps, horizon - steps).clamp(min=1) / horizon
    lag = (steps[:, None] - steps[None, :]) % horizon
    waves = torch.cos(2 * torch.pi / horizon * lag[:, :, None] * steps)
    factor = waves @ frequencies.pow(-exponent / 2)
    return factor / factor[0].square().sum().sqrt()


def correlated_noise(num_candidates: int, factor: Tensor, action_size: int, generator: torch.Generator) -> Tensor:
    """Sample noise [S, H, A] with standard normal marginals and the factor's correlation along H."""
    shape = (num_candidates, len(factor), action_size)
    white = torch.randn(shape, generator=generator, device=generator.device, dtype=factor.dtype)
    return factor @ white.to(factor.device)


def annealed(first: float, last: float, iteration: int, num_iterations: int) -> float:
    """Return what falls geometrically from `first`, in iteration 0, to `last`, in the last of several."""
    return first * (last / first) ** (iteration / max(1, num_iterations - 1))
