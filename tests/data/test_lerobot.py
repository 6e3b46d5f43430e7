import io
import json
import shutil
import threading

import av
import folders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import CAMERA, Folder, assert_frames
from PIL import Image

from embodied_wm.data.lerobot import LeRobotError, import_lerobot
from embodied_wm.data.lerobot.resize import Resizer
from embodied_wm.data.lerobot.video import VideoReader, match_frames
from embodied_wm.data.store import EpisodeStore, StoreError


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("task_column", ["task", "__index_level_0__"])
def test_rows_and_frames_are_aligned_by_number_whatever_the_timestamps_say(tmp_path, version, task_column):
    source = Folder(version=version, task_column=task_column).write(tmp_path / "source")
    seen = []
    report = import_lerobot(source, tmp_path / "s.zarr", image_size=(16, 24), progress=lambda *at: seen.append(at))
    assert (report.episodes, report.frames, report.cameras) == (3, 19, (CAMERA,))
    assert report.repaired == report.skipped == ()
    assert seen[-1] == (19, 19)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.episode_lengths, [6, 9, 4])
    assert store.features[CAMERA].shape == (16, 24, 3)
    assert store.features["action"].names == store.features["observation.state"].names == ("a", "b")
    assert store.metadata["complete"] is True
    for number in range(3):
        episode = store.episode(number)
        rows = np.arange(store.episode_lengths[number])
        expected = np.stack([np.full(len(rows), number), rows], axis=1).astype(np.float32)
        np.testing.assert_array_equal(episode.features["action"], expected)
        np.testing.assert_array_equal(episode.features["observation.state"], expected)
        assert episode.features["timestamp"].shape == rows.shape
        assert_frames(episode, number, rows)
        assert episode.info["task"] == ["lift", "push"][number % 2]
        assert episode.info["source_episode"] == number


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_chosen_episodes_only(tmp_path, version):
    source = Folder(version=version, lengths=(6, 50, 9, 4)).write(tmp_path / "source")
    import_lerobot(source, tmp_path / "s.zarr", episodes=[2, 0], num_workers=1)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert [store.episode_info(number)["source_episode"] for number in range(2)] == [0, 2]
    assert_frames(store.episode(1), 2, range(9))
    with pytest.raises(LeRobotError, match=r"no episodes \[7\]; it has 4, numbered 0 to 3"):
        import_lerobot(source, tmp_path / "t.zarr", episodes=[7])


def test_the_content_does_not_depend_on_the_number_of_workers(tmp_path):
    source = Folder(lengths=(6, 9, 4, 8, 7)).write(tmp_path / "source")
    for workers in (1, 3):
        import_lerobot(source, tmp_path / f"{workers}.zarr", num_workers=workers)
    one, three = (EpisodeStore.open(tmp_path / f"{workers}.zarr") for workers in (1, 3))
    assert one.fingerprint() == three.fingerprint()


def test_a_video_of_another_rate_is_matched_by_time(tmp_path):
    source = Folder(lengths=(40,), video_fps=25, num_frames={0: 100}).write(tmp_path / "source")
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert report.repaired[0].episode == 0
    assert "matched by time" in report.repaired[0].reason
    episode = EpisodeStore.open(tmp_path / "s.zarr").episode(0)
    assert_frames(episode, 0, np.arange(40) * 5 // 2)


def test_small_disagreements_are_mended_and_said(tmp_path):
    source = Folder(num_frames={0: 5, 1: 10}).write(tmp_path / "source")
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert [finding.episode for finding in report.repaired] == [0, 1]
    store = EpisodeStore.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.episode_lengths, [5, 9, 4])
    assert_frames(store.episode(0), 0, range(5))
    assert store.metadata["import"]["repaired"][0][0] == 0
    with pytest.raises(LeRobotError, match=r"strict import refused: episode 0: .*6 rows and 5 frames"):
        import_lerobot(source, tmp_path / "t.zarr", strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "source"]


