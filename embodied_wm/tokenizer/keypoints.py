"""Key points: a frame as the places of a few things in it, found without labels.

The encoder turns a frame into one heat map per key point and takes each map's mean place (spatial softmax, Finn et al.
2016, arXiv 1509.06113); the decoder draws a Gaussian blob at each place and paints the frame from them (as in Jakab
et al. 2018, arXiv 1806.07823, and Minderer et al. 2019, arXiv 1906.07889). Both train on reconstruction alone.

Why: where things are is then a smooth, nearly linear part of the latents, and the same everywhere in the frame. In a
free code, "the pusher is here" is another direction at every place, and the predictor must learn motion at each anew.
On `push` (600 episodes, minutes on two CPU cores, one seed), one token of 64 free numbers against 16 key points, all
else alike: a probe reads the pusher to 0.7 against 0.2 cm and the box to 0.34 against 0.12 cm; imagined cost ranks
candidates like the physical one (Spearman 0.30 against 0.82); planning brings the box home in 0 against 11 of 20.
(15 of 20 since, by mending how context is corrupted and by executing the mean of CEM's elites.)
On `reach` free numbers do better: a long thin arm is painted badly from blobs (decoded frames 28.7 against 31 dB, tip
imagined to 1.1 against 0.9 cm at 8 steps).

A thing that turns should take its key points along, and nothing in reconstruction says so: points that slide over a
turning thing paint it as well. `turning_error` says so, without labels: what differs from the background is turned
and moved in the picture, and the points must follow (equivariance, as in Thewlis et al. 2017, arXiv 1705.02193).
Why: on `push_t` the model with 16 free points foretold where the T goes, but eight steps ahead its direction no better
than by copying (cosine off by 0.38, copied 0.41), and solved 0.54 of 50 goals, with 2.25 times the episodes 0.48. After
1,000 steps on 800 episodes (held-out: what a readout makes of real frames, pusher's x / T's x / cosine of its yaw; the
last model is the one of 16 points that shipped, after 1,800 steps; one seed each):

    points, turning_weight    pusher   T        cosine
    16, 0.1                   2.15 cm  0.17 cm  0.041
    16, 1.0                   2.72 cm  0.20 cm  0.046   all points crowd on the T
    16, 5.0                   4.51 cm  0.20 cm  0.051
    32, 0                     1.10 cm  0.14 cm  0.031
    32, 0.2                   0.26 cm  0.11 cm  0.022   and 26.0 dB where 32 free points have 23.1
    16, 0, shipped            0.33 cm  0.17 cm  0.049

With 2,400 episodes and 2,000 steps 0.15 cm, 0.08 cm and 0.012, and 0.90 and 0.96 of 100 goals were solved, from two
draws of first weights. More episodes do help then: a plain network on MuJoCo's own state, rolled out, is off by 1.6 cm
at the T's stem at 8 steps when it has seen 720 of them, and by 1.0 cm after 2,160; on these latents it is 2.1 and
1.9 cm, where it was 2.7.

Points start in the middle, where flat heat maps put them, and leave it late or never; `eager` ones are helped. Their
first maps are peaked (`PEAKED`): after 300 steps of `push_t` the squared error is 0.041 with weights as they are drawn,
0.021 with eight times as large ones, 0.021 with 24 times; painting nothing leaves 0.043. And what is asked beside
painting counts only as far as points paint already, since points that all lie in one place are straightest and turn
best: on `drawer` they had painted nothing after 1,000 steps (0.048), paced like this 0.029 was left after 400 steps,
with peaked maps 0.022; `drawer` is planned on them (0.90 of 100) and `push` better than before (0.99).
Not so `push_t`, where eager points paint better (29.0 instead of 28.1 dB) and plan worse (0.66 of the first 41 goals):
in the T's frame the one that is furthest from its middle lies 1.5 cm out, of the others 4.2, and what says where the T
points is the length of that arm. Fifteen times the weight of turning makes them follow to the pixel, at the same arms,
and a penalty on points that are near each other, or on broad maps, did not lengthen them in 500 steps.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

STRIDE = 4
"""Pixels per cell of the heat maps; their mean places are much finer."""

BLOB = 1.5
"""Standard deviation of the blobs, in cells."""

PEAKED = 8.0
"""What the first heat maps are multiplied by: flat ones put all points in the middle, which takes long to leave."""

MOST_SHIFT = 0.25
"""Most that `turning_error` moves a picture, in halves of it."""

SCALE = 2.0
"""Coordinates run from -SCALE to SCALE over the frame, which gives things that go anywhere about unit variance."""


def _normalised(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, channels), nn.SiLU()]


def _cells(count: int, like: Tensor) -> Tensor:
    """Return the coordinates of a row of cells, from -1 to 1."""
    return torch.linspace(-1.0, 1.0, count, dtype=like.dtype, device=like.device)


class KeypointEncoder(nn.Module):
    """Find `num_keypoints` places in a frame."""

    def __init__(self, channels: tuple[int, ...], num_keypoints: int, *, peaked: float = 1.0) -> None:
        """Prepare.

        Args:
            channels: Widths of the first stage (stride 2) and of the following ones (stride 4).
            num_keypoints: How many.
            peaked: What the weights of the heat maps are multiplied by.
        """
        super().__init__()
        first, width = channels
        last = nn.Conv2d(width, num_keypoints, 1)
        with torch.no_grad():
            last.weight.mul_(peaked)
        self.maps = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1),
            *_normalised(first),
            nn.Conv2d(first, width, 4, stride=2, padding=1),
            *_normalised(width),
            nn.Conv2d(width, width, 3, padding=1),
            *_normalised(width),
            nn.Conv2d(width, width, 3, padding=1),
            *_normalised(width),
            last,
        )

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch coordinate 1 1"]:
        """Return the x of every key point, then the y of every key point."""
        maps = self.maps(pixels)
        rows, columns = maps.shape[-2:]
        shares = maps.flatten(2).softmax(-1).unflatten(-1, (rows, columns))
        x = shares.sum(2) @ _cells(columns, shares)
        y = shares.sum(3) @ _cells(rows, shares)
        return SCALE * torch.cat([x, y], dim=1)[..., None, None]


class KeypointDecoder(nn.Module):
    """Paint what differs from the background, from the places of key points."""

    def __init__(self, channels: tuple[int, ...], num_keypoints: int, image_size: tuple[int, int]) -> None:
        """Prepare; `channels` are those of the encoder."""
        super().__init__()
        _, width = channels
        self.grid = (image_size[0] // STRIDE, image_size[1] // STRIDE)
        self.paint = nn.Sequential(
            nn.Conv2d(num_keypoints, 2 * width, 3, padding=1),
            *_normalised(2 * width),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            *_normalised(width),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )

    def blobs(self, coordinates: Float[Tensor, "batch coordinate"]) -> Float[Tensor, "batch keypoint rows columns"]:
        """Draw a Gaussian at each key point, round in cells."""
        rows, columns = self.grid
        x, y = (coordinates / SCALE).chunk(2, dim=1)
        across = torch.exp(-0.5 * ((_cells(columns, x) - x[..., None]) * (columns - 1) / (2 * BLOB)).square())
        down = torch.exp(-0.5 * ((_cells(rows, y) - y[..., None]) * (rows - 1) / (2 * BLOB)).square())
        return down[..., :, None] * across[..., None, :]

    def forward(self, coordinates: Float[Tensor, "batch coordinate 1 1"]) -> Float[Tensor, "batch 3 height width"]:
        """Return pixels, to be added to the background."""
        return self.paint(self.blobs(rearrange(coordinates, "n c 1 1 -> n c")))


def turning_error(
    encoder: KeypointEncoder,
    pixels: Float[Tensor, "batch 3 height width"],
    coordinates: Float[Tensor, "batch coordinate"],
    background: Float[Tensor, "3 height width"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return how far key points are from where they should be when the picture is turned and moved.

    Args:
        encoder: Finds them.
        pixels: Pictures, of a height that is their width.
        coordinates: Its key points in them.
        background: What stays where it is.
        generator: CPU source of angles and shifts.

    Returns:
        Mean squared distance, of points that stay inside the picture, in halves of the picture.
    """
    angle = 2 * math.pi * torch.rand(len(pixels), generator=generator)
    shift = MOST_SHIFT * (2 * torch.rand(len(pixels), 2, generator=generator) - 1)
    cos, sin, shift = angle.cos().to(pixels), angle.sin().to(pixels), shift.to(pixels)
    back = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], dim=1)
    back = torch.cat([back, -back @ shift[..., None]], dim=-1)  # where in the picture each place comes from
    grid = F.affine_grid(back, list(pixels.shape), align_corners=False)
    moved = background + F.grid_sample(pixels - background, grid, align_corners=False)
    found_x, found_y = (encoder(moved).flatten(1) / SCALE).chunk(2, dim=1)
    x, y = (coordinates / SCALE).chunk(2, dim=1)
    cells = pixels.shape[-1] / STRIDE
    by_x, by_y = (shift * cells / (cells - 1))[..., None].unbind(1)  # places run from the middles of the outer cells
    wanted_x, wanted_y = cos[:, None] * x - sin[:, None] * y + by_x, sin[:, None] * x + cos[:, None] * y + by_y
    inside = (torch.maximum(wanted_x.detach().abs(), wanted_y.detach().abs()) < 1).to(x)
    missed = (found_x - wanted_x).square() + (found_y - wanted_y).square()
    return (missed * inside).sum() / inside.sum().clamp_min(1.0)
