"""Metadata and tables that anybody could have written are imported or refused, and nothing else happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import Folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embodied_wm.data.lerobot import LeRobotError, import_lerobot
from embodied_wm.data.store import EpisodeStore

ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "..", "../..", "a/b", "\0", "{video_key}", "1", "float32", "video", "[1]", "v3.0"]),
    st.text(max_size=5),
    st.lists(st.integers(-3, 10**12), max_size=3),
    st.dictionaries(st.sampled_from(["motors", "dtype", "shape", "x"]), st.integers(-3, 3), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a JSON value with one part changed; Ellipsis as the new part takes it away."""
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    new = changed(copy[path[0]], path[1:], change)
    if new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy


UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
FUZZED = ("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl")


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    for version in ("v2.1", "v3.0"):
        source = Folder(version=version, lengths=(3, 2)).write(root / version)
        stats = {"min": [0, 0], "max": [1, 1], "mean": [0.5, 0.5], "std": [0.1, 0.1], "count": [3]}
        (source / "meta/episodes_stats.jsonl").write_text(json.dumps({"episode_index": 0, "stats": {"action": stats}}))
    return root


def fresh_copy(small_folders: Path, version: str, place: Path) -> tuple[Path, Path]:
    """Return a new copy of a small dataset, and where to import it."""
    source, out = place / "source", place / "s.zarr"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(small_folders / version, source), out


def import_or_refuse(source: Path, out: Path) -> None:
    """Import; nothing but the two documented errors may come out of it, and nothing be written elsewhere."""
    beside = {path for path in source.parent.rglob("*") if out.name not in path.parts}
    try:
        import_lerobot(source, out, image_size=(8, 8), num_workers=1)
        said = EpisodeStore.open(out).path
    except LeRobotError as error:
        said = str(error)
    assert str(source.parent) in said
    assert len(said) < 3000
    assert {path for path in source.parent.rglob("*") if out.name not in path.parts} == beside


@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_json_that_anybody_wrote_is_imported_or_refused(small_folders, tmp_path, examples):
    @settings(max_examples=examples, derandomize=examples < 100, deadline=None, suppress_health_check=UNHURRIED)
    @given(data=st.data())
    def check(data):
        source, out = fresh_copy(small_folders, data.draw(st.sampled_from(["v2.1", "v3.0"])), tmp_path)
        files = [name for name in FUZZED if (source / name).is_file()]
        for _ in range(data.draw(st.integers(1, 2))):
            file = source / data.draw(st.sampled_from(files))
            documents = [json.loads(line) for line in file.read_text().splitlines()]
            paths = places(documents)[1:]
            if not paths:  # it was all taken away
                continue
            path = data.draw(st.sampled_from(paths))
            new = data.draw(st.one_of(st.just(...), ODD_VALUES))
            documents = changed(documents, path, lambda _, new=new: new)
            file.write_text("\n".join(map(json.dumps, documents)))
        import_or_refuse(source, out)

    check()


@pytest.mark.parametrize("examples", [12, pytest.param(600, marks=pytest.mark.slow)])
def test_tables_that_anybody_wrote_are_imported_or_refused(small_folders, tmp_path, examples):
    kinds = [
        pa.int64(), pa.float64(), pa.string(), pa.bool_(), pa.list_(pa.float64()), pa.timestamp("us"), pa.null(),
        pa.binary(), pa.struct([("a", pa.int8())]),
    ]  # fmt: skip

    def value(kind):
        plain = {
            pa.int64(): st.integers(-(2**63), 2**63 - 1),
            pa.float64(): st.floats(),
            pa.string(): st.sampled_from(["", "..", "x"]),
            pa.bool_(): st.booleans(),
            kinds[4]: st.lists(st.floats(), max_size=3),
            kinds[5]: st.integers(-(2**60), 2**60),
            pa.null(): st.none(),
            pa.binary(): st.binary(max_size=3),
            kinds[8]: st.fixed_dictionaries({"a": st.integers(0, 3)}),
        }
        return st.one_of(plain[kind], st.none())

    @settings(max_examples=examples, derandomize=examples < 100, deadline=None, suppress_health_check=UNHURRIED)
    @given(data=st.data())
    def check(data):
        source, out = fresh_copy(small_folders, data.draw(st.sampled_from(["v2.1", "v3.0"])), tmp_path)
        file = data.draw(st.sampled_from(sorted(source.rglob("*.parquet"))))
        table = pq.read_table(file)
        name = data.draw(st.sampled_from(table.column_names))
        kind = data.draw(st.sampled_from(kinds))
        if data.draw(st.booleans()):
            values = data.draw(st.lists(value(kind), min_size=table.num_rows, max_size=table.num_rows))
            table = table.set_column(table.column_names.index(name), name, pa.array(values, type=kind))
        else:
            table = table.drop_columns([name])
        pq.write_table(table, file)
        import_or_refuse(source, out)

    check()


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe{}", b"[]", b"7", b'{"a":' + b"9" * 5000 + b"}"])
@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_json_that_is_none(small_folders, tmp_path, name, content):
    source = shutil.copytree(small_folders / "v2.1", tmp_path / "source")
    (source / name).write_bytes(content)
    if content or name == "meta/info.json":
        with pytest.raises(LeRobotError, match=Path(name).name):
            import_lerobot(source, tmp_path / "s.zarr")
    else:
        assert import_lerobot(source, tmp_path / "s.zarr").episodes == 2
