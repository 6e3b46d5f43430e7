import itertools
import runpy
import time

import numpy as np
import pytest

from embodied_wm.data.loader import MIXTURE_BLOCK, MixtureLoader, WindowLoader, read_ahead
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


@pytest.mark.parametrize("num_readers", [1, 2, 5])
def test_the_number_of_readers_changes_nothing(store, num_readers):
    loader = make_loader(store, memory_budget_bytes=0)
    stream = loader.iterate(start_step=3, num_readers=num_readers)
    for step, batch in zip(range(3, 15), stream, strict=False):
        for name, rows in loader.batch(step).items():
            np.testing.assert_array_equal(batch[name], rows)
    stream.close()


def test_reading_ahead_keeps_the_order_of_slow_and_fast_steps_and_passes_errors_on():
    def read(step):
        time.sleep(0.02 if step % 3 == 0 else 0)
        if step == 7:
            raise StoreError("step 7")
        return step

    stream = read_ahead(read, 2, num_readers=4)
    assert list(itertools.islice(stream, 5)) == [2, 3, 4, 5, 6]
    with pytest.raises(StoreError, match="step 7"):
        next(stream)
    with pytest.raises(StoreError, match="at least 1 reader"):
        next(read_ahead(read, num_readers=0))


def test_ranks_share_each_step_and_each_epoch(store):
    alone = make_loader(store, batch_size=6)
    ranks = [make_loader(store, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for step in range(7):
        np.testing.assert_array_equal(np.concatenate([rank.windows(step) for rank in ranks]), alone.windows(step))
    single = [make_loader(store, batch_size=1, rank=rank, world_size=5) for rank in range(5)]
    epoch = [int(rank.windows(step)[0]) for step in range(3) for rank in single]
    assert sorted(epoch) == list(range(15))
    with pytest.raises(StoreError, match="0 to world_size - 1 = 2, got 3"):
        make_loader(store, rank=3, world_size=3)


def make_mixture(store, path, seed=0, **changes):
    """Mix the store (actions of 2, batches of 6) with one of another robot (actions of 7, no camera, batches of 3)."""
    other = EpisodeStore.create(
        path, features={"action": FeatureSpec(dtype="float32", shape=(7,))}, fps=5, metadata={"robot": "arm"}
    )
    rows = np.arange(40, dtype=np.float32)[:, None] * np.ones(7, dtype=np.float32)
    other.append([Episode(features={"action": rows})])
    arms = make_loader(other, episodes=[0], length=5, batch_size=3, features=["action"], **changes)
    loaders = {"dot": make_loader(store, **changes), "arm": arms}
    return MixtureLoader(loaders, weights={"dot": 3, "arm": 1}, seed=seed), loaders


def test_a_mixture_names_the_robot_and_keeps_its_shapes(store, tmp_path):
    mixture, loaders = make_mixture(store, tmp_path / "other.zarr")
    taken = {"dot": 0, "arm": 0}
    for step in range(60):
        batch = mixture.batch(step)
        assert batch.robot == {"dot": "unknown", "arm": "arm"}[batch.source]
        assert batch.features["action"].shape == {"dot": (6, 4, 2), "arm": (3, 5, 7)}[batch.source]
        expected = loaders[batch.source].batch(taken[batch.source])  # its own batches, in its own order
        taken[batch.source] += 1
        assert batch.features.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(batch.features[name], rows)
    assert min(taken.values()) > 5


def test_a_mixture_keeps_its_weights_and_resumes_anywhere(store, tmp_path):
    mixture, _ = make_mixture(store, tmp_path / "other.zarr")
    sources = [mixture.source(step) for step in range(2 * MIXTURE_BLOCK)]
    for start in (0, MIXTURE_BLOCK):
        assert sum(name == "dot" for name, _ in sources[start : start + MIXTURE_BLOCK]) == 750
    for name in ("dot", "arm"):
        own = [step for source, step in sources if source == name]
        assert own == list(range(len(own)))
    stream = mixture.iterate(start_step=MIXTURE_BLOCK - 3, num_readers=3)
    for step, batch in zip(range(MIXTURE_BLOCK - 3, MIXTURE_BLOCK + 3), stream, strict=False):
        assert batch.source == sources[step][0]
        np.testing.assert_array_equal(batch.features["action"], mixture.batch(step).features["action"])
    stream.close()
    other_seed, _ = make_mixture(store, tmp_path / "again.zarr", seed=1)
    assert [other_seed.source(step)[0] for step in range(50)] != [name for name, _ in sources[:50]]
    second, _ = make_mixture(store, tmp_path / "rank.zarr", rank=1, world_size=2)
    assert [second.source(step) for step in range(50)] == sources[:50], "all ranks read the same store at a step"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "one weight for each store"),
        ({"dot": 1, "typo": 1}, "one weight for each store"),
        ({"dot": 1, "arm": 0}, "must be positive"),
        ({"dot": 1, "arm": float("nan")}, "must be positive"),
        ({"dot": 1, "arm": 1e-5}, "'arm', 1e-05, is less than one batch in 1000"),
    ],
)
def test_impossible_mixtures(store, weights, message):
    loaders = {"dot": make_loader(store), "arm": make_loader(store)}
    with pytest.raises(StoreError, match=message):
        MixtureLoader(loaders, weights=weights, seed=0)
    with pytest.raises(StoreError, match="count from 0"):
        MixtureLoader(loaders, weights={"dot": 1, "arm": 1}, seed=0).batch(-1)


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_100_000_episodes_open_at_once_and_read_as_fast_as_100(tmp_path, repository):
    bench = runpy.run_path(str(repository / "scripts/bench_stores.py"))
    figures = bench["measure_scale"](tmp_path, 100_000, 7)
    assert EpisodeStore.open(tmp_path / "episodes100000.zarr").num_episodes == 100_000
    assert figures["open_seconds"] < 1
    assert figures["rate_of_large_over_small"] > 0.8
