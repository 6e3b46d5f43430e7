"""Every fault that was met in public datasets, on small made-up folders.

The traps of whole folders (other rates, wall-clock times, missing videos, wrong counts) are in test_lerobot.py;
metadata that anybody could have written are in test_lerobot_fuzz.py.
"""

import json

import av
import folders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import CAMERA, Folder, assert_frames

from embodied_wm.data.lerobot import LeRobotError, import_lerobot
from embodied_wm.data.lerobot.checks import fill_template, inside
from embodied_wm.data.lerobot.video import match_frames
from embodied_wm.data.store import EpisodeStore, StoreError

V2_DATA, V2_VIDEO = "data/chunk-000/episode_{:06d}.parquet", f"videos/chunk-000/{CAMERA}/episode_{{:06d}}.mp4"
V3_DATA, V3_EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
V3_VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
V3_TIMES = ("from_timestamp", "to_timestamp")


def change_info(source, **changes):
    path = source / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def with_columns(table, columns):
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def reasons(findings):
    return {finding.episode: finding.reason for finding in findings}


def test_tables_without_frame_index_and_a_verdict_among_the_tasks(tmp_path):
    """As NVIDIA's simulated GR1: the tasks of an episode include "valid", its rows say which task is meant."""
    source = Folder(task_column="task").write(tmp_path / "source")
    tasks = [{"task_index": 0, "task": "lift"}, {"task_index": 1, "task": "valid"}, {"task_index": 4, "task": "push"}]
    (source / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    lines = [{"episode_index": index, "length": 6, "tasks": ["lift", "valid"]} for index in range(3)]
    (source / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for index in range(3):
        rewrite(source / V2_DATA.format(index), lambda table: table.drop_columns(["frame_index"]))
    import_lerobot(source, tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    info = store.episode_info(0)
    assert (info["task"], info["tasks"], info["source_tasks"]) == ("lift", ["lift"], ["lift", "valid"])
    assert store.metadata["tasks"] == ["lift", "valid", "push"]
    assert store.metadata["source"]["task_numbers"] == [0, 1, 4]
    assert_frames(store.episode(1), 1, range(9))


def test_texts_with_ends_of_lines_that_json_does_not_escape(tmp_path):
    """LeRobot's own writer leaves what is not ASCII as it is; str.splitlines ends lines at U+2028 and U+0085, too."""
    source = Folder(task_column="task").write(tmp_path / "source")
    text = "lege\u2028die Tasse\x85ab"
    tasks = [{"task_index": index, "task": text} for index in (0, 1)]
    lines = "\r\n".join(json.dumps(task, ensure_ascii=False) for task in tasks)
    (source / "meta/tasks.jsonl").write_text(lines, encoding="utf-8", newline="")
    import_lerobot(source, tmp_path / "s.zarr")
    assert EpisodeStore.open(tmp_path / "s.zarr").episode_info(0)["task"] == text


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2), None])
def test_vectors_of_every_kind(tmp_path, kind):
    rows = np.stack([np.arange(19), 0.5 * np.arange(19)], axis=1)
    column = pa.array(rows.tolist(), type=kind or pa.list_(pa.list_(pa.float64())).value_type)
    source = Folder(columns={"action": column}).write(tmp_path / "source")
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert report.repaired == ()
    np.testing.assert_array_equal(EpisodeStore.open(tmp_path / "s.zarr").read("action", 0, 19), rows)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_declared_codec_size_and_rate_that_are_not_the_streams(tmp_path, version):
    declared = {"video.codec": "av1", "video.fps": 60, "video.height": 999, "video.pix_fmt": "yuv444p"}
    features = {CAMERA: {"dtype": "video", "shape": [3, 480, 640], "info": declared}}
    source = Folder(version=version, features=features).write(tmp_path / "source")
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert report.repaired == report.skipped == ()
    assert_frames(EpisodeStore.open(tmp_path / "s.zarr").episode(2), 2, range(4))


@pytest.mark.parametrize("template", ["elsewhere/{video_key}-{file_index}.mp4", "../{video_key}.mp4", "{0}", 5, None])
def test_templates_that_do_not_match_the_folders(tmp_path, template):
    source = Folder(version="v3.0").write(tmp_path / "source")
    change_info(source, video_path=template, data_path=template)
    assert import_lerobot(source, tmp_path / "s.zarr").skipped == ()
    assert_frames(EpisodeStore.open(tmp_path / "s.zarr").episode(1), 1, range(9))


