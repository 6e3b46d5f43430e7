"""Bad input on the command line: a message that helps, an exit code other than 0, nothing lost or half-written."""

import ctypes.util
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore
from embodied_wm.world_model import WorldModel
from sim.tasks import get_task

Refuse = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, code: int = 1) -> str:
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == code
        out, errors = capsys.readouterr()
        assert "Traceback" not in out + errors
        assert "error: " in errors
        return re.sub(r"\s+", " ", errors)

    return run


def train(store: Path, *more: str) -> list[str]:
    return ["train", f"data.path={store}", "run_dir=run", *tiny.command_line(), *more]


def written(folder: str | Path) -> list[str]:
    """Return what a run left, but for its configuration and log."""
    files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    own = ("config.yaml", "overrides.yaml", "log.txt", "data.json", ".lock", "speed.jsonl")
    return [name for name in files if name not in own]


# Paths and stores


@pytest.mark.parametrize("verb", ["train", "imagine", "benchmark latent_actions"])
def test_no_such_store(refused: Refuse, tiny_checkpoint: Path, verb: str) -> None:
    more = [] if verb == "train" else [f"checkpoint={tiny_checkpoint}"]
    message = refused(*verb.split(), "data.path=nowhere.zarr", "run_dir=run", *more)
    assert "No such episode store: nowhere.zarr" in message
    assert written("run") == []
    assert not Path("nowhere.zarr").exists()


@pytest.mark.parametrize("what", ["a file", "an empty folder", "a zarr array", "another zarr group"])
def test_not_a_store(refused: Refuse, what: str) -> None:
    import zarr

    path = Path("odd")
    if what == "a file":
        path.write_text("hello")
    elif what == "an empty folder":
        path.mkdir()
    elif what == "a zarr array":
        zarr.create_array(str(path), shape=(3,), dtype="float32")
    else:
        zarr.create_group(str(path))
    before = sorted(path.rglob("*"))
    message = refused(*train(path))
    assert "odd" in message
    assert "store" in message
    assert sorted(path.rglob("*")) == before
    assert written("run") == []


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"size": 32}, ["'observation.images.top' of 16x16x3", "(32, 32, 3)", "image_size"]),
        ({"camera": "observation.images.front"}, ["'observation.images.top'", "observation.images.front"]),
        ({"action_size": 3}, ["actions of size 2", "(3,)"]),
    ],
    ids=["image size", "camera", "action size"],
)
@pytest.mark.parametrize("verb", ["imagine", "benchmark latent_actions"])
def test_a_store_of_other_features_than_the_models(
    refused: Refuse, tiny_checkpoint: Path, sizes: dict[str, Any], words: list[str], verb: str
) -> None:
    other = tiny.write_store(Path("other.zarr"), **sizes)
    message = refused(*verb.split(), f"checkpoint={tiny_checkpoint}", f"data.path={other}", "run_dir=run")
    assert all(word in message for word in words), message
    assert written("run") == []


def test_training_on_frames_of_another_size_than_configured(refused: Refuse, tiny_store: Path) -> None:
    message = refused(*train(tiny_store, "model.tokenizer.image_size=[32,32]"))
    assert "holds frames of (16, 16, 3); the model is configured for (32, 32, 3)" in message
    message = refused(*train(tiny_store, "trainer.camera=wrist")[:2], "trainer.camera=wrist")
    assert "has the cameras: observation.images.top; got camera='wrist'" in message
    assert written("run") == []


