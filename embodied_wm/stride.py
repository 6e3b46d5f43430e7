"""Temporal compression: one latent for every k-th frame, led to by the k actions in between.

A model with `temporal_stride=k` imagines k frames of data in one step of its predictor. Planners do not see it: actions
are given one by one, imagined latents come back one for each, the ones in between on a straight line between those that
were imagined. Of a context of C frames it looks at every k-th, so it wants k times as many (`context_frames`). It can
neither be extended frame by frame nor step one action at a time. Nothing looks ahead: a latent is of one frame, and
every frame is known when it is imagined from.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def thinned(frames: Tensor, stride: int) -> Tensor:
    """Return every stride-th of frames [T, ...], the last one included."""
    return frames[(len(frames) - 1) % stride :: stride]


def spread(frames: Tensor, stride: int) -> Tensor:
    """Return frames of which `thinned` gives these back: each again and again, until the next one."""
    return frames.repeat_interleave(stride, dim=0)[stride - 1 :]


def chunked(actions: Float[Tensor, "*batch time action"], stride: int) -> Float[Tensor, "*batch steps chunk"]:
    """Return the actions of each step side by side; what is missing of the last step repeats the last action."""
    if stride == 1:
        return actions
    missing = -actions.shape[-2] % stride
    if missing:
        actions = torch.cat([actions, actions[..., -1:, :].expand(*actions.shape[:-2], missing, -1)], dim=-2)
    return actions.unflatten(-2, (-1, stride)).flatten(-2)


def unchunked(actions: Float[Tensor, "*batch steps chunk"], stride: int) -> Float[Tensor, "*batch time action"]:
    """Return actions one by one, of actions that lie side by side."""
    return actions.unflatten(-1, (stride, -1)).flatten(-3, -2)


def context_frames(count: int, stride: int) -> int:
    """Return how many frames of data a context is of which `count` are looked at."""
    return (count - 1) * stride + 1


def filled(
    last: Tensor, states: Float[Tensor, "batch steps *state"], stride: int
) -> Float[Tensor, "batch time *state"]:
    """Return a state after every action, on straight lines between one after every stride; `last` is before them all.

    Args:
        last: The last known state, [*state], or one for each of the batch.
        states: Those after every stride-th action.
        stride: Actions from one to the next.
    """
    if stride == 1:
        return states
    known = last.expand(len(states), *states.shape[2:])[:, None]
    before = torch.cat([known, states[:, :-1]], dim=1)
    parts = torch.arange(1, stride + 1, device=states.device, dtype=states.dtype) / stride
    parts = parts.reshape(-1, *[1] * (states.ndim - 2))
    return torch.lerp(before[:, :, None], states[:, :, None], parts).flatten(1, 2)
