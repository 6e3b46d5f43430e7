import itertools

import numpy as np
import pytest

from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

FEATURES = {
    "observation.images.top": FeatureSpec(dtype="uint8", shape=(4, 4, 3)),
    "action": FeatureSpec(dtype="float32", shape=(2,)),
}
LENGTHS = [5, 9, 3, 12, 7]


def make_store(path, not_finite=None):
    """Row r of the store holds the action (episode, row of the episode) and a frame of value r."""
    store = EpisodeStore.create(path, features=FEATURES, fps=10)
    first = 0
    for episode, length in enumerate(LENGTHS):
        rows = np.arange(length)
        action = np.stack([np.full(length, episode), rows], axis=1).astype(np.float32)
        if not_finite is not None and episode == not_finite[0]:
            action[not_finite[1], 1] = np.nan
        frames = np.broadcast_to((first + rows).astype(np.uint8)[:, None, None, None], (length, 4, 4, 3))
        store.append([Episode(features={"observation.images.top": frames, "action": action})])
        first += length
    return store


def make_loader(store, **changes):
    arguments = {"episodes": [0, 2, 3, 4], "length": 4, "batch_size": 6, "features": list(FEATURES), "seed": 3}
    return WindowLoader(store, **{**arguments, **changes})


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s.zarr")


@pytest.mark.parametrize("budget", [0, 200, 2**31])
def test_windows_are_whole_and_features_stay_aligned(store, budget):
    loader = make_loader(store, memory_budget_bytes=budget)
    assert len(loader.resident_features) == {0: 0, 200: 1, 2**31: 2}[budget]
    assert loader.windows_per_epoch == 2 + 0 + 9 + 4
    ends = np.cumsum(LENGTHS)
    for step in range(10):
        batch = loader.batch(step)
        assert batch["action"].shape == (6, 4, 2)
        episodes, rows = batch["action"][..., 0].astype(int), batch["action"][..., 1].astype(int)
        assert (episodes == episodes[:, :1]).all(), "a window crossed episodes"
        assert (np.diff(rows, axis=1) == 1).all()
        assert set(episodes.ravel()) <= {0, 3, 4}
        starts = (ends - LENGTHS)[episodes]
        np.testing.assert_array_equal(batch["observation.images.top"][..., 0, 0, 0], starts + rows)


def test_every_window_once_an_epoch_and_another_order_in_the_next(store):
    loader = make_loader(store)
    stream = np.concatenate([loader.windows(step) for step in range(15)])
    epochs = stream.reshape(-1, loader.windows_per_epoch)
    assert len(epochs) == 6
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(15), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_batch_larger_than_an_epoch_repeats_windows(store):
    loader = make_loader(store, batch_size=40)
    counts = np.bincount(loader.windows(0), minlength=15)
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_a_batch_depends_on_seed_and_step_only(store):
    one, two, other = make_loader(store), make_loader(store, memory_budget_bytes=0), make_loader(store, seed=4)
    steps = [7, 0, 3, 7, 12]
    for step in steps:
        for name, rows in one.batch(step).items():
            np.testing.assert_array_equal(rows, two.batch(step)[name])
    assert any((one.batch(step)["action"] != other.batch(step)["action"]).any() for step in steps)


def test_iterating_from_a_step_resumes_the_stream(store):
    loader = make_loader(store)
    whole = list(itertools.islice(loader.iterate(), 12))
    stream = loader.iterate(start_step=5)
    for expected in whole[5:]:
        np.testing.assert_array_equal(next(stream)["action"], expected["action"])
    stream.close()


@pytest.mark.parametrize("budget", [0, 2**31])
def test_nan_in_actions_names_feature_episode_and_row(tmp_path, budget):
    store = make_store(tmp_path / "s.zarr", not_finite=(3, 5))
    with pytest.raises(StoreError, match=r"'action' is not finite in episode 3, row 5 of that episode \(row 22 "):
        next(make_loader(store, memory_budget_bytes=budget, batch_size=60).iterate())
    make_loader(store, episodes=[0, 4])  # an episode that is not used does no harm


def test_a_stride_thins_the_windows(store):
    assert make_loader(store, stride=3).windows_per_epoch == 1 + 0 + 3 + 2


def test_clear_errors(store):
    with pytest.raises(StoreError, match=r"among \['action', 'observation.images.top'\].*unknown: \['state'\]"):
        make_loader(store, features=["state"])
    with pytest.raises(StoreError, match="batch size"):
        make_loader(store, batch_size=0)
    with pytest.raises(StoreError, match="shorter than a window of 13 rows"):
        make_loader(store, length=13)
    with pytest.raises(StoreError, match="count from 0"):
        make_loader(store).batch(-1)
