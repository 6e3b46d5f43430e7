"""Merge, split, filter: content stays, sources stay, results appear whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import Folder

from embodied_wm import cli
from embodied_wm.data import edit
from embodied_wm.data.edit import Conditions, assign_parts, filter_store, merge_stores, select_episodes, split_store
from embodied_wm.data.lerobot import import_lerobot
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

FEATURES = {
    "observation.images.top": FeatureSpec(dtype="uint8", shape=(8, 8, 3)),
    "action": FeatureSpec(dtype="float32", shape=(2,), names=("x", "y"), units=("m", "m")),
    "next.success": FeatureSpec(dtype="bool", shape=()),
}


def numbered(number: int) -> Episode:
    rng = np.random.default_rng(number)
    rows = 3 + number % 5
    success = np.zeros(rows, dtype=bool)
    success[0], success[-1] = True, number % 2 == 0  # what counts is the end
    return Episode(
        features={
            "observation.images.top": rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8),
            "action": rng.normal(size=(rows, 2)).astype(np.float32),
            "next.success": success,
        },
        info={"number": number, "task": "push" if number < 4 else "pull", "ünï": [number]},
    )


def write(path: Path, numbers: range = range(10), *, fps: float = 10, **metadata: object) -> Path:
    with EpisodeStore.create(path, features=FEATURES, fps=fps, metadata={"robot": "arm", **metadata}) as store:
        store.append([numbered(number) for number in numbers])
    return path


def numbers_in(store: EpisodeStore) -> list[int]:
    """Return the numbers of a store's episodes, each checked to be just what it was."""
    found = []
    for index in range(store.num_episodes):
        episode = store.episode(index)
        expected = numbered(episode.info["number"])
        assert dict(episode.info) == dict(expected.info)
        for name, rows in expected.features.items():
            np.testing.assert_array_equal(episode.features[name], rows)
        found.append(episode.info["number"])
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("splits", "copy_bytes"),
    [
        ({"train": 0.8, "val": 0.2}, 2**26),
        ({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 2**26),
        ({"a": [0, 1, 2], "b": [3], "c": list(range(4, 10))}, 4000),  # some commits for each part
    ],
)
def test_merging_a_split_gives_the_same_store_and_changes_no_source(tmp_path, monkeypatch, splits, copy_bytes):
    monkeypatch.setattr(edit, "COPY_BYTES", copy_bytes)
    source = write(tmp_path / "s.zarr")
    before = content(source)
    parts = split_store(source, tmp_path / "parts", splits)
    assert list(parts) == list(splits)
    assert [number for part in parts.values() for number in numbers_in(part)] == list(range(10))
    merged = merge_stores([tmp_path / "parts" / f"{name}.zarr" for name in splits], tmp_path / "merged.zarr")
    assert merged.fingerprint() == EpisodeStore.open(source).fingerprint()
    assert numbers_in(merged) == list(range(10))
    assert dict(merged.features) == FEATURES
    assert content(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.zarr", "parts", "s.zarr"]


def test_fractions_are_taken_in_order_and_may_leave_some_out():
    assert {name: part.tolist() for name, part in assign_parts(10, {"a": 0.7, "b": 0.2}).items()} == {
        "a": list(range(7)),
        "b": [7, 8],
    }
    sizes = [len(part) for part in assign_parts(81, {"train": 0.8, "val": 0.1, "test": 0.1}).values()]
    assert sum(sizes) == 81
    assert sizes == [65, 8, 8]
    assert assign_parts(5, {"all": 1})["all"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "splits={}: expected parts"),
        ({"a": 0.5, "b": 0.6}, "add up to 1"),
        ({"a": 0.5, "b": -0.1}, "above 0"),
        ({"a": 0.99, "b": 0.01}, "'b' would hold none"),
        ({"a": 0.5, "b": [1]}, "fraction for every part or a list"),
        ({"a": [0, 1], "b": [1]}, "Episode 1 is in two parts"),
        ({"a": [0, 10]}, "no episode 10"),
        ({"a": [-1]}, "no episode -1"),
        ([0.8, 0.2], r"splits=\[0.8, 0.2\]: expected parts"),
        ({"a": [0.5]}, r"part 'a'=\[0.5\]: expected whole numbers"),
        ({"a": "most"}, "part 'a'='most': expected whole numbers"),
        ({"../a": 0.5}, "letters, digits"),
        ({"": 0.5}, "letters, digits"),
        ({"a": []}, "'a' would hold none"),
    ],
)
def test_splits_that_cannot_be(tmp_path, splits, message):
    source = write(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=message):
        split_store(source, tmp_path / "parts", splits)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (Conditions(), list(range(10))),
        (Conditions(episodes=[7, 2, 2]), [2, 7]),
        (Conditions(episodes=7), [7]),
        (Conditions(episodes=range(3)), [0, 1, 2]),
        (Conditions(episodes=np.array([7, 2])), [2, 7]),  # type: ignore[arg-type]
        (Conditions(delete_episodes=[0, 9]), list(range(1, 9))),
        (Conditions(delete_episodes=np.arange(9), min_rows=np.int64(6)), [9]),  # type: ignore[arg-type]
        (Conditions(min_rows=6), [3, 4, 8, 9]),
        (Conditions(max_rows=4, min_rows=4), [1, 6]),
        (Conditions(success=True), [0, 2, 4, 6, 8]),
        (Conditions(success=False, info={"task": "push"}), [1, 3]),
        (Conditions(info={"number": [1, 4, 77], "task": "pull"}), [4]),
        (Conditions(info={"ünï": [[3], [5]]}), [3, 5]),
    ],
)
def test_filter(tmp_path, conditions, kept):
    source = write(tmp_path / "s.zarr")
    before = content(source)
    made = filter_store(source, tmp_path / "f.zarr", conditions)
    assert numbers_in(made) == kept
    assert made.metadata["robot"] == "arm"
    assert made.metadata["source"]["of"][0]["fingerprint"] == EpisodeStore.open(source).fingerprint()
    assert content(source) == before