def test_episodes_that_cannot_be_mended_are_left_out_each_with_its_reason(tmp_path):
    state = np.zeros((40, 2))
    state[20, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(state.reshape(-1), from_pandas=False), 2)
    folder = Folder(lengths=(6, 9, 4, 8, 6, 7), num_frames={1: 3}, columns={"observation.state": column})
    source = folder.write(tmp_path / "source")
    videos = source / f"videos/chunk-000/{CAMERA}"
    (videos / "episode_000000.mp4").unlink()
    (videos / "episode_000002.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    folders.write_video(videos / "episode_000004.mp4", [0] * 6)
    (source / "data/chunk-000/episode_000005.parquet").unlink()
    with pytest.raises(LeRobotError, match=r"none of 6 episodes could be taken\. episode 0: camera"):
        import_lerobot(source, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    good = source / "data/chunk-000/episode_000006.parquet"
    pq.write_table(folder.table(0), good)
    folders.write_video(videos / "episode_000006.mp4", folder.levels(0))
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert report.episodes == 1
    reasons = {finding.episode: finding.reason for finding in report.skipped}
    assert sorted(reasons) == [0, 1, 2, 3, 4, 5]
    for index, word in enumerate(
        ["no video file", "do not belong together", "cannot be opened", "not finite in row 1"]
    ):
        assert word in reasons[index]
    assert "black" in reasons[4]
    assert "no row" in reasons[5]


def test_metadata_lengths_are_not_believed(tmp_path):
    source = Folder().write(tmp_path / "source")
    lines = [json.loads(line) for line in (source / "meta/episodes.jsonl").read_text().splitlines()]
    lines[1]["length"] = 500
    (source / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert (report.episodes, report.frames) == (3, 19)
    assert "claim 500 rows, the data files hold 9" in report.repaired[0].reason


def test_images_in_the_data_files(tmp_path):
    images = []
    for level in range(19):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 50 + level, dtype=np.uint8)).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    wrist = "observation.images.wrist"
    source = Folder(columns={wrist: pa.array(images)}, features={wrist: {"dtype": "image", "shape": [8, 8, 3]}}).write(
        tmp_path / "source"
    )
    import_lerobot(source, tmp_path / "s.zarr", cameras=[wrist])
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert CAMERA not in store.features
    np.testing.assert_array_equal(store.read(wrist, 0, 19)[:, 3, 3, 1], 50 + np.arange(19))


def test_cameras_without_files_and_unusable_features_are_noted(tmp_path):
    features = {
        "observation.images.side": {"dtype": "video", "shape": [8, 8, 3]},
        "note": {"dtype": "string", "shape": [1]},
        "observation.force": {"dtype": "float32", "shape": [3]},
    }
    columns = {"note": pa.array(["x"] * 19), "extra": pa.array(range(19))}
    source = Folder(features=features, columns=columns).write(tmp_path / "source")
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert [note.split("'")[1] for note in report.notes] == [
        "observation.force",
        "extra",
        "observation.images.side",
    ]
    assert all("left out" in note for note in report.notes)
    assert EpisodeStore.open(tmp_path / "s.zarr").episode_info(2)["texts"] == {"note": [[0, "x"]]}
    with pytest.raises(LeRobotError, match=r"no frames of the cameras \['observation.images.side'\].*choose among"):
        import_lerobot(source, tmp_path / "t.zarr", cameras=["observation.images.side"])
    with pytest.raises(LeRobotError, match="strict import refused"):
        import_lerobot(source, tmp_path / "t.zarr", strict=True)


def test_two_imports_to_one_place_do_not_mix(tmp_path):
    source = Folder().write(tmp_path / "source")
    began, go_on = threading.Event(), threading.Event()

    def wait(done, total):
        began.set()
        assert go_on.wait(20)

    thread = threading.Thread(target=import_lerobot, args=(source, tmp_path / "s.zarr"), kwargs={"progress": wait})
    thread.start()
    assert began.wait(20)
    with pytest.raises(StoreError, match="appended to by another"):
        import_lerobot(source, tmp_path / "s.zarr")
    go_on.set()
    thread.join()
    assert EpisodeStore.open(tmp_path / "s.zarr").num_episodes == 3


def test_folders_that_cannot_be_read(tmp_path):
    out = tmp_path / "s.zarr"
    with pytest.raises(LeRobotError, match="No such folder"):
        import_lerobot(tmp_path / "missing", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeRobotError, match=r"not a LeRobot dataset: meta/info\.json is missing"):
        import_lerobot(tmp_path / "empty", out)
    source = Folder(version="v1.6").write(tmp_path / "old")
    with pytest.raises(LeRobotError, match=r"format 'v1.6'; expected one of v2.0, v2.1, v3.0"):
        import_lerobot(source, out)
    source = Folder(version="v3.0").write(tmp_path / "damaged")
    (source / "data/chunk-000/file-000.parquet").write_bytes(b"version https://git-lfs")
    with pytest.raises(LeRobotError, match=r"file-000\.parquet cannot be read \(ArrowInvalid.*Download it again"):
        import_lerobot(source, out)
    (source / "meta/info.json").write_text("{")
    with pytest.raises(LeRobotError, match=r"info\.json is damaged"):
        import_lerobot(source, out)
    source = Folder(version="v3.0").write(tmp_path / "incomplete")
    shutil.rmtree(source / "meta/episodes")
    with pytest.raises(LeRobotError, match="no parquet file below meta/episodes"):
        import_lerobot(source, out)
    assert not out.exists()


def test_a_video_reader_seeks_and_repeats(tmp_path):
    levels = [40 + frame % 160 for frame in range(120)]
    folders.write_video(tmp_path / "v.mp4", levels, gop=12)
    reader = VideoReader(tmp_path / "v.mp4", Resizer((4, 4), "stretch"))
    for numbers in ([0, 1, 2], [70, 70, 73], [74], [5, 40], [119]):
        frames = reader.read(np.array(numbers))
        np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [levels[number] for number in numbers], atol=1.9)
    with pytest.raises(LeRobotError, match="has 120 frames, frame 120 was wanted"):
        reader.read(np.array([120]))
    reader.close()


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"x264-params": "open-gop=1:keyint=24:bframes=3:b-adapt=0:scenecut=0"}), ("mpeg4", {"g": "30"})],
)
def test_frames_before_a_key_frame_that_refer_to_it_are_found(tmp_path, codec, options):
    levels = [20 + 12 * (frame % 18) for frame in range(120)]
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options | {"bf": "3", "crf": "5"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 32, 48, "yuv420p", 10**7
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(tmp_path / "v.mp4", Resizer((4, 4), "stretch"))
    for number in (119, *range(118, -1, -1)):  # each is sought, as every one lies before the last
        seen = reader.read(np.array([number, min(number + 1, 119)])).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(seen, [levels[number], levels[min(number + 1, 119)]], atol=5)
    reader.close()


def test_match_frames_decides_by_the_counts():
    wall_clock = np.arange(50) / 10 + 2.0
    numbers, remark = match_frames(50, 50, row_fps=10, video_fps=10, timestamps_s=wall_clock)
    np.testing.assert_array_equal(numbers, np.arange(50))
    assert remark is None
    numbers, remark = match_frames(50, 125, row_fps=10, video_fps=25, timestamps_s=np.arange(50) / 10)
    np.testing.assert_array_equal(numbers, np.arange(50) * 5 // 2)
    assert remark is not None
    numbers, _ = match_frames(50, 80, row_fps=10, video_fps=10, timestamps_s=None)
    np.testing.assert_array_equal(numbers, np.arange(50))
    with pytest.raises(LeRobotError, match="do not belong together"):
        match_frames(50, 20, row_fps=10, video_fps=10, timestamps_s=None)


@pytest.mark.parametrize("episodes", [(0, 7), pytest.param(range(8), marks=pytest.mark.slow)])
def test_real_cr5_v21_and_v30_import_to_identical_values_and_frames(shared_data, tmp_path, episodes):
    for version, name in ((21, "cr5_banana_v21_first8"), (30, "cr5_banana_v30")):
        import_lerobot(shared_data / name, tmp_path / f"{version}.zarr", episodes=episodes)
    old, new = EpisodeStore.open(tmp_path / "21.zarr"), EpisodeStore.open(tmp_path / "30.zarr")
    assert old.features == new.features
    assert old.fingerprint() == new.fingerprint()
    for number in range(len(episodes)):
        for name, rows in old.episode(number).features.items():
            np.testing.assert_array_equal(new.episode(number).features[name], rows)
    assert new.episode_info(new.num_episodes - 1) == {
        "source_episode": 7,
        "task": "put the banana on the plate",
        "tasks": ["put the banana on the plate"],
    }
    assert new.read("timestamp", 0, 1)[0] == pytest.approx(0.03133678)


@pytest.mark.parametrize(
    ("name", "episodes", "frames", "cameras"),
    [
        ("pusht_v30_novideo", 206, 25650, 0),
        ("rebot_b601_v30_stateonly", 1, 871, 0),
        ("ioai_fixtures_synthetic/datasets/lerobotv2", 2, 6, 1),
        ("ioai_fixtures_synthetic/datasets/lerobotv2-image", 2, 6, 1),
        ("ioai_fixtures_synthetic/datasets/lerobotv3", 2, 6, 1),
    ],
)
def test_real_folders_of_others(shared_data, tmp_path, name, episodes, frames, cameras):
    report = import_lerobot(shared_data / name, tmp_path / "s.zarr")
    assert (report.episodes, report.frames, len(report.cameras)) == (episodes, frames, cameras)
    assert report.skipped == ()


def test_real_gr1_v20(shared_data, tmp_path):
    report = import_lerobot(shared_data / "gr1_sim_picknplace_v20", tmp_path / "s.zarr", episodes=[4])
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert (store.num_frames, report.cameras) == (328, ("observation.images.ego_view",))
    assert "cupcake" in store.episode_info(0)["task"]
    assert "valid" not in store.episode_info(0)["tasks"]
    assert any("egoview" in note for note in report.notes)


@pytest.mark.parametrize("name", ["v2-missing-episodes", "v3-missing-episodes-parquet"])
def test_real_invalid_folders_are_refused(shared_data, tmp_path, name):
    with pytest.raises(LeRobotError, match="Download the dataset completely"):
        import_lerobot(shared_data / "ioai_fixtures_synthetic/invalid" / name, tmp_path / "s.zarr")
