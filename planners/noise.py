"""Gaussian noise that is correlated along time, so that sampled actions do not cancel themselves out."""

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


def correlated_noise(num_candidates: int, factor: Tensor, action_size: int, generator: torch.Generator) -> Tensor:
    """Sample noise [S, H, A] with standard normal marginals and the factor's correlation along H."""
    shape = (num_candidates, len(factor), action_size)
    white = torch.randn(shape, generator=generator, device=generator.device, dtype=factor.dtype)
    return factor @ white.to(factor.device)
