"""Key points are places: read from heat maps, drawn as blobs, found by reconstruction alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig, to_pixels
from embodied_wm.tokenizer.keypoints import SCALE, KeypointDecoder, KeypointEncoder, turning_error

CONFIG = FrameTokenizerConfig(
    image_size=(32, 32), channels=(8, 16), keypoints=2, bottleneck=BottleneckConfig(width=4, weight=0.0)
)


def test_a_key_point_is_the_mean_place_of_its_heat_map() -> None:
    encoder = KeypointEncoder((8, 16), 3)
    encoder.maps = nn.Sequential(nn.Identity())
    maps = torch.full((1, 3, 5, 9), -100.0)
    maps[0, 0, 0, 8] = 100.0  # the upper right corner
    maps[0, 1, 2, 4] = 100.0  # the middle
    maps[0, 2, 4, 0] = maps[0, 2, 4, 2] = 100.0  # two peaks in the last row: between them
    x, y = encoder(maps).flatten().chunk(2)
    assert torch.allclose(x, SCALE * torch.tensor([1.0, 0.0, -0.75]), atol=1e-5)
    assert torch.allclose(y, SCALE * torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5)


def test_blobs_are_drawn_where_the_key_points_are() -> None:
    decoder = KeypointDecoder((8, 16), 2, (32, 64))
    blobs = decoder.blobs(SCALE * torch.tensor([[1.0, -1 / 15, -1.0, 1 / 7]]))[0]
    assert blobs.shape == (2, 8, 16)
    assert blobs[0].argmax() == 15  # first row, last column
    assert blobs[1].argmax() == 4 * 16 + 7
    assert torch.allclose(blobs[1, 4, 6], blobs[1, 4, 8])  # round, whatever the shape of the frame
    assert torch.allclose(blobs[1, 3, 7], blobs[1, 4, 8])


def frames_of_a_dot(places: np.ndarray) -> torch.Tensor:
    """Draw a soft dot at each place [N, 2] (x, y in pixels) of a 32x32 frame."""
    row, column = np.mgrid[0:32, 0:32]
    distance = np.square(column - places[:, 0, None, None]) + np.square(row - places[:, 1, None, None])
    return torch.from_numpy(np.repeat((255 * np.exp(-distance / 8))[..., None], 3, axis=-1).astype(np.uint8))


class Fixed(KeypointDecoder):
    """Stand in for a decoder: paints these frames, off by an offset, wherever the points are."""

    def __init__(self, frames: torch.Tensor, background: torch.Tensor, offset: float) -> None:
        super().__init__((8, 16), 2, (32, 32))
        self.pixels = to_pixels(frames) - background.detach() + offset

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Return pixels, to be added to the background."""
        return self.pixels


class Centroid(KeypointEncoder):
    """Stand in for a trained encoder of one key point: the middle of what is bright, in the coordinates of cells."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return x and y, [N, 2, 1, 1]."""
        along = (torch.arange(32) - 15.5) / 14.0  # places run from the middles of the outer cells, 4 pixels each
        bright = pixels.mean(1) / pixels.mean(1).sum((1, 2), keepdim=True)
        return SCALE * torch.stack([bright.sum(1) @ along, bright.sum(2) @ along], dim=1)[..., None, None]


def test_points_that_follow_a_turned_picture_have_no_turning_error() -> None:
    encoder = Centroid((8, 16), 1)
    pixels = frames_of_a_dot(np.random.default_rng(0).uniform(12, 20, size=(64, 2))).permute(0, 3, 1, 2) / 255.0
    found = encoder(pixels).flatten(1)
    background, generator = torch.zeros(3, 32, 32), torch.Generator()
    followed = turning_error(encoder, pixels, found, background, generator.manual_seed(1))
    assert float(followed) ** 0.5 < 0.01  # a sixth of a pixel
    elsewhere = turning_error(encoder, pixels, found + 0.5 * SCALE, background, generator.manual_seed(1))
    assert float(elsewhere) ** 0.5 > 0.5  # a point beside the dot does not turn about the picture's middle with it
    seen = pixels[:1].expand(64, -1, -1, -1)
    kept = turning_error(encoder, seen, found[:1].expand(64, -1), seen[0], generator.manual_seed(1))
    assert float(kept) ** 0.5 > 0.2  # the background is not turned, and a point in it should not be there


def test_nothing_else_counts_before_points_paint() -> None:
    """A decoder that paints worse than the background leaves the loss to painting; one that paints, to all terms."""
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(replace(CONFIG, straightness_weight=3.0, turning_weight=2.0))
    frames = frames_of_a_dot(np.random.default_rng(0).uniform(8, 24, size=(24, 2))).unflatten(0, (8, 3))
    tokenizer.fit_background(frames.flatten(0, 1))

    def parts(offset: float) -> tuple[float, dict[str, float]]:
        tokenizer.decoder = Fixed(frames.flatten(0, 1), tokenizer.background, offset)
        loss, metrics = tokenizer.loss(frames, torch.Generator().manual_seed(0))
        return float(loss.detach()), metrics

    loss, metrics = parts(1.0)
    assert loss == pytest.approx(metrics["mse"], rel=1e-4)  # every pixel misses by as much, so weights change nothing
    assert metrics["turning"] > 1e-4
    loss, metrics = parts(0.0)
    assert metrics["mse"] < 1e-9
    assert loss == pytest.approx(3 * metrics["straightness"] + 2 * metrics["turning"], rel=1e-4)


def test_a_dot_is_found_where_no_training_frame_had_it() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    places = rng.uniform(4, 28, size=(512, 2))
    middle = np.abs(places - 16).max(1) < 5
    seen, unseen = frames_of_a_dot(places[~middle]), frames_of_a_dot(places[middle])
    tokenizer = FrameTokenizer(CONFIG)
    tokenizer.fit_background(seen)
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=4e-3)
    for step in range(200):
        batch = seen[rng.integers(len(seen), size=32)][:, None]
        loss, _ = tokenizer.loss(batch, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokenizer.eval().fit_statistics(seen)

    def inputs(frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokenizer.encode(frames).flatten(1), torch.ones(len(frames), 1)], dim=1).double()

    fit = torch.linalg.lstsq(inputs(seen), torch.from_numpy(places[~middle])).solution
    error = (inputs(unseen) @ fit - torch.from_numpy(places[middle])).abs().mean()
    assert error < 0.5  # pixels; a heat map's cell is 4 of them, and always saying "the middle" is off by 2.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": (8, 16, 32)}, "channels"),
        ({"token_grid": (2, 2)}, "token_grid"),
        ({"turning_weight": 1.0, "image_size": (32, 64)}, "expected key points in square pictures"),
        ({"keypoints": 3}, "expected 6, x and y of each"),
        ({"image_size": (30, 32)}, "multiples of 4"),
    ],
)
def test_settings_that_do_not_fit_key_points_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FrameTokenizer(replace(CONFIG, **change))
