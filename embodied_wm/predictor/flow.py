"""The mathematics of flow matching with x-prediction and of shortcut steps; no network in here.

Noise level tau in [0, 1]: 0 is pure noise, 1 is clean data, x_tau = (1 - tau) * noise + tau * data. A network that
predicts the clean data from x_tau gives the velocity (x_hat - x_tau) / (1 - tau), and sampling integrates it from tau
= 0 to 1. Shortcut models (Frans et al., arXiv 2410.12557) also tell the network the step size and train a large step
to equal two steps of half the size; Dreamer 4 (arXiv 2509.24527, section 3.2) does so with x-prediction, which is
used here.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    noise: Float[Tensor, "*batch"], data: Float[Tensor, "*batch"], tau: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Return x_tau, the straight path from noise (tau = 0) to data (tau = 1)."""
    return (1 - tau) * noise + tau * data


def corrupt(
    noise: Float[Tensor, "*batch"], data: Float[Tensor, "*batch"], tau: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Return data with noise of standard deviation 1 - tau on top: what a context frame of level tau looks like.

    Unlike on the path to noise, the data keep their size, so an imagined frame can be called a little noisy without
    being scaled first.
    """
    return data + (1 - tau) * noise


def trust(tau: Float[Tensor, "*batch"] | float) -> Float[Tensor, "*batch"] | float:
    """Return the share of a corrupted value that is data in the mean, for data of unit variance."""
    return 1 / (1 + (1 - tau) ** 2)


def velocity(
    data: Float[Tensor, "*batch"], x_tau: Float[Tensor, "*batch"], tau: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Return dx/dtau at x_tau when the path ends in `data`; tau must be below 1."""
    return (data - x_tau) / (1 - tau)


def euler_step(
    data: Float[Tensor, "*batch"], x_tau: Float[Tensor, "*batch"], tau: float, step: float
) -> Float[Tensor, "*batch"]:
    """Move from tau to tau + step towards predicted `data`; a step that reaches tau = 1 returns `data` itself."""
    if tau + step >= 1 - 1e-6:
        return data
    return x_tau + velocity(data, x_tau, torch.as_tensor(tau)) * step


def two_half_steps_target(
    first: Float[Tensor, "*batch"],
    second: Float[Tensor, "*batch"],
    x_tau: Float[Tensor, "*batch"],
    x_middle: Float[Tensor, "*batch"],
    tau: Float[Tensor, "*#batch"],
    step: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Return the x-prediction at x_tau whose one step of size `step` equals two steps of half that size.

    Args:
        first: Data predicted at x_tau for a half step.
        second: Data predicted at x_middle, where the first half step led.
        x_tau: Where both start.
        x_middle: Where the second half step starts, at tau + step / 2.
        tau: Noise level of x_tau.
        step: Size of the whole step.
    """
    mean_velocity = (velocity(first, x_tau, tau) + velocity(second, x_middle, tau + step / 2)) / 2
    return x_tau + mean_velocity * (1 - tau)
