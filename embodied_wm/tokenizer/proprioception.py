"""Proprioception as tokens: what a robot feels of itself, beside the tokens of what its camera sees.

Each row of a feature such as `observation.state`, normalised and padded with zeros to the width of a token, becomes one
more latent token of its frame (several where it is wider than a token). Predictor, planners and evaluation see more
tokens and nothing else: proprioception is imagined with the picture, and read back without loss.

Of a goal image no one knows the proprioception. A readout (`embodied_wm/heads.py`) therefore also reads it from the
picture's own tokens; what it says stands in, where `WorldModel.encode_picture` is asked for.
"""

from collections.abc import Mapping

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
        """Set the mean and std that tokens are normalised by; a feature that is one number may have the shape ()."""
        scale = Normalizer(statistics.mean.reshape(-1), statistics.std.reshape(-1))
        self.scale.load_state_dict(scale.state_dict())
        self.guess.mean.copy_(self.scale.mean)
        self.guess.std.copy_(self.scale.std)

    def fit_guess(self, latents: Float[Tensor, "rows all width"], values: Float[Tensor, "rows size"]) -> None:
        """Find the line by which it is guessed from a picture's tokens (`Readout.fit_line`)."""
        self.guess.fit_line(latents[:, : self.picture_tokens], values)

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

    @torch.no_grad()
    def guessed(self, latents: Float[Tensor, "*batch any width"]) -> Float[Tensor, "*batch all width"]:
        """Return the tokens of pictures, alone or of whole frames, and behind them what is guessed from them."""
        picture = latents[..., : self.picture_tokens, :]
        return self.join(picture, self.guess(picture))

    def loss(
        self,
        latents: Float[Tensor, "*batch all width"],
        values: Float[Tensor, "*batch size"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the loss of guessing from the tokens of the picture alone."""
        return self.guess.loss(latents[..., : self.picture_tokens, :], values, generator)


def make_proprioception(
    feature: str,
    known: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]],
    picture_tokens: int,
    token_width: int,
) -> ProprioceptionTokens | None:
    """Make the tokens of a feature; None for "".

    Args:
        feature: Name of the feature.
        known: Feature to the names and units of its values.
        picture_tokens: Tokens of the picture.
        token_width: D.

    Raises:
        ValueError: If nothing is known of the feature.
    """
    if not feature:
        return None
    if feature not in known:
        raise ValueError(
            f"proprioception={feature!r}: the data have no such feature of one axis; they have: "
            f'{", ".join(known) or "none"}. Choose one of these, or "" for a model that only sees.'
        )
    names, units = known[feature]
    return ProprioceptionTokens(names=names, units=units, picture_tokens=picture_tokens, token_width=token_width)


def joined(
    picture: Float[Tensor, "*batch tokens width"],
    values: Float[Tensor, "*rows size"] | None,
    tokens: ProprioceptionTokens | None,
) -> Float[Tensor, "*batch all width"]:
    """Return the latents of frames: their pictures' alone, or with proprioception where the model has tokens for it.

    Raises:
        ValueError: If proprioception is missing, or not wanted.
    """
    if tokens is None:
        if values is None:
            return picture
        raise ValueError(
            "got proprioception; this model has no tokens for it. Leave it out, or train a model with "
            "model.proprioception=observation.state."
        )
    if values is None:
        raise ValueError(
            f"this model wants proprioception ({', '.join(tokens.guess.names)}) with each frame and got none. Give it "
            "as proprioception=..., or use encode_picture where no one knows it, as of a goal image."
        )
    return tokens.join(picture, values.to(picture))
