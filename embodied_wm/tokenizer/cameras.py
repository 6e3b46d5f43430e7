"""Several cameras: a frame is their pictures side by side, and its tokens those of one camera after the other.

Each camera has an encoder, a decoder and a background of its own: a camera at the wrist sees another world than one on
the wall. The predictor's learned slot of each token tells the cameras apart, so nothing else need know of them: a
frame's height is a camera's, its width that of all of them (`embodied_wm/data/cameras.py`).
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig, LatentTerms, check_is_tensor


class CameraTokenizer(nn.Module):
    """Be a `FrameTokenizer` of pictures side by side."""

    def __init__(self, config: FrameTokenizerConfig) -> None:
        """Make one tokenizer for each of `config.cameras`."""
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList(FrameTokenizer(config.of_one_camera) for _ in range(config.cameras))

    @property
    def _cameras(self) -> list[FrameTokenizer]:
        return [cast("FrameTokenizer", part) for part in self.parts]

    def check_frames(self, frames: UInt8[Tensor, "*batch height width 3"]) -> None:
        """Raise ValueError unless frames show all cameras side by side."""
        check_is_tensor("frames", frames)
        height, width = self.config.frame_size
        if tuple(frames.shape[-3:]) != (height, width, 3) or frames.dtype != torch.uint8:
            one = self.config.image_size
            raise ValueError(
                f"got frames of shape {tuple(frames.shape)} and type {frames.dtype}; this model wants uint8 frames of "
                f"{height}x{width}x3: its {self.config.cameras} cameras of {one[0]}x{one[1]} side by side, in the "
                "order of model.embodiment.camera."
            )

    def _split(self, frames: Tensor) -> Sequence[Tensor]:
        self.check_frames(frames)
        return frames.split(self.config.image_size[1], dim=-2)

    def reconstruct(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Encode and decode pixels in [-1, 1], with gradients and without the bottleneck."""
        pictures = pixels.split(self.config.image_size[1], dim=-1)
        return torch.cat([part.reconstruct(each) for part, each in zip(self._cameras, pictures, strict=True)], dim=-1)

    def fit_background(self, frames: UInt8[Tensor, "batch height width 3"]) -> None:
        """Start the decoders from the mean of some frames."""
        for part, each in zip(self._cameras, self._split(frames), strict=True):
            part.fit_background(each)

    def loss(
        self,
        frames: UInt8[Tensor, "batch time height width 3"],
        generator: torch.Generator,
        further: LatentTerms | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the mean of the cameras' losses, and of their parts; `further` sees the latents of all of them."""
        paths: list[Tensor] = []

        def gather(path: Tensor) -> tuple[Tensor, dict[str, float]]:
            paths.append(path)
            return path.new_zeros(()), {}

        pictures = self._split(frames)
        found = [part.loss(each, generator, gather) for part, each in zip(self._cameras, pictures, strict=True)]
        loss = torch.stack([each for each, _ in found]).mean()
        metrics = {key: sum(parts[key] for _, parts in found) / len(found) for key in found[0][1]}
        if further is None:
            return loss, metrics
        added, parts = further(torch.cat(paths, dim=-1))
        return loss + added, metrics | parts

    def encode(
        self, frames: UInt8[Tensor, "*batch height width 3"], chunk: int = 512
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Encode frames into standardised latents, one camera's tokens after the other's."""
        pictures = self._split(frames)
        return torch.cat(
            [part.encode(each.contiguous(), chunk) for part, each in zip(self._cameras, pictures, strict=True)], dim=-2
        )

    def decode(
        self,
        latents: Float[Tensor, "*batch tokens channels"],
        seen: UInt8[Tensor, "height width 3"] | None = None,
        chunk: int = 512,
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Decode standardised latents into uint8 frames; see `FrameTokenizer.decode`."""
        tokens = latents.split(self.config.of_one_camera.num_tokens, dim=-2)
        known = [None] * len(tokens) if seen is None else self._split(seen)
        each = zip(self._cameras, tokens, known, strict=True)
        return torch.cat([part.decode(latent, before, chunk) for part, latent, before in each], dim=-2)

    def fit_statistics(self, frames: UInt8[Tensor, "batch height width 3"]) -> None:
        """Set what makes `encode` standardised on these frames, for each camera."""
        for part, each in zip(self._cameras, self._split(frames), strict=True):
            part.fit_statistics(each.contiguous())


def make_tokenizer(config: FrameTokenizerConfig) -> FrameTokenizer | CameraTokenizer:
    """Make the tokenizer of a configuration."""
    return FrameTokenizer(config) if config.cameras == 1 else CameraTokenizer(config)
