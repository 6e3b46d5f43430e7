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

LEAK = 0.1
"""Part of the gradient of changes that passes, in training, where they are shrunk to none."""
HOLD = 0.5
"""In imagination changes of up to 1 + HOLD zones are none: rest holds, as by friction."""


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


def trust(tau: Float[Tensor, "*batch"] | float, clean: float = 1.0) -> Float[Tensor, "*batch"] | float:
    """Return the share of a corrupted value that is data in the mean, for data of unit variance.

    From level `clean` on values are taken as they are, and levels below are counted from there.
    """
    missing = clean - tau
    return 1 / (1 + ((missing > 0) * missing) ** 2)


def shrink(change: Float[Tensor, "*batch"], zone: Float[Tensor, "1"], *, is_training: bool) -> Float[Tensor, "*batch"]:
    """Return changes that are nearer to none by `zone`, and none within it (soft thresholding).

    What rests must be said exactly to stay where it is: an error of a hundredth of the usual change each frame costs a
    squared loss nothing, and adds up. A network whose small outputs are no change need not be exact.

    Args:
        change: What a network says.
        zone: Largest change that is none in training.
        is_training: Let LEAK of the gradient pass within the zone, so that a network which is there can learn to leave.
            If not (in imagination, held-out losses, teachers), changes of up to 1 + HOLD zones are none: a network
            that is a little beyond the zone would creep.
    """
    within = change.clamp(-zone, zone)
    shrunk = change - within
    if is_training:
        return shrunk + LEAK * (within - within.detach())
    return shrunk.masked_fill_(change.abs() < (1 + HOLD) * zone, 0.0)


def settle(
    after: Float[Tensor, "*batch tokens width"], before: Float[Tensor, "*batch tokens width"], least: Float[Tensor, ""]
) -> Float[Tensor, "*batch tokens width"]:
    """Return predicted frames, but the frames before in place of those that differ from them by less than `least`.

    Args:
        after: Predicted frames.
        before: The frames before them, which are known.
        least: Least root mean square, over a frame's numbers, of a change that counts.
    """
    is_still = (after - before).square().mean(dim=(-2, -1), keepdim=True) < least.square()
    return torch.where(is_still, before, after)


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
