"""What is said of tokenizers: perfect and hopeless latents get the scores that they must."""

import math
from pathlib import Path

import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.tokenizers import area_quality, fit_reading, foretold, train_for
from embodied_wm.tokenizer.frames import FrameTokenizer, psnr
from embodied_wm.training.latents import LatentEpisodes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Return training and held-out episodes whose latents hold two numbers that actions move, and six of noise."""
    folder = tmp_path_factory.mktemp("latents")
    path = tiny.write_store(folder / "s.zarr", [tiny.episode(seed, rows=40) for seed in range(12)])
    store, tokenizer = EpisodeStore.open(path), FrameTokenizer(tiny.MODEL.tokenizer).eval()
    found = []
    for episodes in (range(9), range(9, 12)):
        data = LatentEpisodes(
            store, tokenizer, camera=tiny.CAMERA, episodes=list(episodes), features=["action", "observation.state"]
        )
        moved = torch.cat([torch.zeros(1, 2), data.features["action"][:-1]]).cumsum(0)
        noise = torch.randn(len(moved), 6, generator=torch.Generator().manual_seed(len(moved)))
        data.latents = torch.cat([moved, noise], dim=-1)[:, None]
        found.append(data)
    return found[0], found[1]


def test_what_actions_move_is_foretold_and_noise_only_as_far_as_it_returns_to_its_mean(
    parts: tuple[LatentEpisodes, LatentEpisodes],
) -> None:
    whole = [data.latents for data in parts]
    for data in parts:
        data.latents = data.latents[..., :2]
    lawful = foretold(*parts, num_steps=200)
    for data, latents in zip(parts, whole, strict=True):
        data.latents = latents[..., 2:]
    random = foretold(*parts, num_steps=200)
    for data, latents in zip(parts, whole, strict=True):
        data.latents = latents
    assert lawful > 0.9
    assert random < 0.55  # the mean is half of the squared change better than no change


def test_a_feature_that_latents_hold_is_read(parts: tuple[LatentEpisodes, LatentEpisodes]) -> None:
    train, test = parts
    for data in parts:
        data.features["known"] = 5 + 3 * data.latents[:, 0, 2:4]
    readout = fit_reading(train, "known", ("a", "b"), num_steps=300)
    with torch.no_grad():
        error = (readout(test.latents) - test.features["known"]).abs().mean()
    assert float(error) < 0.5
    again = fit_reading(train, "known", ("a", "b"), num_steps=300)
    assert all(torch.equal(*pair) for pair in zip(readout.parameters(), again.parameters(), strict=True))


def test_an_area_is_judged_by_its_own_pixels() -> None:
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(tiny.MODEL.tokenizer).eval()
    frames = torch.randint(0, 256, (3, tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8)
    decoded = tokenizer.decode(tokenizer.encode(frames))
    area = torch.zeros(3, tiny.SIZE, tiny.SIZE, dtype=torch.bool)
    area[1, 3:6, 4:9] = True
    found = area_quality(tokenizer, frames, {"frame": torch.ones_like(area), "area": area})
    assert found["area"] == pytest.approx(float(psnr(decoded[1, 3:6, 4:9], frames[1, 3:6, 4:9])), abs=1e-3)
    assert found["frame"] == pytest.approx(float(psnr(decoded.flatten(0, 1), frames.flatten(0, 1))), abs=1e-3)


def test_training_ends_by_its_steps_or_by_its_time(tmp_path: Path) -> None:
    weight = torch.nn.Linear(2, 1)

    def loss_of(step: int) -> torch.Tensor:
        return weight(torch.ones(4, 2)).square().mean()

    assert train_for(math.inf, [weight], loss_of, rate=0.1, most=60) == 60
    assert float(loss_of(0).detach()) < 1e-2
    assert 1 <= train_for(0.05, [weight], loss_of, rate=0.1) < 10_000
    assert not weight.training