def test_a_template_is_asked_for_files_that_are_named_otherwise(tmp_path):
    source = Folder(version="v3.0").write(tmp_path / "source")
    (source / "films").mkdir()
    (source / V3_VIDEO).rename(source / f"films/{CAMERA}.0007.mp4")
    change_info(source, video_path="films/{video_key}.{file_index:04d}.mp4")
    rewrite(source / V3_EPISODES, lambda table: set_column(table, f"videos/{CAMERA}/file_index", [7] * table.num_rows))
    import_lerobot(source, tmp_path / "s.zarr")
    assert_frames(EpisodeStore.open(tmp_path / "s.zarr").episode(1), 1, range(9))


def set_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_no_path_leads_out_of_the_folder(tmp_path):
    outside = tmp_path / "outside.mp4"
    source = Folder(version="v3.0").write(tmp_path / "source")
    (source / V3_VIDEO).rename(outside)
    for template in ("../outside.mp4", str(outside), "videos/../../outside.mp4", "{video_key}/../../outside.mp4"):
        change_info(source, video_path=template)
        with pytest.raises(LeRobotError, match=r"video_path in .*meta/info\.json names .* no file inside"):
            import_lerobot(source, tmp_path / "s.zarr")
    for template in ("{video_key.__class__}", "{chunk_index:0999999999d}", "{0}", "{"):
        change_info(source, video_path=template)
        with pytest.raises(LeRobotError, match=r"no video file|the field|has no frames|none of 3"):
            import_lerobot(source, tmp_path / "s.zarr", cameras=[CAMERA])
    with pytest.raises(LeRobotError, match="with the field 'episode'"):
        fill_template("{episode:03d}", {"video_key": "a"}, "it")
    for path in ("..", ".", "", "a/../..", "/etc/passwd", "a\0b"):
        with pytest.raises(LeRobotError, match="no file inside"):
            inside(tmp_path, path, "it")
    assert inside(tmp_path, "a/../b.mp4", "it") == tmp_path / "b.mp4"
    assert fill_template("{a:03d}-{b}", {"a": 7, "b": "x"}, "it") == "007-x"


def test_pictures_named_by_the_table_lie_inside_the_folder(tmp_path):
    from PIL import Image

    wrist = "observation.images.wrist"
    for name, skipped in (("images/0.png", 0), ("../secret.png", 3), (str(tmp_path / "secret.png"), 3)):
        values = pa.array([{"bytes": None, "path": name}] * 19)
        source = tmp_path / f"source{skipped}{len(name)}"
        Folder(columns={wrist: values}, features={wrist: {"dtype": "image", "shape": [8, 8, 3]}}).write(source)
        (source / "images").mkdir()
        for place in (source / "images/0.png", tmp_path / "secret.png"):
            Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8)).save(place)
        if skipped:
            with pytest.raises(LeRobotError, match=rf"image '{wrist}' of row 0 names .*no file inside"):
                import_lerobot(source, tmp_path / "s.zarr")
        else:
            assert import_lerobot(source, tmp_path / "t.zarr").skipped == ()


def test_pictures_that_are_damaged(tmp_path):
    wrist = "observation.images.wrist"
    good = folders.png(99)
    content = [good] * 19
    content[7], content[16] = good[:40], b"no picture"
    values = pa.array([{"bytes": each, "path": None} for each in content])
    source = Folder(columns={wrist: values}, features={wrist: {"dtype": "image", "shape": [8, 8, 3]}})
    report = import_lerobot(source.write(tmp_path / "source"), tmp_path / "s.zarr")
    assert sorted(reasons(report.skipped)) == [1, 2]
    assert f"image '{wrist}' of row 1 cannot be read" in reasons(report.skipped)[1]


