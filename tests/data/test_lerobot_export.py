import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from embodied_wm import cli
from embodied_wm.data.lerobot import export_lerobot, import_lerobot
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

TOP, WRIST = "observation.images.top", "observation.images.wrist"
NUMBERS = {
    "observation.state": FeatureSpec(dtype="float32", shape=(3,), names=("x", "y", "z"), units=("m", "m", "rad")),
    "action": FeatureSpec(dtype="float64", shape=(2,), names=("left", "right")),
    "observation.joint": FeatureSpec(dtype="float64", shape=(1,)),
    "next.reward": FeatureSpec(dtype="float64", shape=()),
    "next.done": FeatureSpec(dtype="bool", shape=()),
    "stage": FeatureSpec(dtype="int64", shape=()),
    "level": FeatureSpec(dtype="uint8", shape=(2,)),
    "flags": FeatureSpec(dtype="bool", shape=(3,), names=("a", "b", "c")),
    "pose": FeatureSpec(dtype="float32", shape=(2, 3)),
    "depth": FeatureSpec(dtype="uint16", shape=(4, 5, 1)),
}
TEXTS = ("lift", "put it on the “plate”", "lift", "")


def picture(episode: int, row: int, height: int, width: int) -> np.ndarray:
    """Return a frame of saturated colours and hard edges; places and black and white bars say which row it is of."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = np.linspace(40, 200, width).astype(np.uint8)
    left = (5 * row + 3 * episode) % (width - 8)
    image[8:16, left : left + 8] = (230, 20, 30)
    image[20 + episode : 24 + episode, ::-1][:, left : left + 5] = (20, 220, 40)
    for bit in range(8):
        image[height - 16 :, 5 * bit : 5 * bit + 5] = 255 * ((row + 50 * episode) >> bit & 1)
    return image


def make_episode(number: int, rows: int) -> Episode:
    rng = np.random.default_rng(number)
    features = {
        TOP: np.stack([picture(number, row, 64, 64) for row in range(rows)]),
        WRIST: np.stack([picture(number, row, 48, 65) for row in range(rows)]),
    }
    for name, spec in NUMBERS.items():
        size, dtype = (rows, *spec.shape), np.dtype(spec.dtype)
        if dtype.kind == "f":
            features[name] = (rng.normal(size=size) * np.pi).astype(dtype)
        elif dtype.kind == "b":
            features[name] = rng.random(size) < 0.5
        else:
            limits = np.iinfo(dtype)
            features[name] = rng.integers(limits.min, limits.max, size=size, dtype=dtype, endpoint=True)
    return Episode(features=features, info={"task": TEXTS[number], "seed": number} if TEXTS[number] else {})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("export") / "all.zarr"
    image = {TOP: FeatureSpec(dtype="uint8", shape=(64, 64, 3)), WRIST: FeatureSpec(dtype="uint8", shape=(48, 65, 3))}
    with EpisodeStore.create(path, features=image | NUMBERS, fps=30.0, metadata={"robot": "arm"}) as made:
        made.append([make_episode(number, rows) for number, rows in enumerate((7, 12, 2, 5))])
    return EpisodeStore.open(path)


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return 10 * np.log10(255**2 / np.maximum(np.square(one.astype(float) - other).mean(axis=(1, 2, 3)), 1e-9))


def official(folder: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/test", root=folder, video_backend="pyav")


@pytest.mark.parametrize("frames", ["video", "images"])
def test_the_official_reader_loads_it_and_a_round_trip_loses_nothing(
    store: EpisodeStore, tmp_path: Path, frames: Literal["video", "images"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = []
    report = export_lerobot(store, tmp_path / "out", frames=frames, progress=lambda *at: seen.append(at))
    assert (report.episodes, report.frames, report.cameras) == (4, 26, (TOP, WRIST))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    dataset = official(tmp_path / "out")
    assert (dataset.num_episodes, len(dataset), dataset.fps, dataset.meta.robot_type) == (4, 26, 30, "arm")
    for index, item in enumerate(dataset):
        episode, row = int(item["episode_index"]), int(item["frame_index"])
        assert index == int(store.episode_ends[episode] - store.episode_lengths[episode]) + row
        assert item["task"] == TEXTS[episode]
        for name in (TOP, WRIST):
            frame = np.moveaxis(item[name].numpy() * 255, 0, -1)[None]
            assert psnr(store.read(name, index, index + 1), frame)[0] > 35
        for name in NUMBERS:
            expected, got = store.read(name, index, index + 1)[0], item[name].numpy()
            kept = expected.astype(np.float32) if expected.dtype == np.float64 else expected  # as that reader does
            np.testing.assert_array_equal(got.reshape(kept.shape), kept, err_msg=name)

    for camera, size in ((TOP, (64, 64)), (WRIST, (48, 65))):
        path = tmp_path / f"{camera}.zarr"
        back = import_lerobot(tmp_path / "out", path, cameras=[camera], image_size=size, strict=True)
        assert back.repaired == back.skipped == back.notes == ()
        again = EpisodeStore.open(path)
        np.testing.assert_array_equal(again.episode_lengths, store.episode_lengths)
        quality = psnr(again.read(camera, 0, 26), store.read(camera, 0, 26))
        assert quality.min() > (35 if frames == "video" else 80)
        for name, spec in NUMBERS.items():
            assert again.features[name] == spec
            np.testing.assert_array_equal(again.read(name, 0, 26), store.read(name, 0, 26), err_msg=name)
        assert [again.episode_info(number)["task"] for number in range(4)] == list(TEXTS)


def test_wall_clock_timestamps_are_kept_beside_those_of_lerobot(tmp_path: Path) -> None:
    features = {
        "action": FeatureSpec(dtype="float32", shape=(1,)),
        "timestamp": FeatureSpec(dtype="float32", shape=()),
    }
    wall_clock = np.array([0.03, 0.1, 2.7, 2.8], np.float32)
    with EpisodeStore.create(tmp_path / "a.zarr", features=features, fps=10.0) as made:
        made.append([Episode(features={"action": np.ones((4, 1), np.float32), "timestamp": wall_clock})])
    report = export_lerobot(EpisodeStore.open(tmp_path / "a.zarr"), tmp_path / "a")
    assert "'timestamp' is written by lerobot" in report.notes[0]
    import_lerobot(tmp_path / "a", tmp_path / "b.zarr", strict=True)
    back = EpisodeStore.open(tmp_path / "b.zarr")
    regular = (np.arange(4) / 10).astype(np.float32)
    np.testing.assert_array_equal(back.read("recorded_timestamp", 0, 4), wall_clock)
    np.testing.assert_array_equal(back.read("timestamp", 0, 4), regular)
    export_lerobot(back, tmp_path / "c")  # out a second time: both are still there, and nothing new
    import_lerobot(tmp_path / "c", tmp_path / "c.zarr", strict=True)
    assert EpisodeStore.open(tmp_path / "c.zarr").fingerprint() == back.fingerprint()


def test_chosen_episodes_task_text_and_what_lerobot_has_no_place_for(store: EpisodeStore, tmp_path: Path) -> None:
    report = export_lerobot(store, tmp_path / "out", episodes=[3, 0], task="wipe")
    assert (report.episodes, report.frames, report.notes) == (2, 12, ())
    dataset = official(tmp_path / "out")
    assert [dataset[0]["task"], dataset[11]["task"]] == ["wipe", "lift"]
    np.testing.assert_array_equal(dataset[5]["pose"].numpy(), store.read("pose", 0, 1)[0])
    beside = json.loads((tmp_path / "out/meta/embodied_wm.json").read_text())
    assert beside == {"metadata": {"robot": "arm"}, "episodes": [{}, {"task": "lift", "seed": 0}]}
    assert any("1 episodes have no task text" in note for note in export_lerobot(store, tmp_path / "b").notes)
    assert len({path.stat().st_mode for path in (tmp_path / "out").rglob("*.*") if path.is_file()}) == 1


def test_what_cannot_be_exported_is_refused_before_anything_is_written(store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="there exists already"):
        export_lerobot(store, tmp_path / "there")
    with pytest.raises(StoreError, match="cannot be written"):
        export_lerobot(store, tmp_path / "file" / "out")
    with pytest.raises(StoreError, match=r"has 4 episodes, counted from 0; asked for \[4\]"):
        export_lerobot(store, tmp_path / "out", episodes=[0, 4])
    with pytest.raises(StoreError, match="crf must lie between 0"):
        export_lerobot(store, tmp_path / "out", crf=52)
    with pytest.raises(StoreError, match="apostrophe"):
        export_lerobot(store, tmp_path / "it's")
    rows = np.array([[0.0], [1.0], [np.nan]], np.float32)
    with EpisodeStore.create(
        tmp_path / "nan.zarr", features={"action": FeatureSpec(dtype="float32", shape=(1,))}, fps=12.5
    ) as made:
        made.append([Episode(features={"action": rows[:2]}), Episode(features={"action": rows})])
    damaged = EpisodeStore.open(tmp_path / "nan.zarr")
    with pytest.raises(StoreError, match=r"'action' is not finite in episode 1, row 2"):
        export_lerobot(damaged, tmp_path / "out", frames="images")
    with pytest.raises(StoreError, match=r"12\.5 frames per second.*frames=images"):
        export_lerobot(damaged, tmp_path / "out", episodes=[0])
    with EpisodeStore.open(tmp_path / "nan.zarr", mode="a") as one_row:
        one_row.append([Episode(features={"action": rows[:1]})])
    damaged = EpisodeStore.open(tmp_path / "nan.zarr")
    with pytest.raises(StoreError, match="every chosen episode has a single row"):
        export_lerobot(damaged, tmp_path / "out", episodes=[2], frames="images")
    report = export_lerobot(damaged, tmp_path / "half", episodes=[2, 0], frames="images")
    assert (report.episodes, report.notes[0].split(":")[0]) == (
        1,
        "episodes [2] have a single row, which lerobot cannot hold",
    )
    assert official(tmp_path / "half").fps == 12.5
    gc.collect()  # lerobot's writer finishes its files when it is collected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "half", "nan.zarr", "there"]


def test_an_interrupted_export_leaves_nothing(store: EpisodeStore, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lerobot(store, tmp_path / "out", progress=interrupt)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_what_lerobot_would_take_for_a_colour_image_by_its_name(tmp_path: Path) -> None:
    features = {
        "observation.images.depth": FeatureSpec(dtype="uint8", shape=(4, 5, 1)),
        "observation.image_embedding": FeatureSpec(dtype="float32", shape=(3,)),
        "action": FeatureSpec(dtype="float32", shape=(1,)),
    }
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 9, (4, *spec.shape)).astype(spec.dtype) for name, spec in features.items()}
    with EpisodeStore.create(tmp_path / "a.zarr", features=features, fps=10.0) as made:
        made.append([Episode(features=rows, info={"task": "push"})] * 2)
    report = export_lerobot(EpisodeStore.open(tmp_path / "a.zarr"), tmp_path / "a")
    assert "'observation.images.depth' is no colour image" in report.notes[0]
    assert "it is in 'observation.picture_embedding'" in report.notes[1]
    assert official(tmp_path / "a").num_episodes == 2
    import_lerobot(tmp_path / "a", tmp_path / "b.zarr", strict=True)
    back = EpisodeStore.open(tmp_path / "b.zarr").episode(1)
    for name in features:
        np.testing.assert_array_equal(back.features[name.replace("image", "picture")], rows[name])


def assert_round_trip(store: EpisodeStore, camera: str, tmp_path: Path) -> None:
    """Check that a store that was exported to out/ comes back."""
    import_lerobot(tmp_path / "out", tmp_path / "back.zarr", strict=True)
    back, rows = EpisodeStore.open(tmp_path / "back.zarr"), store.num_frames
    np.testing.assert_array_equal(back.episode_lengths, store.episode_lengths)
    assert psnr(back.read(camera, 0, rows), store.read(camera, 0, rows)).min() > 35
    for name in set(store.features) - {camera}:
        there = "recorded_timestamp" if name == "timestamp" else name
        assert back.features[there] == store.features[name]
        np.testing.assert_array_equal(back.read(there, 0, rows), store.read(name, 0, rows))


def test_from_a_url_and_one_episode(store: EpisodeStore, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["export", f"source=file://{store.path}", "frames=images"]
    assert cli.main([*chosen, "episodes=3", "out=out"]) == 0
    assert "out: 1 episodes, 5 frames" in capsys.readouterr().out
    assert cli.main([*chosen, "episodes=[one]", "out=none"]) == 2
    assert "episodes=['one']: expected whole numbers, counted from 0" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(StoreError, match=r"episodes=1\.5: expected whole numbers"):
        export_lerobot(store, Path("none"), episodes=1.5)  # type: ignore[arg-type]
    assert not list(Path().glob("none*"))


def test_a_task_text_for_episodes_that_have_none(tiny_store: Path) -> None:
    text = "push it, gently: it's [new]"
    assert cli.main(["export", str(tiny_store), f"task={text}", "out=out", "run_dir=run"]) == 0
    import_lerobot(Path("out"), Path("back.zarr"), strict=True)
    assert EpisodeStore.open("back.zarr").episode_info(0)["task"] == text


@pytest.mark.render
def test_a_store_of_a_mujoco_task_goes_out_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["collect", "task=push", "episodes=2", "rows=8", "workers=1", "out=push.zarr"]) == 0
    assert cli.main(["export", "push.zarr", "out=out", "run_dir=run"]) == 0
    assert "out: 2 episodes, 16 frames" in capsys.readouterr().out
    assert json.loads(Path("run/export.json").read_text())["frames"] == 16
    store = EpisodeStore.open("push.zarr")
    assert store.features["sim.physics"].dtype == "float64"
    assert store.features["sim.quantities"].units
    assert_round_trip(store, TOP, tmp_path)
    assert EpisodeStore.open("back.zarr").episode_info(0)["task"] == "push"
    assert cli.main(["export", "push.zarr", "out=out"]) == 1
    assert "out exists already" in capsys.readouterr().err
    assert cli.main(["export", "push.zarr", "out=new", "frames=gif"]) == 1
    assert "frames must be 'video' or 'images', got 'gif'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_robots_episode_goes_out_and_comes_back(shared_data: Path, tmp_path: Path) -> None:
    import_lerobot(shared_data / "cr5_banana_v21_first8", tmp_path / "cr5.zarr", episodes=[3])
    store = EpisodeStore.open(tmp_path / "cr5.zarr")
    export_lerobot(store, tmp_path / "out")
    assert_round_trip(store, TOP, tmp_path)


KILLED = """
import sys
from pathlib import Path
from typing import Any, Literal
from embodied_wm import cli
from embodied_wm.data.lerobot import export_lerobot
from embodied_wm.data.store import EpisodeStore
def say(done, total):
    print(done, flush=True)
    if done == 2:
        sys.stdin.read()
export_lerobot(EpisodeStore.open(sys.argv[1]), Path(sys.argv[2]), progress=say)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_is_whole(
    store: EpisodeStore, tmp_path: Path, repository: Path
) -> None:
    command = [sys.executable, "-c", KILLED, store.path, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        with pytest.raises(StoreError, match="being written by another process"):
            export_lerobot(store, tmp_path / "out")
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert export_lerobot(store, tmp_path / "out").episodes == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
