import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embodied_wm.data.layout import CHUNKS_PER_SHARD, chunk_rows
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

FEATURES = {
    "observation.images.top": FeatureSpec(dtype="uint8", shape=(16, 16, 3)),
    "action": FeatureSpec(dtype="float32", shape=(2,), names=("x", "y"), units=("m", "m")),
    "next.success": FeatureSpec(dtype="bool", shape=()),
}
WRITER = Path(__file__).with_name("writer.py")
REPOSITORY = Path(__file__).parents[2]


numbered_episode = runpy.run_path(str(WRITER))["numbered_episode"]


def create(path: Path, num_episodes: int = 0) -> EpisodeStore:
    store = EpisodeStore.create(path, features=FEATURES, fps=10, metadata={"robot": "arm"})
    store.append([numbered_episode(number) for number in range(num_episodes)])
    return store


def assert_same(episode: Episode, expected: Episode) -> None:
    assert dict(episode.info) == dict(expected.info)
    assert set(episode.features) == set(expected.features)
    for name, rows in expected.features.items():
        np.testing.assert_array_equal(episode.features[name], rows)
        assert episode.features[name].dtype == rows.dtype


def test_round_trip_over_several_commits_and_a_reopening(tmp_path):
    store = create(tmp_path / "s.zarr", 3)
    store.append([numbered_episode(3)])
    store.close()
    with EpisodeStore.open(tmp_path / "s.zarr", mode="a") as store:
        store.append([numbered_episode(4), numbered_episode(5)])
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.num_episodes == 6
    assert store.fps == 10
    assert store.metadata == {"robot": "arm"}
    assert dict(store.features) == FEATURES
    np.testing.assert_array_equal(store.episode_lengths, [3, 4, 5, 6, 7, 3])
    np.testing.assert_array_equal(store.episode_ends, np.cumsum([3, 4, 5, 6, 7, 3]))
    assert store.num_frames == 28
    for number in range(6):
        assert_same(store.episode(number), numbered_episode(number))


def test_a_store_says_where_it_is_from_any_folder(tmp_path, monkeypatch):
    create(tmp_path / "s.zarr").close()
    monkeypatch.chdir(tmp_path)
    store = EpisodeStore.open("s.zarr")
    monkeypatch.chdir("/")
    assert EpisodeStore.open(store.address).features == store.features


def test_a_feature_of_zeros_only_is_read_back_from_a_reopened_store(tmp_path):
    create(tmp_path / "s.zarr", 1).close()
    with EpisodeStore.open(tmp_path / "s.zarr", mode="a") as store:
        store.append([numbered_episode(1)])
        assert not store.read("next.success", 0, store.num_frames).any()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_equal_slices_of_memory_across_chunks_and_shards(tmp_path_factory, data):
    # Rows of 12 KiB: a chunk holds 8 of them, so 200 rows cross many chunks.
    spec = FeatureSpec(dtype="float64", shape=(1536,))
    assert chunk_rows(spec) == 8
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    rows = np.random.default_rng(sum(lengths)).normal(size=(sum(lengths), 1536))
    store = EpisodeStore.create(tmp_path_factory.mktemp("w") / "s.zarr", features={"x": spec}, fps=1)
    ends = np.cumsum(lengths)
    for start, stop in zip(ends - lengths, ends, strict=True):
        store.append([Episode(features={"x": rows[start:stop]})])
    length = data.draw(st.integers(1, len(rows)))
    starts = data.draw(st.lists(st.integers(0, len(rows) - length), max_size=8))
    windows = store.read_windows("x", starts, length)
    assert windows.shape == (len(starts), length, 1536)
    for window, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(window, rows[start : start + length])


def test_a_large_store_is_few_files_and_spans_shards(tmp_path):
    rows = chunk_rows(FEATURES["observation.images.top"]) * CHUNKS_PER_SHARD + 10
    spec = {"observation.images.top": FEATURES["observation.images.top"]}
    store = EpisodeStore.create(tmp_path / "s.zarr", features=spec, fps=1)
    frames = np.broadcast_to((np.arange(rows) % 251).astype(np.uint8)[:, None, None, None], (rows, 16, 16, 3))
    store.append([Episode(features={"observation.images.top": frames})])
    shards = [p for p in (tmp_path / "s.zarr/observation.images.top/c").rglob("*") if p.is_file()]
    assert len(shards) == 2
    np.testing.assert_array_equal(store.read("observation.images.top", rows - 20, rows), frames[-20:])