def test_a_video_that_is_corrupt_half_way_costs_its_episodes_only(tmp_path):
    source = Folder(version="v3.0", lengths=(40,) * 6).write(tmp_path / "source")
    content = bytearray((source / V3_VIDEO).read_bytes())
    start = len(content) * 45 // 100
    content[start : start + len(content) // 20] = bytes(len(content) // 20)
    (source / V3_VIDEO).write_bytes(content)
    report = import_lerobot(source, tmp_path / "s.zarr", image_size=(16, 16))
    assert 0 < len(report.skipped) <= 3
    for finding in report.skipped:
        assert "file-000.mp4" in finding.reason
        assert "frame" in finding.reason
    store = EpisodeStore.open(tmp_path / "s.zarr")
    for number in range(store.num_episodes):
        assert_frames(store.episode(number), store.episode_info(number)["source_episode"], range(40))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_that_was_cut_without_encoding_it_anew(tmp_path, version):
    """As by ffmpeg -ss with -c copy: the frames before the cut are in the file, and its edit list hides them."""
    source = Folder(version=version, lengths=(6, 9), num_frames={0: 9}).write(tmp_path / "source")
    path = source / (V2_VIDEO.format(0) if version == "v2.1" else V3_VIDEO)
    whole = path.rename(tmp_path / "whole.mp4")
    with (
        av.open(str(whole)) as uncut,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as cut,
    ):
        stream, there = uncut.streams.video[0], cut.add_stream_from_template(uncut.streams.video[0])
        assert stream.time_base is not None
        frame = round(0.1 / stream.time_base)
        for packet in uncut.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.stream, packet.pts, packet.dts = there, packet.pts - 3 * frame, packet.dts - 3 * frame
                cut.mux(packet)
    if version == "v3.0":
        ends = {f"videos/{CAMERA}/{key}": pa.array([0.0, 0.6, 1.5][at : at + 2]) for at, key in enumerate(V3_TIMES)}
        rewrite(source / V3_EPISODES, lambda table: with_columns(table.slice(0, 2), ends))
    report = import_lerobot(source, tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert (report.repaired, report.skipped) == ((), ())
    assert_frames(store.episode(0), 0, range(3, 9))
    assert_frames(store.episode(1), 1, range(9))


def test_a_table_that_is_damaged_costs_its_episode_only(tmp_path):
    source = Folder().write(tmp_path / "source")
    (source / V2_DATA.format(0)).write_bytes(b"version https://git-lfs")
    content = bytearray((source / V2_DATA.format(2)).read_bytes())
    content[4:200] = bytes(196)  # its footer, and so its header, is whole
    (source / V2_DATA.format(2)).write_bytes(content)
    found = reasons(import_lerobot(source, tmp_path / "s.zarr").skipped)
    assert sorted(found) == [0, 2]
    assert "episode_000000.parquet cannot be read" in found[0]
    assert "cannot be read" in found[2]


def test_a_table_with_other_columns_costs_its_episode_only(tmp_path):
    source = Folder(lengths=(6, 9, 4, 5, 5)).write(tmp_path / "source")
    rewrite(source / V2_DATA.format(0), lambda table: table.drop_columns(["action"]))
    rewrite(source / V2_DATA.format(1), lambda table: table.append_column("more", pa.array(range(9))))
    rewrite(source / V2_DATA.format(2), lambda table: set_column(table, "action", ["left"] * 4))
    report = import_lerobot(source, tmp_path / "s.zarr")
    found = reasons(report.skipped)
    assert found == {
        0: "column 'action' is missing",
        2: "column 'action' holds 4 values of string, expected (4, 2) of float32",
    }
    assert report.episodes == 3
    assert report.notes == ()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1.0, 2.0]] * 3 + [None] + [[1.0, 2.0]] * 2, "column 'action' has 1 empty rows"),
        ([[1.0, 2.0]] * 3 + [[1.0, None]] + [[1.0, 2.0]] * 2, "column 'action' has 1 empty values"),
        ([[1.0, 2.0]] * 3 + [[1.0], [1.0, 2.0, 3.0]] + [[1.0, 2.0]], "has 1 values in row 3, 2 in row 0"),
        ([[1.0, 2.0, 3.0]] * 6, "holds 18 values of double, expected (6, 2) of float32"),
        ([[1e300, 2.0]] * 6, "holds 1e+300, which float32, its declared type, cannot hold"),
    ],
)
def test_rows_that_are_not_what_is_declared(tmp_path, rows, words):
    source = Folder().write(tmp_path / "source")
    rewrite(source / V2_DATA.format(0), lambda table: set_column(table, "action", rows))
    found = reasons(import_lerobot(source, tmp_path / "s.zarr").skipped)
    assert list(found) == [0]
    assert words in found[0]


def test_values_that_the_declared_type_rounds_are_said(tmp_path):
    source = Folder().write(tmp_path / "source")
    rewrite(source / V2_DATA.format(1), lambda table: set_column(table, "action", [[0.1, 0.5]] * 9))
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert reasons(report.repaired) == {1: "column 'action' holds float64, declared is float32: rounded"}
    assert EpisodeStore.open(tmp_path / "s.zarr").episode(1).features["action"][0, 0] == np.float32(0.1)


def test_rows_that_are_missing_or_out_of_order(tmp_path):
    source = Folder(lengths=(8, 9, 6)).write(tmp_path / "source")
    kept = [0, 1, 2, 6, 7]
    rewrite(source / V2_DATA.format(0), lambda table: table.take(kept))
    rewrite(source / V2_DATA.format(1), lambda table: table.take([3, 1, 0, 2, 8, 7, 6, 5, 4]))
    rewrite(source / V2_DATA.format(2), lambda table: table.take([0, 1, 1, 2, 3, 5]))
    report = import_lerobot(source, tmp_path / "s.zarr")
    found = [finding.reason for finding in report.repaired if finding.episode == 0]
    assert any("3 rows are missing, the first after frame_index 2" in reason for reason in found)
    assert any("5 rows and 8 frames: rows are missing, matched by frame_index" in reason for reason in found)
    assert reasons(report.repaired)[1] == "rows stand out of order: sorted by frame_index"
    assert reasons(report.skipped) == {2: "frame_index 1 stands in more than one row"}
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert_frames(store.episode(0), 0, kept)
    np.testing.assert_array_equal(store.episode(0).features["action"][:, 1], kept)
    assert_frames(store.episode(1), 1, range(9))
    np.testing.assert_array_equal(store.episode(1).features["action"][:, 1], range(9))


