import json
import re
from pathlib import Path

import numpy as np
import pytest

from embodied_wm import cli
from embodied_wm.data import hdf5
from embodied_wm.data.hdf5 import Hdf5Error, import_hdf5
from embodied_wm.data.store import EpisodeStore, StoreError

h5py = pytest.importorskip("h5py")
AGENT, WRIST = "observation.images.agentview_image", "observation.images.wrist_image"
ENVIRONMENT = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}


def write_demo(data, number: int, rows: int) -> None:
    """Write a demonstration whose state moves by exactly its action: state[t + 1] = state[t] + action[t]."""
    rng = np.random.default_rng(number)
    demo = data.create_group(f"demo_{number}")
    actions = rng.integers(-9, 9, (rows, 2)).astype(np.float64)
    states = np.array([number, 0.0]) + np.concatenate([np.zeros((1, 2)), np.cumsum(actions, axis=0)])
    frames = np.full((rows, 84, 84, 3), 100, np.uint8)
    frames[..., 0] = np.arange(rows)[:, None, None]
    frames[..., 1] = number
    demo["actions"] = actions
    demo["states"] = rng.normal(size=(rows, 7))
    demo["rewards"] = (np.arange(rows) == rows - 1).astype(np.float64)
    demo["dones"] = (np.arange(rows) == rows - 1).astype(np.int64)
    demo["obs/position"] = states[:-1]
    demo["obs/gripper"] = rng.random(rows).astype(np.float32)
    demo.create_dataset("obs/agentview_image", data=frames, chunks=(1, 84, 84, 3), compression="gzip")
    demo["obs/wrist_image"] = frames[:, :32, :48]
    demo["obs/agentview_depth"] = np.zeros((rows, 84, 84, 1), np.float32)
    demo["next_obs/position"] = states[1:]
    demo.attrs["num_samples"] = rows
    demo.attrs["model_file"] = "<mujoco/>"


def write_file(path: Path, lengths: dict[int, int] | None = None, environment: object = ENVIRONMENT) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if environment is not None:
            data.attrs["env_args"] = json.dumps(environment)
        for number, rows in (lengths or {0: 5, 2: 8, 10: 3}).items():
            write_demo(data, number, rows)
        data["demo_2" if lengths is None else next(iter(f"demo_{n}" for n in lengths))].attrs["ep_meta"] = json.dumps(
            {"lang": "lift the cube"}
        )
    return path


def test_rows_are_taken_as_they_stand_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "GROUP_BYTES", 1)  # every demonstration is committed by itself, as large ones are
    source, seen = write_file(tmp_path / "demo.hdf5"), []
    report = import_hdf5(source, tmp_path / "s.zarr", image_size=(64, 48), progress=lambda *at: seen.append(at))
    assert (report.episodes, report.frames, report.cameras, report.skipped) == (3, 16, (AGENT, WRIST), ())
    assert seen == [(5, 16), (13, 16), (16, 16)]
    assert report.notes == ("array 'obs/agentview_depth' of float32 (84, 84, 1) is no colour image: left out",)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert (store.fps, store.metadata["robot"], store.metadata["environment"]) == (20.0, "Panda", ENVIRONMENT)
    with h5py.File(source) as file:
        for episode, number in enumerate((0, 2, 10)):  # by number, not by name
            got, demo = store.episode(episode), file["data"][f"demo_{number}"]
            assert got.info["source_episode"] == number
            assert {**got.info["attributes"], "ep_meta": 0} == {
                "num_samples": got.num_rows,
                "model_file": "<mujoco/>",
                "ep_meta": 0,
            }
            for name, path in (
                ("action", "actions"),
                ("next.reward", "rewards"),
                ("next.done", "dones"),
                ("sim.states", "states"),
                ("observation.position", "obs/position"),
                ("observation.gripper", "obs/gripper"),
            ):
                assert got.features[name].dtype == demo[path].dtype
                np.testing.assert_array_equal(got.features[name], demo[path][()])
            # The convention: action_t leads from row t to row t + 1.
            moved = np.diff(got.features["observation.position"], axis=0)
            np.testing.assert_array_equal(moved, got.features["action"][:-1])
            np.testing.assert_array_equal(
                got.features["observation.position"] + got.features["action"], demo["next_obs/position"][()]
            )
            for camera in (AGENT, WRIST):
                assert got.features[camera].shape == (got.num_rows, 64, 48, 3)
                expected = np.broadcast_to([[t, number, 100] for t in range(got.num_rows)], (64, 48, got.num_rows, 3))
                np.testing.assert_array_equal(got.features[camera], np.moveaxis(expected, 2, 0))
    assert [store.episode_info(number)["task"] for number in range(3)] == ["", "lift the cube", ""]