def test_fingerprint_names_the_content_not_its_grouping(tmp_path):
    episodes = [numbered_episode(number) for number in range(4)]
    one, two, other = (
        EpisodeStore.create(tmp_path / name, features=FEATURES, fps=10) for name in ("1.zarr", "2.zarr", "3.zarr")
    )
    one.append(episodes)
    two.append(episodes[:1])
    two.append(episodes[1:])
    changed = numbered_episode(3)
    np.asarray(changed.features["action"])[-1, 0] += 1
    other.append([*episodes[:3], changed])
    assert one.fingerprint() == two.fingerprint() == EpisodeStore.open(tmp_path / "1.zarr").fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_infos_with_numbers_for_keys_have_the_fingerprint_of_what_is_read_back(tmp_path):
    one, two = create(tmp_path / "1.zarr"), create(tmp_path / "2.zarr")
    steps = {number: number**2 for number in range(8, 12)}  # as texts, "10" comes before "8"
    infos = [{"steps": steps}, {"steps": steps | {"all": 4}}]
    one.append([Episode(features=numbered_episode(0).features, info=info) for info in infos])
    two.append([one.episode(0), one.episode(1)])
    assert one.episode(0).info == {"steps": {str(key): value for key, value in steps.items()}}
    assert one.fingerprint() == two.fingerprint()


def test_metadata_is_updated_in_place(tmp_path):
    store = create(tmp_path / "s.zarr", 1)
    store.update_metadata({"complete": True})
    store.append([numbered_episode(1)])
    assert EpisodeStore.open(tmp_path / "s.zarr").metadata == {"robot": "arm", "complete": True}
    assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 2


def test_a_reader_sees_the_commit_it_opened_while_a_writer_goes_on(tmp_path):
    store = create(tmp_path / "s.zarr", 2)
    reader = EpisodeStore.open(tmp_path / "s.zarr")
    store.append([numbered_episode(2)])
    assert reader.num_episodes == 2
    assert_same(reader.episode(1), numbered_episode(1))
    assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 3


def test_only_one_writer_at_a_time(tmp_path):
    store = create(tmp_path / "s.zarr", 1)
    with pytest.raises(StoreError, match="appended to by another"):
        EpisodeStore.open(tmp_path / "s.zarr", mode="a")
    store.close()
    with pytest.raises(StoreError, match="reading only"):
        store.append([numbered_episode(1)])
    EpisodeStore.open(tmp_path / "s.zarr", mode="a").close()


def test_rows_beyond_the_commit_are_ignored_and_overwritten(tmp_path):
    store = create(tmp_path / "s.zarr", 2)
    header = (tmp_path / "s.zarr/zarr.json").read_bytes()
    store.append([numbered_episode(7, rows=40)])
    store.close()
    (tmp_path / "s.zarr/zarr.json").write_bytes(header)  # as if killed just before the commit
    with EpisodeStore.open(tmp_path / "s.zarr", mode="a") as store:
        assert store.num_episodes == 2
        store.append([numbered_episode(2)])
        store.append([numbered_episode(3)])
        for number in range(4):
            assert_same(store.episode(number), numbered_episode(number))


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    create(tmp_path / "s.zarr", 2).close()
    command = [sys.executable, str(WRITER), str(tmp_path / "s.zarr"), "full disk"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "could not be written" in result.stdout
    assert "2 episodes committed before are intact" in result.stdout
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.num_episodes == 3
    for number in range(3):
        assert_same(store.episode(number), numbered_episode(number))


def test_no_such_path(tmp_path):
    with pytest.raises(StoreError, match=r"No such episode store: .*missing.zarr.*embodied-wm collect"):
        EpisodeStore.open(tmp_path / "missing.zarr")


@pytest.mark.parametrize("content", ["folder", "file", "other zarr", "broken json"])
def test_not_a_store(tmp_path, content):
    path = tmp_path / "s.zarr"
    if content == "file":
        path.write_text("hello")
    elif content == "other zarr":
        zarr.create_group(path)
    else:
        path.mkdir()
        if content == "broken json":
            (path / "zarr.json").write_text('{"zarr_format": 3,')
    with pytest.raises(StoreError, match="not an episode store"):
        EpisodeStore.open(path)


@pytest.mark.parametrize(("version", "word"), [(99, "newer"), (0, "older")])
def test_another_version(tmp_path, version, word):
    create(tmp_path / "s.zarr").close()
    change_header(tmp_path / "s.zarr", version=version)
    with pytest.raises(StoreError, match=f"version {version}, which is {word}"):
        EpisodeStore.open(tmp_path / "s.zarr")


def change_header(path: Path, **values: object) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["embodied_wm"].update(values)
    (path / "zarr.json").write_text(json.dumps(root))


def test_a_damaged_header(tmp_path):
    create(tmp_path / "s.zarr", 2).close()
    change_header(tmp_path / "s.zarr", num_frames=5)
    with pytest.raises(StoreError, match="7 rows, the header 5"):
        EpisodeStore.open(tmp_path / "s.zarr")
    change_header(tmp_path / "s.zarr", features=3)
    with pytest.raises(StoreError, match="damaged header"):
        EpisodeStore.open(tmp_path / "s.zarr")


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "missing"])
@pytest.mark.parametrize("feature", ["observation.images.top", "action"])
def test_a_damaged_chunk_is_named(tmp_path, damage, feature):
    create(tmp_path / "s.zarr", 3).close()
    (shard,) = [file for file in (tmp_path / "s.zarr" / feature / "c").rglob("*") if file.is_file()]
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "flipped":
        content[30] ^= 0xFF
        shard.write_bytes(content)
    else:
        shard.unlink()
    store = EpisodeStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=rf"rows 3 to 6 of array '{feature}'.*{feature}/c/0.*Restore the file"):
        store.episode(1)
    with pytest.raises(StoreError, match=feature):
        store.read_windows(feature, [2], 4)
    if damage in ("truncated", "empty"):
        with (
            EpisodeStore.open(tmp_path / "s.zarr", mode="a") as store,
            pytest.raises(StoreError, match=f"'{feature}' cannot be extended at row 12"),
        ):
            store.append([numbered_episode(3)])
        assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 3