def test_a_frame_index_that_says_nothing_is_not_used(tmp_path):
    source = Folder().write(tmp_path / "source")
    rewrite(source / V2_DATA.format(1), lambda table: set_column(table, "frame_index", [0] * 9))
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert reasons(report.repaired) == {1: "frame_index is the same in every row: not used"}
    assert_frames(EpisodeStore.open(tmp_path / "s.zarr").episode(1), 1, range(9))


def test_an_episode_in_two_files_out_of_order(tmp_path):
    source = Folder(version="v3.0").write(tmp_path / "source")
    table = pq.read_table(source / V3_DATA)
    pq.write_table(table.slice(10), source / V3_DATA)  # the end of episode 1, and episode 2
    pq.write_table(table.slice(0, 10), source / "data/chunk-000/file-001.parquet")
    import_lerobot(source, tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.episode_lengths, [6, 9, 4])
    np.testing.assert_array_equal(store.episode(1).features["action"][:, 1], range(9))


@pytest.mark.parametrize("damage", ["footer", "rows"])
def test_a_damaged_file_of_many_episodes_costs_those_only(tmp_path, damage):
    source = Folder(version="v3.0", lengths=(6, 9, 4, 5)).write(tmp_path / "source")
    table = pq.read_table(source / V3_DATA)
    pq.write_table(table.slice(0, 6), source / V3_DATA)
    second = source / "data/chunk-000/file-001.parquet"
    pq.write_table(table.slice(6), second)
    content = bytearray(second.read_bytes())
    spoilt = slice(len(content) - 60, len(content)) if damage == "footer" else slice(4, len(content) // 2)
    content[spoilt] = bytes(len(content[spoilt]))
    second.write_bytes(content)
    with pytest.raises(LeRobotError, match=r"file-001\.parquet cannot be read.*do not say which episodes it held"):
        import_lerobot(source, tmp_path / "s.zarr")
    episodes = next((source / "meta/episodes").rglob("*.parquet"))
    rewrite(
        episodes,
        lambda table: table.append_column("data/chunk_index", pa.array([0] * len(table))).append_column(
            "data/file_index", pa.array([int(index > 0) for index in table["episode_index"].to_pylist()])
        ),
    )
    report = import_lerobot(source, tmp_path / "s.zarr")
    found = reasons(report.skipped)
    assert sorted(found) == [1, 2, 3]
    assert all("file-001.parquet cannot be read" in reason for reason in found.values())
    assert_frames(EpisodeStore.open(tmp_path / "s.zarr").episode(0), 0, range(6))
    with pytest.raises(LeRobotError, match="strict import refused: episode 1"):
        import_lerobot(source, tmp_path / "t.zarr", strict=True)


def test_small_row_groups_and_large_ones_read_alike(tmp_path):
    source = Folder(version="v3.0", lengths=(6, 9, 4, 8)).write(tmp_path / "source")
    import_lerobot(source, tmp_path / "1.zarr")
    table = pq.read_table(source / V3_DATA)
    pq.write_table(table, source / V3_DATA, row_group_size=4)
    import_lerobot(source, tmp_path / "4.zarr")
    one, four = (EpisodeStore.open(tmp_path / f"{size}.zarr") for size in (1, 4))
    assert one.fingerprint() == four.fingerprint()


def test_one_frame_for_many_rows_does_not_belong_to_them():
    with pytest.raises(LeRobotError, match="do not belong together"):
        match_frames(4, 1, row_fps=10, video_fps=0.0, timestamps_s=None)
    with pytest.raises(LeRobotError, match="its part of the video is empty"):
        match_frames(1, -1, row_fps=10, video_fps=10, timestamps_s=None)


def test_names_that_no_store_can_have_are_refused(tmp_path):
    for name in ("episodes", "a/b", "..", ""):
        columns = {name: pa.array(range(19))}
        source = Folder(columns=columns, features={name: {"dtype": "int64", "shape": [1]}}).write(
            tmp_path / f"source{len(name)}"
        )
        with pytest.raises(LeRobotError, match=r"Feature name .* cannot be used"):
            import_lerobot(source, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_of_a_newer_version_is_not_touched(tmp_path):
    source = Folder().write(tmp_path / "source")
    import_lerobot(source, tmp_path / "s.zarr")
    header = tmp_path / "s.zarr/zarr.json"
    header.write_text(header.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match="newer than this program's"):
        import_lerobot(source, tmp_path / "s.zarr")