@pytest.mark.parametrize("feature", [tiny.CAMERA, "action", "observation.state"])
def test_a_truncated_chunk(refused: Refuse, tiny_store: Path, feature: str) -> None:
    store = Path(shutil.copytree(tiny_store, "damaged.zarr"))
    shard = max(
        (path for path in (store / feature / "c").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    message = refused(*train(store))
    assert f"array '{feature}'" in message
    assert "truncated or damaged" in message
    assert "rows 0 to" in message
    assert not Path("run/model").exists()


def test_episodes_shorter_than_the_window(refused: Refuse) -> None:
    store = tiny.write_store(Path("short.zarr"), [tiny.episode(seed, rows=4) for seed in range(4)])
    message = refused(*train(store))
    assert "shorter than a window of 11 rows" in message  # of self-forcing, the longest
    assert "0 (4 rows)" in message
    assert "at most 4 rows" in message
    assert not Path("run/model").exists()


def test_too_few_episodes_to_hold_one_out(refused: Refuse) -> None:
    message = refused(*train(tiny.write_store(Path("one.zarr"), [tiny.episode(0)])))
    assert "at least 2" in message
    assert "got 1" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_in_actions(refused: Refuse, bad: float) -> None:
    episodes = [tiny.episode(seed) for seed in range(6)]
    episodes[2].features["action"][7, 1] = bad
    message = refused(*train(tiny.write_store(Path("bad.zarr"), episodes)))
    assert "'action' is not finite in episode 2, row 7" in message
    assert written("run") == []


# Checkpoints


def damage_json(folder: Path, key: str, value: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    content[key] = value
    (folder / "config.json").write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (shutil.rmtree, "no such folder"),
    "not ours": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "another format": (lambda folder: damage_json(folder, "format", "x"), "format is 'x', expected"),
    "another version": (
        lambda folder: damage_json(folder, "version", 999),
        "version 999, this release reads version 2",
    ),
    "another size": (
        lambda folder: damage_json(folder, "embodiment", {"camera": tiny.CAMERA, "action_size": 5}),
        "does not fit its config.json",
    ),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        "model.safetensors is damaged",
    ),
    "a pickle": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04\x95N."), "Nothing is unpickled"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_loaded(
    refused: Refuse, tiny_checkpoint: Path, tiny_store: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, "model"))
    spoil, words = DAMAGES[damage]
    spoil(folder)
    message = refused("imagine", f"checkpoint={folder}", f"data.path={tiny_store}", "run_dir=run")
    assert words in message
    assert str(folder) in message
    assert written("run") == []


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"action_size": 3}, "reach", ["actions of size 3", "actions of size 2"]),
        ({"camera": "observation.images.wrist"}, "reach", ["camera 'wrist'", "has the cameras"]),
        ({"robot": "reach"}, "push", ["is of 'reach'", "the task 'push'", "Choose another task="]),
    ],
    ids=["action size", "camera", "task"],
)
@pytest.mark.parametrize("verb", ["plan", "benchmark planning", "benchmark imagination", "benchmark speed"])
def test_a_model_of_another_task(
    refused: Refuse, changes: dict[str, object], task: str, words: list[str], verb: str
) -> None:
    embodiment = dataclasses.replace(tiny.make_model().embodiment, **changes)
    WorldModel(tiny.MODEL, embodiment).save("model")
    message = refused(*verb.split(), "checkpoint=model", f"task={task}", "run_dir=run", code=2)
    assert all(word in message for word in words), message
    assert written("run") == []


@pytest.mark.parametrize("verb", ["plan", "benchmark planning", "benchmark imagination"])
def test_a_camera_that_the_model_does_not_see(refused: Refuse, verb: str) -> None:
    tiny.make_model().save("model")
    given = ("checkpoint=model", "task=reach", "task.camera=angled", "run_dir=run")
    message = refused(*verb.split(), *given, code=2)
    assert "task.camera=angled: the model of model sees 'top'" in message, message


# Names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("collect task=pull out=x", ["task=pull", "did you mean", "push", "reach"]),
        ("benchmark planning dynamics=orakel", ["dynamics=orakel", "did you mean oracle"]),
        ("plan planner=mpi checkpoint=x", ["planner=mpi", "mppi"]),
        ("train model=giant data.path=x", ["model=giant", "nano"]),
        (
            "train data.path=x trainer.tokenizer.num_stepz=3",
            ["trainer.tokenizer.num_stepz", "trainer.tokenizer.num_steps"],
        ),
        ("train data.path=x trainer.steps=3", ["there is no option 'trainer.steps'", "Valid: "]),
        ("train data.path=x model.predictor.window=wide", ["model.predictor.window=wide", "whole number"]),
        ("benchmark planing task=reach", ["no measure 'planing'", "did you mean planning"]),
        ("trian", ["no verb 'trian'", "did you mean train"]),
        ("collect task=reach out=x seed=-1", ["seed=-1: expected 0 or more"]),
        ("plan checkpoint=x control.budget_ms=fast", ["control: one of its values is of another kind", "--help"]),
    ],
)
def test_unknown_names_are_answered_with_the_valid_ones(refused: Refuse, line: str, words: list[str]) -> None:
    message = refused(*line.split(), code=2)
    assert all(word in message for word in words), message
    assert not list(Path().iterdir())


# Machines


START = "import sys; from embodied_wm import cli; sys.exit(cli.main(sys.argv[1:]))"


def subprocess_result(*arguments: str, start: str = START, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}  # mujoco sets it
    paths = {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=inherited | paths | environment,
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MUJOCO_GL": "banana"}, "MUJOCO_GL='banana'"),
        ({"MUJOCO_GL": "disable"}, "MuJoCo cannot render here"),
        ({"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"}, "MuJoCo cannot render here"),
    ],
    ids=["no such back end", "off", "no driver"],
)
def test_no_opengl(environment: dict[str, str], words: str) -> None:
    result = subprocess_result("collect", "out=s.zarr", "episodes=4", "rows=4", "run_dir=run", **environment)
    assert result.returncode == 1
    message = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert words in message
    assert "install EGL" in message
    assert not Path("s.zarr").exists()