def test_a_missing_array_is_named(tmp_path):
    create(tmp_path / "s.zarr", 1).close()
    shutil.rmtree(tmp_path / "s.zarr/action")
    with pytest.raises(StoreError, match="array 'action' is missing"):
        EpisodeStore.open(tmp_path / "s.zarr").episode(0)


def test_create_never_overwrites(tmp_path):
    create(tmp_path / "s.zarr", 1).close()
    with pytest.raises(StoreError, match="exists already"):
        create(tmp_path / "s.zarr")
    assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "at least one feature"),
        ({"a/b": FeatureSpec(dtype="uint8", shape=())}, "cannot be used"),
        ({"a": FeatureSpec(dtype="text", shape=())}, "unknown dtype"),
        ({"a": FeatureSpec(dtype="str", shape=())}, "expected bool, integer or float"),
        ({"a": FeatureSpec(dtype="uint8", shape=(0,))}, "at least 1"),
    ],
)
def test_features_that_cannot_be_stored(tmp_path, features, message):
    with pytest.raises(StoreError, match=message):
        EpisodeStore.create(tmp_path / "s.zarr", features=features, fps=10)
    assert not (tmp_path / "s.zarr").exists()


def test_fps_and_metadata_are_checked(tmp_path):
    for fps in (0, -1, float("nan")):
        with pytest.raises(StoreError, match="fps must be"):
            EpisodeStore.create(tmp_path / "s.zarr", features=FEATURES, fps=fps)
    with pytest.raises(StoreError, match="JSON"):
        EpisodeStore.create(tmp_path / "s.zarr", features=FEATURES, fps=1, metadata={"x": float("nan")})


def test_episodes_that_do_not_match_are_refused_and_leave_nothing(tmp_path):
    store = create(tmp_path / "s.zarr", 1)
    good = numbered_episode(1).features
    wrong = {
        "missing features": {"action": good["action"]},
        "expected float32": {**good, "action": good["action"].astype(np.float64)},
        "one row per frame": {**good, "next.success": good["next.success"][:-1]},
        "no rows": {name: rows[:0] for name, rows in good.items()},
    }
    for message, features in wrong.items():
        with pytest.raises(StoreError, match=message):
            store.append([numbered_episode(1), Episode(features=features)])
    with pytest.raises(StoreError, match="JSON"):
        store.append([Episode(features=good, info={"x": np.zeros(2)})])
    assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 1


def test_what_is_not_there_cannot_be_read(tmp_path):
    store = create(tmp_path / "s.zarr", 1)
    with pytest.raises(StoreError, match=r"no feature 'state'; it has \['action'"):
        store.read("state", 0, 1)
    with pytest.raises(StoreError, match="has rows 0 to 3"):
        store.read("action", 0, 4)
    with pytest.raises(StoreError, match="has no episode 1"):
        store.episode(1)
    with pytest.raises(StoreError, match="mode must be"):
        EpisodeStore.open(tmp_path / "s.zarr", mode="w")  # pyright: ignore[reportArgumentType]
