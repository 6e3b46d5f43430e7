"""What an import may be told: size and fit of frames, every n-th row, cameras, hub ids; and what it keeps."""

import io
import json
from pathlib import Path

import av
import folders
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from folders import CAMERA, Folder, assert_frames
from huggingface_hub import errors
from PIL import Image
from rich.console import Console

from embodied_wm.commands.importing import grouped, ranges, show_import
from embodied_wm.data.imports import Finding
from embodied_wm.data.lerobot import LeRobotError, import_lerobot
from embodied_wm.data.lerobot.resize import Resizer
from embodied_wm.data.store import EpisodeStore

ROWS = 19  # of the folder: episodes of 6, 9 and 4 rows


def vectors(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def steps_folder(root, **options):
    """Write a folder whose action is how far the gray level moves to the next frame, with reward and flags."""
    rows = np.concatenate([np.arange(length) for length in (6, 9, 4)])
    columns = {
        "action": vectors(np.stack([np.full(ROWS, 4.0), rows], axis=1).astype(np.float32)),
        "next.reward": pa.array(rows.astype(np.float32)),
        "next.success": pa.array(rows == 4),
        "next.value": pa.array(rows * 10),
        "observation.contact": pa.array(rows == 4),
    }
    features = {
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.success": {"dtype": "bool", "shape": [1]},
        "next.value": {"dtype": "int32", "shape": [1]},
        "observation.contact": {"dtype": "bool", "shape": [1]},
    }
    return Folder(columns=columns, features=features, **options).write(root)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_third_row_and_what_happened_between(tmp_path, version):
    source = steps_folder(tmp_path / "source", version=version)
    report = import_lerobot(source, tmp_path / "s.zarr", stride=3, aggregation="sum", image_size=(32, 48))
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.fps == pytest.approx(10 / 3)
    np.testing.assert_array_equal(store.episode_lengths, [2, 3, 2])
    assert report.frames == 7
    episode = store.episode(1)  # rows 0 to 8
    assert_frames(episode, 1, [0, 3, 6])
    np.testing.assert_array_equal(episode.features["observation.state"][:, 1], [0, 3, 6])
    np.testing.assert_array_equal(episode.features["action"], [[12, 0 + 1 + 2], [12, 3 + 4 + 5], [12, 6 + 7 + 8]])
    np.testing.assert_array_equal(episode.features["next.reward"], [3, 12, 21])
    np.testing.assert_array_equal(episode.features["next.success"], [False, True, False])
    np.testing.assert_array_equal(episode.features["next.value"], [20, 50, 80])
    np.testing.assert_array_equal(episode.features["observation.contact"][:, 0], [False, False, False])
    np.testing.assert_array_equal(episode.features["timestamp"], np.array([0, 1.8, 2.1], dtype=np.float32))
    # The last block of episode 2 (rows 0 to 3) is row 3 alone.
    np.testing.assert_array_equal(store.episode(2).features["action"], [[12, 3], [4, 3]])


@pytest.mark.parametrize("aggregation", ["last", "sum", "stack"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_action_of_a_kept_row_leads_to_the_next_kept_frame(tmp_path, stride, aggregation):
    source = steps_folder(tmp_path / "source")
    import_lerobot(source, tmp_path / "s.zarr", stride=stride, aggregation=aggregation, image_size=(32, 48))
    store = EpisodeStore.open(tmp_path / "s.zarr")
    for number in range(3):
        episode = store.episode(number)
        levels = episode.features[CAMERA].mean(axis=(1, 2, 3))
        moved = episode.features["action"].reshape(episode.num_rows, -1, 2)[:-1]  # [kept - 1, parts, 2]
        last_row = np.arange(1, episode.num_rows) * stride - 1
        np.testing.assert_array_equal(
            moved[:, -1, 1], sum_of_rows(last_row, stride) if aggregation == "sum" else last_row
        )
        # 4 gray levels a row: summed or stacked, the actions are the whole way from frame to frame.
        way = moved[:, :, 0].sum(axis=1) * (stride if aggregation == "last" else 1)
        np.testing.assert_allclose(np.diff(levels), way, atol=2.5)
    names = store.features["action"].names
    assert names == (("a[0]", "b[0]", "a[1]", "b[1]") if (aggregation, stride) == ("stack", 2) else names)
    assert store.features["action"].shape == ((2 * stride,) if aggregation == "stack" else (2,))
    if stride == 1:
        assert store.fingerprint() == import_and_name(source, tmp_path / "plain.zarr", image_size=(32, 48))


def sum_of_rows(last, stride):
    return sum(last - before for before in range(stride))


def import_and_name(source, out, **options):
    import_lerobot(source, out, **options)
    return EpisodeStore.open(out).fingerprint()


def test_a_stack_repeats_the_last_action_of_a_short_block(tmp_path):
    source = steps_folder(tmp_path / "source")
    import_lerobot(source, tmp_path / "s.zarr", stride=4, aggregation="stack", episodes=[0])
    stacked = EpisodeStore.open(tmp_path / "s.zarr").episode(0).features["action"].reshape(2, 4, 2)[:, :, 1]
    np.testing.assert_array_equal(stacked, [[0, 1, 2, 3], [4, 5, 5, 5]])


def test_actions_that_cannot_be_summed(tmp_path):
    flags = {"action": pa.array([True] * ROWS)}
    source = Folder(columns=flags, features={"action": {"dtype": "bool", "shape": [1]}}).write(tmp_path / "flags")
    with pytest.raises(LeRobotError, match="holds flags, which cannot be summed; choose aggregation last or stack"):
        import_lerobot(source, tmp_path / "s.zarr", stride=2, aggregation="sum")
    small = {"action": vectors(np.full((ROWS, 2), 100, dtype=np.int8))}
    source = Folder(columns=small, features={"action": {"dtype": "int8", "shape": [2]}}).write(tmp_path / "small")
    with pytest.raises(LeRobotError, match="sum of 'action' is too large for its type int8"):
        import_lerobot(source, tmp_path / "s.zarr", stride=2, aggregation="sum")
    import_lerobot(source, tmp_path / "s.zarr", stride=2, aggregation="last")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 0}, "stride=0: expected at least 1"),
        ({"fit": "squash"}, "fit=squash: expected one of stretch, crop, pad"),
        ({"aggregation": "mean"}, "aggregation=mean: expected one of last, sum, stack"),
        ({"image_size": (64,)}, r"image_size=\[64\]: expected \[height, width\]"),
        ({"image_size": (64, 0)}, r"each 1 to 8192 pixels"),
        ({"episodes": []}, r"has no episodes \[\]; it has 3, numbered 0 to 2"),
        ({"image_size": (64.5, 64)}, r"image_size=\[64.5, 64\]: expected .* whole numbers"),
        ({"image_size": 64}, r"image_size=64: expected \[height, width\]"),
        ({"image_size": "ab"}, "image_size='ab': expected"),
        ({"episodes": [1.5]}, r"episodes=\[1.5\]: expected whole numbers, counted from 0"),
        ({"episodes": "all"}, "episodes='all': expected whole numbers"),
        ({"episodes": True}, "episodes=True: expected whole numbers"),
        ({"cameras": [3]}, "cameras=.*expected names"),
        ({"num_workers": 0}, "at least 1"),
        ({"revision": "main"}, "for datasets of the hub"),
    ],
)
def test_options_that_are_none(tmp_path, options, words):
    source = Folder().write(tmp_path / "source")
    with pytest.raises(LeRobotError, match=words):
        import_lerobot(source, tmp_path / "s.zarr", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def striped(width=96, height=48):
    """Return a picture whose thirds are red, green and blue from left to right."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for part in range(3):
        picture[:, part * width // 3 : (part + 1) * width // 3, part] = 240
    return picture


@pytest.mark.parametrize("kind", ["video", "image"])
def test_frames_are_stretched_cropped_or_padded(kind):
    picture = striped()

    def resized(fit, size):
        resizer = Resizer(size, fit)
        if kind == "image":
            return resizer.image(Image.fromarray(picture)).astype(int)
        return resizer.video(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")).astype(int)

    stretched = resized("stretch", (16, 24))
    np.testing.assert_allclose(stretched, striped(24, 16), atol=6)
    # The middle 48 of 96 columns: 8 red, 32 green, 8 blue.
    cropped = resized("crop", (24, 24))
    np.testing.assert_allclose(cropped, striped(48, 24)[:, 12:36], atol=6)
    padded = resized("pad", (24, 24))
    assert padded[:6].max() == padded[18:].max() == 0
    np.testing.assert_allclose(padded[6:18], striped(24, 12), atol=6)
    assert resized("crop", (8, 4)).shape == resized("pad", (8, 4)).shape == (8, 4, 3)


def test_frames_shrink_to_the_mean_of_what_each_pixel_covers():
    """A chequerboard of single pixels becomes gray; a shrinking that only picks pixels would keep black and white."""
    board = np.where((np.indices((64, 96)).sum(axis=0) % 2)[..., None], 240, 16).astype(np.uint8).repeat(3, axis=2)
    frame = av.VideoFrame.from_ndarray(board, format="rgb24").reformat(format="yuv444p")
    for fit in ("stretch", "crop"):
        small = Resizer((16, 16), fit).video(frame)
        np.testing.assert_allclose(small, 128, atol=3)
    np.testing.assert_allclose(Resizer((16, 16), "stretch").image(Image.fromarray(board)), 128, atol=3)


def test_each_camera_may_keep_its_own_size(tmp_path):
    images = []
    for level in range(ROWS):
        buffer = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), 50 + level, dtype=np.uint8)).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    wrist = "observation.images.wrist"
    source = Folder(columns={wrist: pa.array(images)}, features={wrist: {"dtype": "image", "shape": [20, 30, 3]}})
    import_lerobot(source.write(tmp_path / "source"), tmp_path / "s.zarr", image_size=None, stride=2)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.features[CAMERA].shape == (*folders.SIZE, 3)
    assert store.features[wrist].shape == (20, 30, 3)
    assert_frames(store.episode(1), 1, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(store.episode(1).features[wrist][:, 3, 3, 1], 50 + 6 + np.arange(0, 9, 2))


def test_all_that_is_no_picture_is_kept(tmp_path):
    numbers = np.concatenate([np.arange(6), 7 * np.arange(13)]) / 3
    features = {
        "observation.state": {"dtype": "float64", "shape": [2], "names": {"y": 1, "x": 0}, "units": ["m", "rad"]},
        "action": {"dtype": "float32", "shape": [2], "names": {"left": ["a"], "right": ["b"]}},
        "action.gripper": {"dtype": "float32", "shape": [1], "names": ["width"]},
        "next.reward": {"dtype": "float64", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1]},
        "observation.grid": {"dtype": "int16", "shape": [2, 3]},
        "note": {"dtype": "string", "shape": [1]},
        "said": {"dtype": "language", "shape": [1]},
    }
    grid = np.arange(ROWS * 6, dtype=np.int16).reshape(ROWS, 2, 3)
    columns = {
        "observation.state": vectors(np.stack([numbers, -numbers], axis=1)),
        "action.gripper": pa.array(numbers.astype(np.float32)),
        "next.reward": pa.array(numbers),
        "next.success": pa.array(numbers > 3),
        "observation.grid": pa.array(grid.tolist()),
        "note": pa.array(["reach"] * 8 + [None, "grasp"] + ["lift"] * 9),
        "said": pa.array([[{"role": "user", "at": 0.5}]] * ROWS),
        "task_index": pa.array([0] * 10 + [1] * 9),
    }
    source = Folder(columns=columns, features=features).write(tmp_path / "source")
    statistics = {"action": {"mean": [0.25, float("nan")]}, CAMERA: {"mean": [[[0.5]]]}}
    (source / "meta/stats.json").write_text(json.dumps(statistics))
    lines = [json.loads(line) for line in (source / "meta/episodes.jsonl").read_text().splitlines()]
    lines[1] |= {"operator": "Ada", "quality": 0.1}
    (source / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = import_lerobot(source, tmp_path / "s.zarr")
    assert report.notes == report.repaired == ()
    store = EpisodeStore.open(tmp_path / "s.zarr")
    for name, expected in (
        ("observation.state", np.stack([numbers, -numbers], axis=1)),
        ("action.gripper", numbers.astype(np.float32)[:, None]),
        ("next.reward", numbers),
        ("next.success", numbers > 3),
        ("observation.grid", grid),
    ):
        rows = store.read(name, 0, ROWS)
        assert rows.dtype == features[name]["dtype"]
        np.testing.assert_array_equal(rows, expected)
    assert store.features["observation.state"].names == ("x", "y")
    assert store.features["observation.state"].units == ("m", "rad")
    assert store.features["action"].names == ("a", "b")
    assert store.features["action.gripper"].names == ("width",)
    info = store.episode_info(1)  # rows 6 to 14
    assert info["texts"]["note"] == [[0, "reach"], [2, None], [3, "grasp"], [4, "lift"]]
    assert info["texts"]["said"] == [[0, [{"role": "user", "at": 0.5}]]]
    assert (info["task"], info["tasks"]) == ("lift", ["lift", "push"])
    assert info["task_of_rows"] == [[0, "lift"], [4, "push"]]
    assert info["source_tasks"] == ["x"]
    assert info["source_details"] == {"operator": "Ada", "quality": 0.1}
    described = store.metadata["source"]
    assert described["statistics"] == {"action": {"mean": [0.25, None]}}
    assert described["info"]["features"]["action"]["names"] == {"left": ["a"], "right": ["b"]}
    assert described["name"] == "source"


def test_statistics_of_episodes_become_those_of_the_dataset(tmp_path):
    source = Folder().write(tmp_path / "source")
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(rows, 2)) for rows in (6, 9, 4)]
    lines = [
        {"episode_index": index, "stats": {"action": {**{key: getattr(part, key)(axis=0).tolist() for key in
         ("min", "max", "mean", "std")}, "count": [len(part)]}}} for index, part in enumerate(parts)
    ]  # fmt: skip
    (source / "meta/episodes_stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    import_lerobot(source, tmp_path / "s.zarr")
    found = EpisodeStore.open(tmp_path / "s.zarr").metadata["source"]["statistics"]["action"]
    everything = np.concatenate(parts)
    for key in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[key], getattr(everything, key)(axis=0), rtol=1e-12)
    assert found["count"] == [19]


def test_ids_of_the_hub_are_downloaded_by_its_own_client(tmp_path, monkeypatch):
    snapshot = Folder().write(tmp_path / "cache" / "0123abcd")
    asked = []

    def download(repo_id, **options):
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    report = import_lerobot("ada/pick-place", tmp_path / "s.zarr", revision="v2.1")
    assert report.episodes == 3
    assert EpisodeStore.open(tmp_path / "s.zarr").metadata["source"]["name"] == "ada/pick-place"
    options = {"repo_type": "dataset", "revision": "v2.1"}
    patterns = ["meta/**", "data/**", "videos/**", "images/**"]
    assert asked == [("ada/pick-place", options | {"allow_patterns": patterns})]
    assert import_lerobot("ada/pick-place", tmp_path / "s.zarr").found == 3
    # A folder of that name comes first.
    Folder(lengths=(5,)).write(Path("ada/pick-place"))
    assert import_lerobot("ada/pick-place", tmp_path / "t.zarr").episodes == 1
    assert len(asked) == 2


def test_files_of_the_hub_are_links_out_of_the_folder(tmp_path):
    source = Folder(version="v3.0").write(tmp_path / "source")
    for number, file in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        blob = tmp_path / f"blob{number}"
        file.rename(blob)
        file.symlink_to(blob)
    assert import_lerobot(source, tmp_path / "s.zarr").episodes == 3


def test_without_a_network_the_hub_is_said_to_be_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LeRobotError, match=r"No such folder: ada/nothing, and the hub cannot be reached .*the network"):
        import_lerobot("ada/nothing", tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.RepositoryNotFoundError, "the hub has no dataset of that name, or only for those logged in"),
        (errors.GatedRepoError, "is gated: ask for access"),
        (errors.RevisionNotFoundError, "has no revision 'x'"),
    ],
)
def test_what_the_hub_refuses_is_said(tmp_path, monkeypatch, kind, words):
    def refuse(repo_id, **options):
        import httpx

        raise kind("no", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(LeRobotError, match=words):
        import_lerobot("ada/nothing", tmp_path / "s.zarr", revision="x")


def test_the_table_groups_episodes_of_one_reason(tmp_path):
    source = Folder(lengths=(8,) * 12, num_frames={**dict.fromkeys(range(2, 6), 9), 8: 7, 10: 1, 11: 2})
    report = import_lerobot(source.write(tmp_path / "source"), tmp_path / "s.zarr")
    assert len(report.repaired) == 5
    console = Console(width=200, record=True, force_terminal=False)
    show_import(report, tmp_path / "s.zarr", console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert f"taken 10 79 cameras: {CAMERA}" in lines
    repairs = [line for line in lines if line.startswith("repaired")]
    assert repairs == [
        f"repaired 5 40 such as 2: camera '{CAMERA}': 8 rows and 9 frames: matched by frame number, the first 8 kept "
        "[episodes 2-5, 8]"
    ]
    assert [line.split("[")[1] for line in lines if line.startswith("skipped 2 16")] == ["episodes 10-11]"]
    assert len(grouped([Finding(0, 5, "a 1"), Finding(1, 5, "a 2"), Finding(2, 5, "b")])) == 2
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""