def test_osmesa_without_its_library() -> None:
    if ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is installed, so rendering works with it")
    result = subprocess_result("collect", "out=s.zarr", "episodes=4", "rows=4", MUJOCO_GL="osmesa")
    assert result.returncode == 1
    assert "error: mujoco could not load the OpenGL back end MUJOCO_GL='osmesa'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("s.zarr").exists()


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """Mount a small file system, or skip where that is not allowed."""
    disk = Path(tempfile.mkdtemp())  # not in pytest's folder, which could not be removed were this process killed
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        disk.rmdir()
        pytest.skip("mounting a small file system needs root; the limit on file sizes is tested instead")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


@pytest.mark.parametrize("verb", ["train data.path=x", "refine checkpoint=x", "collect out=x"])
def test_a_run_folder_that_cannot_be_made(refused: Refuse, verb: str) -> None:
    Path("runs").write_text("x")
    for more, folder in (([], Path("runs", verb.split()[0]).absolute()), (["run_dir=runs/mine"], Path("runs/mine"))):
        message = refused(*verb.split(), *more, code=2)
        assert f"error: {folder} cannot be written: [Errno 20] Not a directory" in message
        assert "Give run_dir=FOLDER that can be written" in message


def test_a_disk_that_cannot_be_written(
    refused: Refuse, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(4000) as disk:
        arguments = ["train", f"data.path={tiny_store}", *tiny.command_line()]
        assert cli.main([*arguments, f"run_dir={disk / 'run'}"]) == 0
        (disk / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        monkeypatch.chdir(disk)
        for more, folder in (
            ([f"run_dir={disk / 'run'}", "resume=true"], "run"),
            (["run_dir=empty"], "empty"),
            ([], "runs/train"),
        ):
            message = refused(*arguments, *more, code=2)
            assert f"error: {disk / folder} cannot be written: [Errno 30] Read-only file system" in message
            assert "Give run_dir=FOLDER that can be written" in message
        monkeypatch.chdir(tmp_path)


def test_a_disk_that_fills_up_while_training_and_is_made_larger(refused: Refuse, tiny_store: Path) -> None:
    with small_disk(300) as disk:
        arguments = ["train", f"data.path={tiny_store}", f"run_dir={disk / 'run'}", *tiny.command_line()]
        message = refused(*arguments)
        assert "adapter.safetensors could not be written" in message
        assert "No space left" in message
        assert "Free space" in message
        assert written(disk / "run") == [
            "metrics.jsonl",
            "stages/latent_actions.safetensors",
            "stages/tokenizer.safetensors",
        ]
        assert int(load_file(disk / "run/stages/tokenizer.safetensors")["step"]) == 2
        resize(disk, 4000)
        assert cli.main([*arguments, "resume=true"]) == 0
        resumed = load_file(disk / "run/model/model.safetensors")
    assert cli.main(train(tiny_store)) == 0
    whole = load_file("run/model/model.safetensors")
    assert all(np.array_equal(resumed[name].numpy(), whole[name].numpy()) for name in whole)


@pytest.mark.parametrize("kilobytes", [4, 8])
def test_a_disk_that_is_full_from_the_start(refused: Refuse, tiny_store: Path, kilobytes: int) -> None:
    with small_disk(kilobytes) as disk:
        message = refused("train", f"data.path={tiny_store}", f"run_dir={disk / 'run'}", *tiny.command_line())
        assert "No space left" in message
        assert "ree space" in message
        assert not list(disk.rglob("*.safetensors*"))


@pytest.mark.render
def test_a_disk_that_fills_up_while_collecting(refused: Refuse) -> None:
    with small_disk(450) as disk:
        store = disk / "s.zarr"
        arguments = ["collect", f"out={store}", "episodes=60", "rows=20", "workers=1"]
        message = refused(*arguments)
        assert "20 episodes could not be written" in message
        assert "committed before are intact" in message
        kept = EpisodeStore.open(store).num_episodes
        assert kept in (20, 40)
        resize(disk, 4000)
        assert cli.main(arguments) == 0
        assert EpisodeStore.open(store).num_episodes == 60


def test_a_limit_on_file_sizes_while_training(tiny_store: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    result = subprocess_result(*train(tiny_store), start=limit + START)
    assert result.returncode == 1
    assert "tokenizer.safetensors could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert written("run") == ["metrics.jsonl"]


@pytest.mark.render
def test_an_unstable_simulation_names_task_seed_and_step(refused: Refuse) -> None:
    arguments = ["collect", "out=s.zarr", "rows=8", "workers=1", "task.image_size=16", "seed=5"]
    assert cli.main([*arguments, "episodes=2"]) == 0
    gains = get_task("reach").model.actuator_gainprm
    before = gains.copy()
    gains *= 1e20
    try:
        message = refused(*arguments, "episodes=4")
    finally:
        gains[:] = before
    assert re.search(r"MuJoCo became unstable in task 'reach', seed \(5, 2\), step \d+: ", message), message
    assert EpisodeStore.open("s.zarr").num_episodes == 2
