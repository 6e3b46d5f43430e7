"""SIGKILL at random moments: the store always opens, finished episodes are whole, continuing gives the same store."""

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from embodied_wm.commands.collection import collect_store
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec
from sim.collect import collect, features
from sim.tasks import get_task

HERE = Path(__file__).parent
writer, collector = (runpy.run_path(str(HERE / name)) for name in ("writer.py", "collector.py"))
FEATURES = {
    "observation.images.top": FeatureSpec(dtype="uint8", shape=(16, 16, 3)),
    "action": FeatureSpec(dtype="float32", shape=(2,)),
    "next.success": FeatureSpec(dtype="bool", shape=()),
}
KILLS = [
    pytest.param(5, id="5 kills"),
    pytest.param(50, id="50 kills", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


def assert_same(episode: Episode, expected: Episode) -> None:
    assert dict(episode.info) == dict(expected.info)
    assert set(episode.features) == set(expected.features)
    for name, rows in expected.features.items():
        np.testing.assert_array_equal(episode.features[name], rows)


def num_committed(path: Path) -> int:
    """Return the committed episodes; a store that is there must open."""
    return EpisodeStore.open(path).num_episodes if path.exists() else 0


def kill_once(arguments: list[str], path: Path, rng: random.Random, longest_s: float) -> None:
    """Start a process, wait till it commits something or, at every third kill, for any moment, and kill it."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    before, began_s = num_committed(path), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    if rng.random() < 1 / 3:
        time.sleep(rng.uniform(0, 2.0))
    else:
        while num_committed(path) == before and process.poll() is None and time.monotonic() - began_s < 60:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, longest_s))
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_growing(path: Path, known: int, expected: Callable[[int], Episode], group: int) -> int:
    """Check that episodes from `known` on are what they must be and come in whole groups; return how many there are."""
    committed = num_committed(path)
    assert committed >= known, "a committed episode is gone"
    assert committed % group == 0, "a group is there as a whole or not at all"
    if committed:
        store = EpisodeStore.open(path)
        for number in range(max(known - group, 0), committed):
            assert_same(store.episode(number), expected(number))
    return committed


@pytest.mark.parametrize("num_kills", KILLS)
def test_append_killed_at_any_moment(tmp_path: Path, num_kills: int) -> None:
    path, rng, numbered = tmp_path / "s.zarr", random.Random(num_kills), writer["numbered_episode"]
    EpisodeStore.create(path, features=FEATURES, fps=10).close()
    known = 0
    for _ in range(num_kills):
        kill_once([str(HERE / "writer.py"), str(path)], path, rng, longest_s=0.2)
        known = check_growing(path, known, numbered, group=2)
    assert known >= num_kills / 2, "it was hardly ever killed while it appended"
    with EpisodeStore.open(path, mode="a") as store:
        store.append([numbered(known), numbered(known + 1)])
    unhurt = EpisodeStore.create(tmp_path / "unhurt.zarr", features=FEATURES, fps=10)
    unhurt.append([numbered(number) for number in range(known + 2)])
    assert EpisodeStore.open(path).fingerprint() == unhurt.fingerprint()
    for number in range(known + 2):
        assert_same(EpisodeStore.open(path).episode(number), numbered(number))
    assert not list(path.rglob("*.partial"))


@pytest.mark.render
@pytest.mark.parametrize("num_kills", KILLS)
def test_collect_killed_at_any_moment(tmp_path: Path, num_kills: int) -> None:
    total, path, rng = 40 * num_kills, tmp_path / "s.zarr", random.Random(num_kills)
    unhurt = collected_at_once(tmp_path / "unhurt.zarr", total)
    known = midway = 0
    for number in range(num_kills):
        workers = "2" if number % 5 == 0 else "1"
        kill_once([str(HERE / "collector.py"), str(path), str(total), workers], path, rng, longest_s=0.15)
        known = check_growing(path, known, unhurt.episode, group=20)
        midway += 0 < known < total
    assert midway, "it was never killed while it collected"
    collect_store(path, collector["collecting"](total, 1), Console(quiet=True))
    continued = EpisodeStore.open(path)
    assert continued.fingerprint() == unhurt.fingerprint()
    for name in unhurt.features:
        np.testing.assert_array_equal(
            continued.read(name, 0, continued.num_frames), unhurt.read(name, 0, unhurt.num_frames)
        )
    assert not list(tmp_path.glob("*.creating"))


def collected_at_once(path: Path, total: int) -> EpisodeStore:
    """Return a store of the same episodes, made in one commit by a process that nobody kills."""
    config = collector["collecting"](total, 1)
    size = config["task"]["image_size"]
    episodes = collect(
        "reach", num_episodes=total, seed=config["seed"], image_size=size, num_rows=config["rows"], num_workers=1
    )
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in features(get_task("reach"), size).items()
    }
    with EpisodeStore.create(path, features=specs, fps=get_task("reach").fps) as store:
        store.append([Episode(features=episode["features"], info=episode["info"]) for episode in episodes])
    return EpisodeStore.open(path)


def test_killed_while_it_is_created_it_is_not_there(tmp_path: Path) -> None:
    path, aside = tmp_path / "s.zarr", tmp_path / "s.zarr.creating"
    script = (
        "import os, signal, sys; from embodied_wm.data import layout; from embodied_wm.data.store import EpisodeStore; "
        "from embodied_wm.types import FeatureSpec; made = layout.create_array; "
        "layout.create_array = lambda *a: (made(*a), os.kill(os.getpid(), signal.SIGKILL)); "
        "EpisodeStore.create(sys.argv[1], features={'action': FeatureSpec(dtype='float32', shape=(2,))}, fps=10)"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    killed = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert aside.is_dir()
    assert not path.exists()
    with pytest.raises(StoreError, match="No such episode store"):
        EpisodeStore.open(path)
    with EpisodeStore.create(path, features=FEATURES, fps=10) as store:
        assert not aside.exists()
        with pytest.raises(StoreError, match="appended to by another"):
            EpisodeStore.open(path, mode="a")
        store.append([writer["numbered_episode"](0)])
    assert EpisodeStore.open(path).num_episodes == 1


@pytest.mark.render
def test_workers_end_with_a_collection_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "collector.py"), str(path), "100000", "2"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline_s = time.monotonic() + 60
        while not num_committed(path) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline_s = time.monotonic() + 20
        while (left := processes_of(process.pid)) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert not left
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)


def processes_of(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found