def test_success_by_the_info_of_an_episode_comes_first(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", features=FEATURES, fps=10) as store:
        rows = numbered(0).features
        store.append([Episode(features=rows, info={"success": False}), Episode(features=rows, info={})])
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert select_episodes(store, Conditions(success=True)).tolist() == [1]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions(min_rows=100), "none of its 10 episodes"),
        (Conditions(episodes=[10]), "episodes: there is no episode 10"),
        (Conditions(delete_episodes=[-1]), "delete_episodes: there is no episode -1"),
        (Conditions(info={"policy": "play"}), r"has 'policy'; they have \['number', 'task', 'ünï'\]"),
    ],
)
def test_filters_that_cannot_be(tmp_path, conditions, message):
    with pytest.raises(StoreError, match=message):
        filter_store(write(tmp_path / "s.zarr"), tmp_path / "f.zarr", conditions)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("min_rows=ten", "min_rows=ten: expected a whole number of rows"),
        ("max_rows=2.5", "max_rows=2.5: expected a whole number of rows"),
        ("success=perhaps", "success=perhaps: expected true or false"),
        ("info=push", "info=push: expected keys and their values"),
        ("episodes=all", "episodes='all': expected whole numbers, counted from 0"),
        ("delete_episodes=[true]", "delete_episodes=[True]: expected whole numbers"),
        ("splits=[0.8,0.2]", "splits=[0.8, 0.2]: expected parts, such as {train:0.8,val:0.2}"),
    ],
)
def test_values_of_another_kind(tmp_path, option, words, capsys):
    write(tmp_path / "s.zarr")
    operation = "split" if "splits" in option else "filter"
    assert cli.main(["edit", f"operation={operation}", f"sources=[{tmp_path}/s.zarr]", "out=f.zarr", option]) == 1
    page = " ".join(capsys.readouterr().err.split())
    assert words in page
    assert "Traceback" not in page
    assert not list(Path().glob("f.zarr*"))


def test_success_that_nothing_tells(tmp_path):
    specs = {"action": FEATURES["action"]}
    with EpisodeStore.create(tmp_path / "s.zarr", features=specs, fps=10) as store:
        store.append([Episode(features={"action": np.ones((2, 2), np.float32)})])
    with pytest.raises(StoreError, match="nothing says whether episode 0 succeeded"):
        filter_store(tmp_path / "s.zarr", tmp_path / "f.zarr", Conditions(success=True))


def test_merged_metadata_keeps_what_is_agreed_on_and_remembers_the_rest(tmp_path):
    one, two = write(tmp_path / "1.zarr", range(3), site="A"), write(tmp_path / "2.zarr", range(3, 5), site="B")
    merged = merge_stores([one, two], tmp_path / "m.zarr")
    assert numbers_in(merged) == [0, 1, 2, 3, 4]
    assert merged.metadata["robot"] == "arm"
    assert "site" not in merged.metadata
    assert [source["metadata"]["site"] for source in merged.metadata["source"]["of"]] == ["A", "B"]


def test_what_is_made_of_an_imported_store_is_no_import(tmp_path):
    source = Folder(lengths=(5, 6, 7)).write(tmp_path / "source")
    import_lerobot(source, tmp_path / "s.zarr")
    told = EpisodeStore.open(tmp_path / "s.zarr").metadata
    filter_store(tmp_path / "s.zarr", tmp_path / "f.zarr", Conditions(delete_episodes=[1]))
    split_store(tmp_path / "s.zarr", tmp_path / "parts", {"a": [0]})
    merge_stores([tmp_path / "s.zarr"], tmp_path / "m.zarr")
    for made in ("f.zarr", "parts/a.zarr", "m.zarr"):
        metadata = EpisodeStore.open(tmp_path / made).metadata
        assert set(told) - set(metadata) == {"import", "complete"}
        assert metadata["source"]["of"][0]["metadata"] == told
        with pytest.raises(StoreError, match="exists already, and is not from an import"):
            import_lerobot(source, tmp_path / made)
    assert EpisodeStore.open(tmp_path / "f.zarr").num_episodes == 2


