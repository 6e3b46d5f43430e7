"""A memory of frames from before the window, for views that come back.

A bounded window forgets what left it. With `memory=M` every frame also attends to M frames of the past, which stand
before the context as if one step older than its first frame, whenever they were seen: what counts is what they show.
(As imagination goes on they grow older, past what training windows show where context and horizon together are longer
than `trainer.sequence_length`.) They see nothing but themselves, so their keys and values are the same whatever
follows, are made once per decision and are read by all candidates from the shared context; what imagination costs grows
with M and not with the past. (Choosing them takes a distance to each frame of the past, once per decision.)

Which of the past they are is decided outside of the network, at each decision: `furthest_apart` takes those that differ
most from each other and from what the window shows. In training they are frames at random from before each window.
Where less than M frames have passed some stand there more than once, and where none have, the first of the window.
What it brings, also by other choices: `scripts/bench_memory.py`.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from embodied_wm.predictor.inputs import ABSENT, check_finite

if TYPE_CHECKING:
    from embodied_wm.predictor.model import LatentPredictor


def furthest_apart(
    past: Float[Tensor, "frames *latent"], seen: Float[Tensor, "window *latent"], num: int
) -> Int[Tensor, " num"]:
    """Return which frames of the past to remember: each the one that is furthest from all that is there already.

    Args:
        past: Latents of the frames before the window; at least one.
        seen: Latents of the window's frames.
        num: How many; frames are taken again where there are less.
    """
    past, seen = past.flatten(1), seen.flatten(1)
    gap = torch.cdist(past, seen).amin(1)
    chosen = []
    for _ in range(num):
        if gap.amax() <= 0:  # everything is there already
            gap = torch.cdist(past, seen).amin(1)
        chosen.append(int(gap.argmax()))
        gap = torch.minimum(gap, (past - past[chosen[-1]]).norm(dim=1))
        gap[chosen[-1]] = 0
    return torch.tensor(chosen, device=past.device)


def recall(
    past: Float[Tensor, "earlier tokens width"], latents: Float[Tensor, "frames tokens width"], num: int
) -> Float[Tensor, "1 memory tokens width"] | None:
    """Return `num` remembered frames of the past, when these frames are seen; None where nothing is remembered."""
    if not num:
        return None
    if not len(past):
        return latents[:1].expand(num, -1, -1)[None]
    check_finite(past)
    return past[furthest_apart(past, latents, num)][None]


def remembered(
    model: "LatentPredictor", memory: Float[Tensor, "batch memory tokens width"]
) -> tuple[Float[Tensor, "batch memory block model"], Float[Tensor, "memory 6 model"]]:
    """Return the blocks of remembered frames, which are told as known, and their modulation."""
    known = memory.new_ones(memory.shape[1])
    absent = model.kinds[ABSENT].expand(*memory.shape[:2], -1)
    assert model.remembered is not None
    blocks = model.blocks(absent, memory, memory, torch.zeros_like(memory)) + model.remembered
    return blocks, model.modulation(known, known / model.config.max_steps, known)


def before_window(
    model: "LatentPredictor",
    memory: Float[Tensor, "batch memory tokens width"],
    tokens: Float[Tensor, "batch frames block model"],
    modulation: Float[Tensor, "*batch frames 6 model"],
    positions: Int[Tensor, " frames"],
    mask: Bool[Tensor, "frames frames"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put remembered frames before what a transformer reads: its tokens, modulation, positions and mask."""
    blocks, told = remembered(model, memory)
    num, frames = memory.shape[1], tokens.shape[1]
    told = told.expand(*modulation.shape[:-3], -1, -1, -1)
    seen = torch.zeros(num + frames, num + frames, dtype=torch.bool, device=mask.device)
    seen[:, :num] = True
    seen[:num, :num] = torch.eye(num, dtype=torch.bool, device=mask.device)
    seen[num:, num:] = mask
    return (
        torch.cat([blocks, tokens], dim=1),
        torch.cat([told, modulation], dim=-3),
        torch.cat([positions.new_full((num,), int(positions.min()) - 1), positions]),
        seen,
    )


__all__ = ["before_window", "furthest_apart", "recall", "remembered"]
