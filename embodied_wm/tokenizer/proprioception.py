"""Proprioception as tokens: what a robot feels of itself, beside the tokens of what its camera sees.

Each row of a feature such as `observation.state`, normalised and padded with zeros to the width of a token, becomes one
more latent token of its frame (several where it is wider than a token). Predictor, planners and evaluation see more
tokens and nothing else: proprioception is imagined with the picture, and read back without loss.

Of a goal image no one knows the proprioception. A small network therefore also reads it from the picture's own tokens;
what it says stands in, where `WorldModel.encode_picture` is asked for.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.data.normalize import FeatureStatistics, Normalizer
from embodied_wm.heads import Readout


class ProprioceptionTokens(nn.Module):
    """Turn proprioception into latent tokens and back, and guess it from a picture's tokens."""

    def __init__(
        self, *, names: tuple[str, ...], units: tuple[str, ...], picture_tokens: int, token_width: int
    ) -> None:
        """Prepare.

        Args:
            names: One per value, P of them.
            units: Their units.
            picture_tokens: Tokens of the picture, which come first in a frame's latents.
            token_width: D.
        """
        super().__init__()
        self.size, self.picture_tokens, self.token_width = len(names), picture_tokens, token_width
        self.num_tokens = -(-self.size // token_width)
        self.scale = Normalizer.identity(self.size)
        self.guess = Readout(latent_size=picture_tokens * token_width, names=names, units=units)

    @torch.no_grad()
    def fit_statistics(self, statistics: FeatureStatistics) -> None:
        """Set the mean and std that tokens are normalised by."""
        self.scale.load_state_dict(Normalizer.from_statistics(statistics).state_dict())
        self.guess.mean.copy_(self.scale.mean)
        self.guess.std.copy_(self.scale.std)

    def encode(self, values: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch tokens width"]:
        """Return the tokens of proprioception in its own units.

        Raises:
            ValueError: If it has another size, or is not finite.
        """
        if values.shape[-1] != self.size or not torch.isfinite(values).all():
            raise ValueError(
                f"got proprioception of shape {tuple(values.shape)}; this model wants {self.size} finite numbers a "
                f"frame: {', '.join(f'{n} ({u})' for n, u in zip(self.guess.names, self.guess.units, strict=True))}"
            )
        padded = F.pad(self.scale.normalize(values), [0, self.num_tokens * self.token_width - self.size])
        return padded.unflatten(-1, (self.num_tokens, self.token_width))

    def decode(self, latents: Float[Tensor, "*batch all width"]) -> Float[Tensor, "*batch size"]:
        """Read proprioception, in its own units, back from all tokens of frames."""
        return self.scale.denormalize(latents[..., self.picture_tokens :, :].flatten(-2)[..., : self.size])

    def join(
        self, picture: Float[Tensor, "*batch tokens width"], values: Float[Tensor, "*rows size"]
    ) -> Float[Tensor, "*batch all width"]:
        """Put the tokens of proprioception behind those of the picture.

        Raises:
            ValueError: If there are not as many rows of one as of the other.
        """
        if values.shape[:-1] != picture.shape[:-2]:
            raise ValueError(
                f"got proprioception of shape {tuple(values.shape)} for frames of leading shape "
                f"{tuple(picture.shape[:-2])}; expected one row of {self.size} for each frame"
            )
        return torch.cat([picture, self.encode(values)], dim=-2)

    def join_guessed(self, picture: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch all width"]:
        """Put what is guessed from the picture behind its tokens."""
        return self.join(picture, self.guess(picture))

    def loss(
        self,
        latents: Float[Tensor, "*batch all width"],
        values: Float[Tensor, "*batch size"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the loss of guessing from the tokens of the picture alone."""
        return self.guess.loss(latents[..., : self.picture_tokens, :], values, generator)
