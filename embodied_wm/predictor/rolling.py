"""Roll a context on: a new real frame's keys and values behind the old ones, of which the oldest are dropped.

Nothing is encoded again. What equals what: the context is, to float precision, the last frames of one prefill over the
*whole* history in which every frame sees itself and at most `max_frames` frames before it. In deeper layers it does not
equal a prefill of the last frames alone: there the oldest frames' keys were made without a past, here with the past
that they had. So a rolled context knows a little more, reaching back `max_frames` frames per layer, at the memory of
`max_frames` frames and at a cost that does not depend on how long the episode is.

Positions grow by one per frame. Only their differences count; angles are computed in single precision, so after 10,000
frames they are off by up to 0.001, and an episode should end, or be prefilled anew, long before a million.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.inputs import check_finite
from embodied_wm.predictor.model import LatentPredictor


@torch.no_grad()
def roll(
    model: LatentPredictor,
    context: Context,
    latents: Float[Tensor, "tokens width"],
    led_by: Float[Tensor, " model"],
    *,
    max_frames: int | None = None,
) -> Context:
    """Return the context with one more real frame, and no more than `max_frames`.

    Args:
        model: The predictor that made the context.
        context: Of one environment.
        latents: Clean latents of the new frame.
        led_by: Embedded action that led to it.
        max_frames: Frames that are kept, at most `window - 1`, which None keeps; the same in every call.

    Raises:
        ValueError: If latents are not finite, `max_frames` is out of range, or the context is one of matrices or holds
            remembered frames.
    """
    if context.states:
        raise ValueError(
            "got a context of matrices (transformer.mixer='gated_delta'), which new frames are not written to; prefill "
            "it anew"
        )
    if context.memory_tokens:
        raise ValueError(
            "got a context with remembered frames (predictor.memory > 0), which are chosen anew for every frame; "
            "prefill it anew (rolling=false)"
        )
    most = model.config.window - 1
    max_frames = most if max_frames is None else max_frames
    if not 1 <= max_frames <= most:
        raise ValueError(f"got max_frames={max_frames}; this model's window of {most + 1} frames keeps 1 to {most}")
    check_finite(latents)
    block, last = model.block, context.last_latents
    change = last - context.before_last
    tokens, modulation = model.known_blocks(
        led_by[None, None], latents[None, None], last[None, None], change[None, None]
    )
    cache = CandidateCache(context, num_candidates=1, max_tokens=block)
    model.transformer.extend(
        tokens,
        modulation,
        model.transformer.rotary(torch.full((1,), context.next_position, device=latents.device), block),
        cache,
        window_tokens=(max_frames + 1) * block,
    )
    kept = max_frames * block
    return Context(
        keys=_joined(context.keys, cache.keys, kept),
        values=_joined(context.values, cache.values, kept),
        num_frames=min(context.num_frames + 1, max_frames),
        next_position=context.next_position + 1,
        last_latents=latents,
        before_last=last,
    )


def _joined(old: tuple[Tensor, ...], new: list[Tensor], kept: int) -> tuple[Tensor, ...]:
    """Return the last `kept` tokens of every layer, in tensors of their own, so that what is dropped is freed."""
    return tuple(
        torch.cat([first[:, max(0, first.shape[1] + added.shape[2] - kept) :], added[0]], dim=1)
        for first, added in zip(old, new, strict=True)
    )
