"""Sizes, statistics and learning of the frame tokenizer."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig, psnr, to_bytes, to_pixels

SMALL = FrameTokenizerConfig(
    image_size=(16, 32), channels=(8, 16), token_grid=(2, 4), bottleneck=BottleneckConfig(width=8)
)


def test_bytes_survive_the_round_trip_to_pixels() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_bytes(to_pixels(frames)), frames)


def test_psnr_of_a_known_error() -> None:
    first = torch.full((1, 8, 8, 3), 100, dtype=torch.uint8)
    assert float(psnr(first, first)) == pytest.approx(60.0)
    assert float(psnr(first, first + 10)) == pytest.approx(-20 * torch.log10(torch.tensor(10 / 255)).item(), rel=1e-4)


@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (4, 8)])
def test_shapes_of_tokens_and_frames(grid: tuple[int, int]) -> None:
    config = FrameTokenizerConfig(
        image_size=(16, 32), channels=(8, 16), token_grid=grid, bottleneck=BottleneckConfig(width=8)
    )
    tokenizer = FrameTokenizer(config).eval()
    frames = torch.randint(0, 256, (2, 3, 16, 32, 3), dtype=torch.uint8)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 3, grid[0] * grid[1], 8)
    assert tokenizer.decode(latents).shape == frames.shape


def test_a_token_concatenates_its_own_block_of_cells() -> None:
    few = FrameTokenizerConfig(
        image_size=(16, 32),
        channels=(8, 16),
        token_grid=(2, 2),
        cells_per_token=(1, 4),
        bottleneck=BottleneckConfig(width=8),
    )
    many = replace(few, token_grid=(2, 8), cells_per_token=(1, 1))
    assert (few.num_tokens, few.token_width, few.cell_grid) == (4, 32, (2, 8))
    grouped, single = FrameTokenizer(few).eval(), FrameTokenizer(many).eval()
    for name in ("encoder", "decoder"):
        getattr(grouped, name).load_state_dict(getattr(single, name).state_dict())
    frames = torch.randint(0, 256, (3, 16, 32, 3), dtype=torch.uint8)
    cells, tokens = single.encode(frames), grouped.encode(frames)
    assert torch.equal(tokens[:, 1], cells[:, 4:8].flatten(1))  # the right half of the upper row
    assert torch.equal(grouped.decode(tokens), single.decode(cells))


def test_latents_are_standardised_after_fitting_statistics() -> None:
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(SMALL).eval()
    frames = torch.randint(0, 256, (64, 16, 32, 3), dtype=torch.uint8)
    tokenizer.fit_statistics(frames)
    latents = tokenizer.encode(frames).flatten(0, 1)
    assert torch.allclose(latents.mean(0), torch.zeros(8), atol=1e-3)
    assert torch.allclose(latents.std(0), torch.ones(8), atol=1e-2)


def test_one_batch_overfits() -> None:
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(SMALL)
    frames = torch.zeros(4, 3, 16, 32, 3, dtype=torch.uint8)
    for index in range(4):
        frames[index, :, 3 * index : 3 * index + 4, 5:20] = 200
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    for step in range(250):
        loss, metrics = tokenizer.loss(frames, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["psnr"] > 25


def test_detail_of_a_seen_frame_is_carried_over_where_nothing_changed() -> None:
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(SMALL).eval()
    seen = torch.randint(0, 256, (16, 32, 3), dtype=torch.uint8)
    latents = tokenizer.encode(seen)
    assert float(psnr(tokenizer.decode(latents), seen)) < 15  # untrained: the latents alone say nothing
    assert torch.equal(tokenizer.decode(latents, seen), seen)
    decoder = tokenizer.decoder
    assert isinstance(decoder, torch.nn.Sequential)
    last = decoder[-1]
    assert isinstance(last, torch.nn.ConvTranspose2d)
    last.weight.data *= 100  # what latents change is now plain to see
    moved = torch.stack([latents, latents.flip(0)])
    alone, carried = tokenizer.decode(moved), tokenizer.decode(moved, seen)
    assert torch.equal(carried[0], seen)
    assert float(psnr(carried[1], alone[1])) > float(psnr(carried[1], seen)) + 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": (48,)}, r"image_size=\[48\]: expected \[height,width\] in pixels"),
        ({"image_size": (64, 64, 3)}, r"image_size=\[64, 64, 3\]: expected"),
        ({"image_size": (64.5, 64)}, r"image_size=\[64.5, 64\]: .* two whole numbers of at least 1"),
        ({"token_grid": [2]}, r"token_grid=\[2\]: expected \[rows,columns\]"),
        ({"cells_per_token": (0, 1)}, r"cells_per_token=\[0, 1\]: expected"),
        ({"channels": ()}, r"channels=\[\]: expected one number for each stage, at least one"),
        ({"channels": (8, 12)}, r"channels=\[8, 12\]: .* a multiple of 8"),
    ],
)
def test_sizes_that_are_none(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FrameTokenizerConfig(**change)


def test_frames_of_another_size_are_refused_with_the_wanted_size() -> None:
    tokenizer = FrameTokenizer(SMALL)
    with pytest.raises(ValueError, match="16x32"):
        tokenizer.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiple of 4"):
        FrameTokenizer(FrameTokenizerConfig(image_size=(18, 32), channels=(8, 16)))
    with pytest.raises(ValueError, match="token_grid"):
        FrameTokenizer(FrameTokenizerConfig(image_size=(16, 32), channels=(8, 16), token_grid=(3, 1)))