def test_what_only_some_demonstrations_have_is_said(tmp_path: Path) -> None:
    source = write_file(tmp_path / "demo.hdf5")
    with h5py.File(source, "a") as file:
        file["data/demo_2/obs/force"] = np.zeros((8, 3))
    report = import_hdf5(source, tmp_path / "s.zarr")
    assert report.repaired == ((2, 8, "arrays ['obs/force'], which most demonstrations lack, were left out"),)
    assert (report.episodes, report.skipped) == (3, ())


@pytest.mark.parametrize("also", ["demo_0", "demo_10"])
def test_an_array_that_most_lack_costs_no_demonstration(tmp_path: Path, also: str) -> None:
    source = write_file(tmp_path / "demo.hdf5")
    with h5py.File(source, "a") as file:
        for name in {"demo_0", also}:
            file[f"data/{name}/obs/force"] = np.zeros((len(file[f"data/{name}/actions"]), 3))
            del file[f"data/{name}/rewards"]
            file[f"data/{name}/rewards"] = np.zeros(len(file[f"data/{name}/actions"]), np.float32)
    report = import_hdf5(source, tmp_path / "s.zarr")
    features = EpisodeStore.open(tmp_path / "s.zarr").features
    assert features["next.reward"].dtype == ("float64" if also == "demo_0" else "float32")  # as most have it
    if also == "demo_0":
        assert [finding.reason for finding in report.skipped] == ["'rewards' has rows of float32 (), others float64 ()"]
        assert "observation.force" not in features
    else:
        assert [finding.reason for finding in report.skipped] == ["'obs/force' is missing"]
        assert features["observation.force"].shape == (3,)
    assert report.episodes == 3 - len(report.skipped)


