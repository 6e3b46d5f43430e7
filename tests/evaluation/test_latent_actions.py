"""Leaks of latent actions: how many bits are in use, and the same codes applied in different scenes."""

from pathlib import Path

import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.latent_actions import (
    another,
    distant_codes,
    entropy_bits,
    measure_latent_actions,
    probe_r2,
    same_codes,
)
from embodied_wm.evaluation.pages import same_codes_picture


def test_bits_in_use_are_the_entropy_of_the_codes() -> None:
    codes = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert entropy_bits(codes) == pytest.approx(1.5)  # shares 1/2, 1/4, 1/4
    assert entropy_bits(codes[:2]) == 0
    assert entropy_bits(torch.eye(8)) == pytest.approx(3.0)


def test_codes_of_a_picture_are_different_and_far_apart() -> None:
    codes = torch.tensor([[0.0], [0.0], [0.1], [1.0], [0.5]])
    assert distant_codes(codes, 3).flatten().tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert len(distant_codes(codes, 9)) == 4


def test_the_same_codes_go_to_all_scenes_of_different_episodes(tiny_store: Path) -> None:
    model, store = tiny.make_model(), EpisodeStore.open(tiny_store)
    scenes, after = same_codes(model, store, [2, 3, 4, 5], context=3, seed=0, num_scenes=3, num_codes=2)
    assert scenes.shape == (3, tiny.SIZE, tiny.SIZE, 3)
    assert after.shape[0] == 3
    assert after.shape[2:] == scenes.shape[1:]
    for scene, episode in zip(scenes, (2, 3, 4), strict=True):
        frames = torch.from_numpy(store.episode(episode).features[tiny.CAMERA])
        assert (frames == scene).flatten(1).all(1).any()
    picture = same_codes_picture(scenes.numpy(), after.numpy())
    assert picture.data.count(b"<image") == 3 * (1 + after.shape[1])


def test_the_code_of_another_moment_is_never_that_of_the_same_one() -> None:
    generator = torch.Generator().manual_seed(0)
    assert [{another(4, own, generator) for _ in range(60)} for own in range(4)] == [
        {*range(4)} - {n} for n in range(4)
    ]


def test_a_code_that_is_always_the_same_carries_nothing(tiny_store: Path) -> None:
    model, store = tiny.make_model(), EpisodeStore.open(tiny_store)
    for parameter in model.latent_actions.parameters():
        torch.nn.init.zeros_(parameter)
    found = measure_latent_actions(model, store, train=[0, 1, 2], held_out=[4, 5], context=3, seed=0)
    assert found["code_bits_used"]["value"] == 0
    assert found["delta_psnr_shuffled"]["value"] == 0
    assert found["code_bits"]["value"] > 5
    assert found["code_bits_used"]["n"] == 2 * (tiny.ROWS - 1)


def test_episodes_too_short_are_left_out_or_refused(tmp_path: Path) -> None:
    """Data sets hold recordings that were broken off: a demo must not end there after its training."""
    lengths = (tiny.ROWS, tiny.ROWS, tiny.ROWS, 3, 1)
    episodes = [tiny.episode(seed, rows=rows) for seed, rows in enumerate(lengths)]
    model, store = tiny.make_model(), EpisodeStore.open(tiny.write_store(tmp_path / "short.zarr", episodes))
    found = measure_latent_actions(model, store, train=[0, 1], held_out=[2, 3, 4], context=3, seed=0)
    alone = measure_latent_actions(model, store, train=[0, 1], held_out=[2], context=3, seed=0)
    assert found == alone
    scenes, _ = same_codes(model, store, [2, 3, 4], context=3, seed=0)
    assert len(scenes) == 2  # three rows are a context, though nothing follows
    with pytest.raises(ValueError, match=r"none of the held-out episodes \[3, 4\] has 4 rows.*longest has 3"):
        measure_latent_actions(model, store, train=[0, 1], held_out=[3, 4], context=3, seed=0)


def test_one_episode_says_nothing_about_the_spread(tiny_store: Path) -> None:
    model, store = tiny.make_model(), EpisodeStore.open(tiny_store)
    one, two = (probe_r2(model, store, [0, 1], held_out, seed=0) for held_out in ([4], [4, 5]))
    assert (one["ci95"], one["n"]) == (None, 1)
    assert two["ci95"][0] < two["value"] < two["ci95"][1]
