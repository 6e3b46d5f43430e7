"""Latents from memory, from a store beside the run, or encoded anew: the same batches."""

from pathlib import Path

import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.latents import LatentEpisodes, LatentsMode
from embodied_wm.training.loop import Processes

EPISODES = (0, 1, 3, 4)


def episodes(store: Path, mode: LatentsMode, folder: Path, processes: Processes | None = None) -> LatentEpisodes:
    return LatentEpisodes(
        EpisodeStore.open(store),
        tiny.make_model().tokenizer,
        camera=tiny.CAMERA,
        episodes=EPISODES,
        features=["action", "observation.state"],
        mode=mode,
        folder=folder,
        processes=processes,
    )


@pytest.mark.parametrize("mode", ["zarr", "online"])
def test_every_source_gives_the_batches_of_memory(tiny_store: Path, tmp_path: Path, mode: LatentsMode) -> None:
    batches = []
    for source in ("memory", mode):
        sampler = episodes(tiny_store, source, tmp_path / "l.zarr").sampler(length=5, batch_size=16, seed=3)
        batches.append([sampler.batch(number) for number in (0, 7)])
    for first, second in zip(*batches, strict=True):
        assert first.keys() == second.keys() == {"action", "observation.state", "latents", "episode"}
        assert first["latents"].shape == (16, 5, 1, 8)
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-5)
        assert mode == "online" or torch.equal(first["latents"], second["latents"])
    assert (tmp_path / "l.zarr").exists() == (mode == "zarr")


def test_latents_stand_beside_the_rows_they_were_made_of(tiny_store: Path, tmp_path: Path) -> None:
    data, store = episodes(tiny_store, "memory", tmp_path), EpisodeStore.open(tiny_store)
    start = int(store.episode_ends[3]) - int(store.episode_lengths[3])  # episode 3 is the third that is held
    own = torch.from_numpy(store.read(tiny.CAMERA, start + 2, start + 4))
    held = torch.tensor([data.rows_of(2).start + 2])
    torch.testing.assert_close(data.windows(held, 2)[0], tiny.make_model().tokenizer.encode(own), rtol=1e-5, atol=1e-5)
    assert torch.equal(
        data.features["action"][data.rows_of(2)], torch.from_numpy(store.read("action", start, start + tiny.ROWS))
    )


def test_a_store_of_latents_is_gone_on_with_and_made_again_for_other_weights(tiny_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "l.zarr"
    whole = episodes(tiny_store, "zarr", folder).windows(torch.arange(8), 3)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    episodes(tiny_store, "zarr", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with EpisodeStore.open(folder) as opened:
        metadata, spec = dict(opened.metadata), opened.features["latents"]
        first = opened.episode(0)
    import shutil

    shutil.rmtree(folder)  # as if stopped after the first episode
    with EpisodeStore.create(folder, features={"latents": spec}, fps=10.0, metadata=metadata) as partial:
        partial.append([first])
    assert torch.equal(episodes(tiny_store, "zarr", folder).windows(torch.arange(8), 3), whole)
    with EpisodeStore.open(folder, "a") as opened:
        opened.update_metadata({"latents_of": {"tokenizer": "another"}})
    assert torch.equal(episodes(tiny_store, "zarr", folder).windows(torch.arange(8), 3), whole)


def test_ranks_draw_batches_of_their_own_that_follow_the_numbers_of_one(tiny_store: Path, tmp_path: Path) -> None:
    one = episodes(tiny_store, "memory", tmp_path).sampler(length=4, batch_size=6, seed=0)
    for rank in range(2):
        processes = Processes(rank=rank, world_size=2)
        sampler = episodes(tiny_store, "memory", tmp_path, processes=processes).sampler(length=4, batch_size=6, seed=0)
        for number in (0, 3):
            assert torch.equal(sampler.batch(number)["latents"], one.batch(2 * number + rank)["latents"])


def test_sources_that_do_not_exist(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of memory, zarr, online"):
        episodes(tiny_store, "disk", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of memory, zarr, online"):
        tiny.training(2, latents="disk")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["memory", "zarr", "online"])
def test_what_is_remembered_lies_before_its_window(tiny_store: Path, tmp_path: Path, mode: LatentsMode) -> None:
    data, held = episodes(tiny_store, mode, tmp_path / "l.zarr"), episodes(tiny_store, "memory", tmp_path)
    sampler = data.sampler(length=5, batch_size=64, seed=3, memory=4)
    batch, places = sampler.batch(0), []
    assert batch["memory"].shape == (64, 4, 1, 8)
    for window, episode, memory in zip(batch["latents"], batch["episode"], batch["memory"], strict=True):
        rows = held.latents[held.rows_of(int(episode))]
        start = int((rows.unfold(0, 5, 1).movedim(-1, 1) - window).abs().sum((1, 2, 3)).argmin())
        gaps = (memory[:, None] - rows[None, : max(1, start)]).abs().amax((2, 3))
        assert gaps.amin(1).max() < 1e-5
        places += [(start, int(place)) for place in gaps.argmin(1)]
    assert len({place for start, place in places if start > 4}) > 4  # not the same ones always
    plain = data.sampler(length=5, batch_size=64, seed=3).batch(0)
    assert torch.equal(plain["latents"], batch["latents"])
