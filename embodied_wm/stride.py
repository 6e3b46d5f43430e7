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


def filled(
    last: Float[Tensor, "*rest tokens width"], states: Float[Tensor, "batch steps tokens width"], stride: int
) -> Float[Tensor, "batch time tokens width"]:
    """Return a state after every action, on straight lines through the last known state and one after every stride."""
    if stride == 1:
        return states
    known = last.expand(len(states), *states.shape[2:])[:, None]
    before = torch.cat([known, states[:, :-1]], dim=1)
    parts = torch.arange(1, stride + 1, device=states.device) / stride
    return torch.lerp(before[:, :, None], states[:, :, None], parts[:, None, None].to(states.dtype)).flatten(1, 2)