def test_what_the_first_demonstration_alone_has_is_left_out_of_it(tmp_path: Path) -> None:
    source = write_file(tmp_path / "demo.hdf5")
    with h5py.File(source, "a") as file:
        file["data/demo_0/obs/force"] = np.zeros((5, 3))
    report = import_hdf5(source, tmp_path / "s.zarr")
    assert (report.episodes, report.skipped) == (3, ())
    assert report.repaired == ((0, 5, "arrays ['obs/force'], which most demonstrations lack, were left out"),)
    assert "observation.force" not in EpisodeStore.open(tmp_path / "s.zarr").features


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("image_size=[64.5,64]", "image_size=[64.5, 64]: expected [height, width], each 1 to 8192 pixels"),
        ("image_size=[64,0]", "image_size=[64, 0]: expected"),
        ("image_size=[a,b]", "image_size=['a', 'b']: expected"),
        ("episodes=first", "episodes='first': expected whole numbers, counted from 0"),
        ("episodes=[0.5]", "episodes=[0.5]: expected whole numbers"),
        ("episodes=[]", "no demonstrations []"),
        ("cameras=[1]", "cameras=[1]: expected names"),
        ("fps=-3", "fps=-3: expected how many steps a second has, a number above 0"),
        ("fps=fast", "fps=fast: expected how many steps"),
    ],
)
def test_options_that_are_none(tmp_path: Path, option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_file(tmp_path / "demo.hdf5")
    assert cli.main(["import", f"source={source}", f"out={tmp_path}/s.zarr", option]) == 1
    page = " ".join(capsys.readouterr().err.split())
    assert words in page
    assert "Traceback" not in page
    assert not list(tmp_path.glob("s.zarr*"))


def test_a_value_that_stands_alone_is_a_list_of_one(tmp_path: Path) -> None:
    source = write_file(tmp_path / "demo.hdf5")
    assert cli.main(["import", f"source={source}", "out=s.zarr", "episodes=2", f"cameras={WRIST}"]) == 0
    store = EpisodeStore.open("s.zarr")
    assert (store.num_episodes, store.episode_info(0)["source_episode"]) == (1, 2)
    assert [name for name, spec in store.features.items() if spec.is_image] == [WRIST]
    assert cli.main(["import", f"source={source}", "out=s.zarr", "episodes=[2]", f"cameras=[{WRIST}]"]) == 0


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_file(tmp_path / "demo.hdf5", environment=None)
    assert cli.main(["import", f"source={source}", "out=s.zarr"]) == 1
    assert "Give it with fps=20" in capsys.readouterr().err
    options = ["fps=15", "episodes=[10,0]", f"cameras=[{WRIST}]", "image_size=[8,8]"]
    assert cli.main(["import", f"source={source}", "out=s.zarr", *options]) == 0
    assert re.search(r"taken +2 +8 +cameras: " + re.escape(WRIST), capsys.readouterr().out)
    store = EpisodeStore.open("s.zarr")
    assert (store.fps, AGENT in store.features, store.features[WRIST].shape) == (15.0, False, (8, 8, 3))
    np.testing.assert_array_equal(store.episode_lengths, [5, 3])
    assert cli.main(["import", "source=nowhere", "out=t.zarr", "fps=3"]) == 2


def test_demonstrations_that_cannot_be_taken_are_left_out_each_with_its_reason(tmp_path: Path) -> None:
    source = write_file(tmp_path / "demo.hdf5", dict.fromkeys(range(8), 4))
    with h5py.File(source, "a") as file:
        data = file["data"]
        del data["demo_1/actions"]
        data["demo_2/actions"][3, 1] = np.nan
        del data["demo_3/obs/gripper"]
        del data["demo_4/obs/position"]
        data["demo_4/obs/position"] = np.zeros((3, 2))
        del data["demo_5/rewards"]
        data["demo_5/rewards"] = np.zeros(4, np.float32)
        del data["demo_6/states"]
        data["demo_6/states"] = h5py.ExternalLink("other.hdf5", "/secret")
        place = data["demo_7/obs/agentview_image"].id.get_chunk_info(1).byte_offset
    with source.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"damage")
    report = import_hdf5(source, tmp_path / "s.zarr")
    reasons = {finding.episode: finding.reason for finding in report.skipped}
    assert (report.episodes, sorted(reasons)) == (1, [1, 2, 3, 4, 5, 6, 7])
    for number, words in {
        1: "holds no actions",
        2: "'actions' is not finite in row 3",
        3: "'obs/gripper' is missing",
        4: "of shape (3, 2) does not have a value for each of 4 steps",
        5: "'rewards' has rows of float32 (), others float64 ()",
        6: "'states' is missing",
        7: "'obs/agentview_image' cannot be read",
    }.items():
        assert words in reasons[number]
    assert EpisodeStore.open(tmp_path / "s.zarr").episode_info(0)["source_episode"] == 0
    with pytest.raises(Hdf5Error, match="strict import refused"):
        import_hdf5(source, tmp_path / "t.zarr", strict=True)
    with pytest.raises(Hdf5Error, match=r"none of 1 episodes could be taken\. demo_2: 'actions' is not finite"):
        import_hdf5(source, tmp_path / "t.zarr", episodes=[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.hdf5", "s.zarr"]


@pytest.mark.parametrize("stop_at", [1, 2])
def test_an_import_that_is_interrupted_goes_on_to_the_same_store(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(hdf5, "GROUP_BYTES", 1)
    source = write_file(tmp_path / "demo.hdf5", dict.fromkeys(range(4), 5))
    with h5py.File(source, "a") as file:
        file["data/demo_1/actions"][3, 1] = np.nan
    whole = import_hdf5(source, tmp_path / "whole.zarr")
    calls = []

    def interrupt(done, total):
        calls.append((done, total))
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_hdf5(source, tmp_path / "s.zarr", progress=interrupt)
    assert not (tmp_path / "s.zarr").exists()
    with pytest.raises(StoreError, match=r"begun with other settings: image_size \(\[64, 64\], now \[32, 32\]\)"):
        import_hdf5(source, tmp_path / "s.zarr", image_size=(32, 32))
    report = import_hdf5(source, tmp_path / "s.zarr", progress=lambda done, total: calls.append((done, total)))
    assert report.found == stop_at  # demonstration 1 is committed with the next one
    assert calls[-1] == (20, 20)
    assert report.skipped == whole.skipped == ((1, 5, "'actions' is not finite in row 3"),)
    stores = [EpisodeStore.open(tmp_path / name) for name in ("s.zarr", "whole.zarr")]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert stores[0].metadata == stores[1].metadata
    assert import_hdf5(source, tmp_path / "s.zarr").found == 3
    with h5py.File(source, "a") as file:
        file["data/demo_3/rewards"][0] = 7.0
    with pytest.raises(StoreError, match=r"source \(fingerprint .* another dataset, or it was changed since"):
        import_hdf5(source, tmp_path / "s.zarr")


def test_arrays_outside_the_file_or_of_absurd_size_are_not_read(tmp_path: Path) -> None:
    source = tmp_path / "demo.hdf5"
    (tmp_path / "secret").write_bytes(bytes(range(40)))
    with h5py.File(source, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((5, 2))
        demo["linked"] = h5py.ExternalLink("other.hdf5", "/x")
        demo["again"] = h5py.SoftLink("/data/demo_0")
        demo["loop"] = demo
        demo.create_dataset("raw", (5,), "u1", external=[("secret", 0, 5)])
        file.create_group("data/demo_1").create_dataset("actions", (2**40, 2), "f8", chunks=(64, 2))
    report = import_hdf5(source, tmp_path / "s.zarr", fps=10)
    assert {"'linked' is a link: left out", "'again' is a link: left out"} <= set(report.notes)
    assert "array 'raw' lies in another file: left out" in report.notes
    assert [(each.episode, "more than 4 GiB" in each.reason) for each in report.skipped] == [(1, True)]
    assert "raw" not in EpisodeStore.open(tmp_path / "s.zarr").features


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, source = tmp_path / "s.zarr", write_file(tmp_path / "demo.hdf5")
    with pytest.raises(Hdf5Error, match="No such file"):
        import_hdf5(tmp_path / "nowhere.hdf5", out)
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(Hdf5Error, match="cannot be read as HDF5"):
        import_hdf5(tmp_path / "text.hdf5", out)
    (tmp_path / "part.hdf5").write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(Hdf5Error, match="cannot be read as HDF5"):
        import_hdf5(tmp_path / "part.hdf5", out)
    with h5py.File(tmp_path / "aloha.hdf5", "w") as file:
        file["observations/qpos"] = np.zeros((4, 2))
    with pytest.raises(Hdf5Error, match=r"not in robomimic's layout.*found \['observations'\]"):
        import_hdf5(tmp_path / "aloha.hdf5", out)
    with pytest.raises(Hdf5Error, match=r"no demonstrations \[1\]; it has 3, demo_0 to demo_10"):
        import_hdf5(source, out, episodes=[1])
    with pytest.raises(Hdf5Error, match=r"no cameras \['top'\]; choose among"):
        import_hdf5(source, out, cameras=["top"])
    write_file(tmp_path / "odd.hdf5", environment={"env_kwargs": {"control_freq": "fast"}})
    with pytest.raises(Hdf5Error, match="control_freq is 'fast'"):
        import_hdf5(tmp_path / "odd.hdf5", out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(StoreError, match="not an episode store"):
        import_hdf5(source, out)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(Hdf5Error, match=r"pip install 'embodied-wm\[hdf5\]'"):
        import_hdf5(source, tmp_path / "t.zarr")