def test_stores_that_differ_do_not_merge(tmp_path):
    one, fast = write(tmp_path / "1.zarr"), write(tmp_path / "2.zarr", fps=20)
    with pytest.raises(StoreError, match=r"10 rows per second, .*20"):
        merge_stores([one, fast], tmp_path / "m.zarr")
    changed = {
        "names": {"action": FeatureSpec(dtype="float32", shape=(2,), names=("a", "b"), units=("m", "m"))},
        "shape": {"action": FeatureSpec(dtype="float32", shape=(3,))},
        "absent": {"extra": FeatureSpec(dtype="bool", shape=())},
    }
    for word, specs in changed.items():
        EpisodeStore.create(tmp_path / f"{word}.zarr", features={**FEATURES, **specs}, fps=10).close()
        with pytest.raises(StoreError, match=rf"'{next(iter(specs))}' is .*{word}"):
            merge_stores([one, tmp_path / f"{word}.zarr"], tmp_path / "m.zarr")
    with pytest.raises(StoreError, match="at least one"):
        merge_stores([], tmp_path / "m.zarr")
    assert not list(tmp_path.glob("m.zarr*"))


def test_a_result_never_overwrites_and_never_stands_in_a_source(tmp_path):
    source = write(tmp_path / "s.zarr")
    for out in ("s.zarr", "other"):
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(StoreError, match="exists already"):
            merge_stores([source], tmp_path / out)
    with pytest.raises(StoreError, match="inside a store"):
        filter_store(source, source / "f.zarr", Conditions(episodes=[0]))
    with pytest.raises(StoreError, match="local folder"):
        merge_stores([source], "s3://bucket/m.zarr")


def test_a_damaged_source_leaves_no_result_and_can_be_filtered_around(tmp_path, monkeypatch):
    monkeypatch.setattr("embodied_wm.data.layout.MAX_CHUNK_ROWS", 2)
    monkeypatch.setattr("embodied_wm.data.layout.CHUNKS_PER_SHARD", 1)
    source = write(tmp_path / "s.zarr")
    (source / "action" / "c" / "0" / "0").unlink()  # the first two rows
    with pytest.raises(StoreError, match="which is missing"):
        merge_stores([source], tmp_path / "m.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    assert numbers_in(filter_store(source, tmp_path / "f.zarr", Conditions(delete_episodes=[0]))) == list(range(1, 10))


def test_killed_in_the_middle_there_is_no_result_and_the_next_try_works(tmp_path):
    source = write(tmp_path / "s.zarr")
    script = (
        "import os, signal, sys; from embodied_wm.data import edit; edit.COPY_BYTES = 1; "
        "edit.merge_stores([sys.argv[1]], sys.argv[2], "
        "progress=lambda done, total: done > 20 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "m.zarr")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zarr.partial", "s.zarr"]
    assert numbers_in(merge_stores([source], tmp_path / "m.zarr")) == list(range(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zarr", "s.zarr"]


def test_progress_counts_rows(tmp_path):
    calls: list[tuple[int, int]] = []
    progress: Callable[[int, int], None] = lambda done, total: calls.append((done, total))  # noqa: E731
    store = EpisodeStore.open(write(tmp_path / "s.zarr"))
    split_store(tmp_path / "s.zarr", tmp_path / "p", {"a": 0.5, "b": 0.5}, progress=progress)
    assert calls[-1] == (store.num_frames, store.num_frames)
    assert len(calls) == 2


def test_the_verb(tmp_path, capsys):
    write(tmp_path / "s.zarr")
    assert cli.main(["edit", "operation=split", "sources=[s.zarr]", "splits={train:0.8,val:0.2}", "out=parts"]) == 0
    merge = ["edit", "operation=merge", "sources=[parts/train.zarr,parts/val.zarr]", "out=m.zarr"]
    assert cli.main(merge) == 0
    assert EpisodeStore.open("s.zarr").fingerprint() in capsys.readouterr().out
    assert EpisodeStore.open("m.zarr").fingerprint() == EpisodeStore.open("s.zarr").fingerprint()
    conditions = ["success=true", "info={task:[push]}", "delete_episodes=[0]", "min_rows=2"]
    assert cli.main(["edit", "operation=filter", "sources=[s.zarr]", "out=f.zarr", *conditions]) == 0
    assert numbers_in(EpisodeStore.open("f.zarr")) == [2]
    assert cli.main(merge) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("operation=mrge sources=[s.zarr]", "did you mean merge"),
        ("operation=merge", "give sources="),
        ("operation=split sources=[a,b] splits={a:1}", "takes one store, got 2"),
        ("operation=split sources=[a]", "splits={train:0.8,val:0.2}"),
        ("operation=merge sources=[a] min_rows=3", "min_rows=... belongs to operation=filter"),
        ("operation=filter sources=[a]", "needs a condition"),
    ],
)
def test_the_verb_used_wrongly(line, words, capsys):
    assert cli.main(["edit", "out=m.zarr", *line.split()]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
