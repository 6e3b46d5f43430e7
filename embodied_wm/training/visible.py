"""How much the decoded picture moves with each number of a latent: what an error of the predictor counts by.

Key points of a few things are many more than what is seen of them: of the 64 numbers of a latent of `drawer` six carry
nine tenths of what a wrong frame shows sixteen steps ahead, and a squared error that weighs all alike is mostly about
the rest, some of which jitters and cannot be foretold. So numbers can be weighed by the squared change of the decoded
picture when they move: the diagonal of the decoder's pullback metric, averaged over frames.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.world_model import WorldModel

MOVED = 0.1
"""How far a number is moved, in its standard deviations."""
NUM_FRAMES = 128


@torch.no_grad()
def visible_weights(
    model: WorldModel, latents: Float[Tensor, "frames tokens channels"]
) -> Float[Tensor, "tokens channels"]:
    """Return the weight of each number of a latent in errors of prediction; their mean is 1.

    Tokens that are no picture (proprioception) weigh 1 each; of the others a part of
    `model.config.predictor.visible_share` is shared by how much the picture moves with them, the rest equally.

    Args:
        model: Whose decoder is asked.
        latents: Of real frames, of which up to 128 are looked at, evenly.
    """
    share = model.config.predictor.visible_share
    some = latents[:: max(1, len(latents) // NUM_FRAMES)][:NUM_FRAMES].to(model.action_low.device)
    pictured = model.config.tokenizer.num_tokens
    still = model.decode(some).float()
    weights = torch.ones_like(some[0])
    for token in range(pictured):
        for channel in range(some.shape[-1]):
            moved = some.clone()
            moved[:, token, channel] += MOVED
            weights[token, channel] = (model.decode(moved).float() - still).square().mean()
    seen = weights[:pictured]
    weights[:pictured] = share * seen / seen.mean().clamp_min(torch.finfo(seen.dtype).tiny) + 1 - share
    return weights
