"""An import that stops at any moment goes on where it was, to the same store; a finished one is left alone."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import folders
import pytest
from folders import CAMERA, Folder

from embodied_wm import cli
from embodied_wm.data.lerobot import LeRobotError, episodes, import_lerobot
from embodied_wm.data.store import EpisodeStore, StoreError

IMPORTER = Path(__file__).with_name("importer.py")


@pytest.fixture
def single_episodes(monkeypatch):
    """Commit every episode by itself, as large ones are."""
    monkeypatch.setattr(episodes, "GROUP_BYTES", 1)


def faulty_folder(root):
    """Write 8 episodes of which 1 and 5 are repaired, and 0, 3 and 7 skipped."""
    source = Folder(lengths=(6, 9, 4, 8, 7, 9, 5, 6), num_frames={1: 10, 5: 8}).write(root)
    for skipped in (0, 3, 7):
        (source / f"videos/chunk-000/{CAMERA}/episode_{skipped:06d}.mp4").unlink()
    return source


def content(path):
    store = EpisodeStore.open(path)
    return store.fingerprint(), store.metadata["import"], store.metadata["complete"]


@pytest.mark.usefixtures("single_episodes")
@pytest.mark.parametrize("stop_at", [1, 2, 5, 8])
def test_an_import_that_is_interrupted_goes_on_to_the_same_store(tmp_path, stop_at):
    source = faulty_folder(tmp_path / "source")
    whole = import_lerobot(source, tmp_path / "whole.zarr")
    calls = []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_lerobot(source, tmp_path / "s.zarr", progress=interrupt)
    assert not (tmp_path / "s.zarr").exists()
    committed = [1, 2, 4, 5, 6]
    report = import_lerobot(source, tmp_path / "s.zarr", progress=lambda done, total: calls.append(done))
    assert report.found == sum(index < stop_at for index in committed)
    assert (report.repaired, report.skipped) == (whole.repaired, whole.skipped)
    assert [finding.episode for finding in report.repaired] == [1, 5]
    assert [finding.episode for finding in report.skipped] == [0, 3, 7]
    assert content(tmp_path / "s.zarr") == content(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "source", "whole.zarr"]


@pytest.mark.usefixtures("single_episodes")
def test_what_was_told_of_episodes_that_were_not_committed_is_told_once(tmp_path, monkeypatch):
    source = faulty_folder(tmp_path / "source")
    import_lerobot(source, tmp_path / "whole.zarr")
    append, told = EpisodeStore.append, []

    def stop_before_rows(store, group):
        told.append(len(store.metadata["import"]["repaired"]))
        if len(told) == 6:  # episode 5, whose repair stands in the header already
            raise KeyboardInterrupt
        append(store, group)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "append", stop_before_rows)
        with pytest.raises(KeyboardInterrupt):
            import_lerobot(source, tmp_path / "s.zarr")
    assert told[-2:] == [1, 2]
    import_lerobot(source, tmp_path / "s.zarr")
    assert content(tmp_path / "s.zarr") == content(tmp_path / "whole.zarr")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_an_import_that_is_killed_goes_on_to_the_same_store(tmp_path, repository, kills):
    source = Folder(lengths=(5,) * 24, num_frames={3: 6, 11: 6}).write(tmp_path / "source")
    import_lerobot(source, tmp_path / "whole.zarr")
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    rng, killed = random.Random(0), 0
    while killed < kills:
        out = tmp_path / f"{killed}.zarr"
        for _ in range(2):  # twice at one store
            with subprocess.Popen(
                [sys.executable, str(IMPORTER), str(source), str(out)], stdout=subprocess.PIPE, env=environment
            ) as importer:
                assert importer.stdout is not None
                assert importer.stdout.readline()
                time.sleep(rng.uniform(0, 0.5))
                importer.send_signal(signal.SIGKILL)
                killed += 1
            assert not out.exists()
        assert import_lerobot(source, out).found > 0
        assert content(out) == content(tmp_path / "whole.zarr")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_the_same_command_goes_on(tmp_path, repository):
    source = Folder(lengths=(11,) * 8).write(tmp_path / "source")
    options = ["image_size=[1024,1024]", "workers=1"]  # 33 MB, so one commit, for each episode
    command = [sys.executable, "-m", "embodied_wm.cli", "import", str(source), f"out={tmp_path}/s.zarr", *options]
    environment = {**os.environ, "PYTHONPATH": str(repository)}

    def committed():
        try:
            return EpisodeStore.open(tmp_path / "s.zarr.importing").num_episodes
        except StoreError:
            return 0

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as importer:
        while importer.poll() is None and committed() < 2:
            time.sleep(0.02)
        importer.send_signal(signal.SIGINT)
        spoken = importer.communicate()[1]
    assert importer.returncode == 130
    assert "Stopped by Ctrl-C. What was finished is kept." in spoken
    kept = committed()
    assert 2 <= kept < 8
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"held {kept} episodes" in " ".join(again.stdout.split())
    import_lerobot(source, tmp_path / "whole.zarr", image_size=(1024, 1024))
    assert content(tmp_path / "s.zarr") == content(tmp_path / "whole.zarr")


def test_what_a_kill_at_the_very_beginning_leaves_is_cleared(tmp_path):
    source = Folder().write(tmp_path / "source")
    (tmp_path / "s.zarr.importing").mkdir()
    (tmp_path / "s.zarr.importing/zarr.json").write_text("{")
    assert import_lerobot(source, tmp_path / "s.zarr").episodes == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "source"]


def test_an_import_that_takes_nothing_leaves_nothing(tmp_path):
    source = Folder(num_frames=dict.fromkeys(range(3), 1)).write(tmp_path / "source")
    with pytest.raises(LeRobotError, match="none of 3 episodes could be taken"):
        import_lerobot(source, tmp_path / "s.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("single_episodes")
def test_other_settings_neither_continue_nor_pass_for_the_same(tmp_path):
    source = Folder().write(tmp_path / "source")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_lerobot(source, tmp_path / "s.zarr", progress=interrupt)
    other = Folder(lengths=(6, 9, 5)).write(tmp_path / "other")
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"image_size": (32, 32)}, r"image_size \(\[64, 64\], now \[32, 32\]\)"),
        ({"fit": "crop"}, r"fit \('stretch', now 'crop'\)"),
        ({"stride": 2}, r"stride \(1, now 2\); aggregation \(none, now 'last'\)"),
        ({"episodes": [0, 1]}, r"episodes \(all, now \[0, 1\]\)"),
        ({"cameras": [CAMERA]}, rf"cameras \(all, now \['{CAMERA}'\]\)"),
    )
    for state, done in (("begun", "s.zarr.importing"), ("imported", "s.zarr")):
        assert (tmp_path / done).exists()
        for change, words in changes:
            with pytest.raises(StoreError, match=rf"{done} was {state} with other settings: {words}\. Give the same"):
                import_lerobot(source, tmp_path / "s.zarr", **change)
        with pytest.raises(StoreError, match=r"settings: source \(fingerprint .*another dataset, or it was changed"):
            import_lerobot(other, tmp_path / "s.zarr")
        import_lerobot(source, tmp_path / "s.zarr")
    # Order, repeats, and what changes nothing, are no other settings.
    assert import_lerobot(source, tmp_path / "s.zarr", aggregation="sum", num_workers=1).found == 3
    import_lerobot(source, tmp_path / "t.zarr", episodes=[2, 0, 2])
    assert import_lerobot(source, tmp_path / "t.zarr", episodes=[0, 2]).found == 2


def test_a_finished_import_is_left_alone(tmp_path, capsys):
    source = faulty_folder(tmp_path / "source")
    first = import_lerobot(source, tmp_path / "s.zarr")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    for file in (source / "data").rglob("*"):
        file.chmod(0)
    again = import_lerobot(source, tmp_path / "s.zarr")
    assert (again.found, again.episodes, again.frames) == (5, 5, first.frames)
    assert (again.repaired, again.skipped, again.notes) == (first.repaired, first.skipped, first.notes)
    assert again.seconds < 0.5
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")} == before
    assert cli.main(["import", str(source), f"out={tmp_path}/s.zarr"]) == 0
    assert "s.zarr holds this import already; nothing to do" in capsys.readouterr().out
    with pytest.raises(LeRobotError, match=r"strict import refused: episode 1: camera"):
        import_lerobot(source, tmp_path / "s.zarr", strict=True)


def test_a_place_that_holds_something_else_is_left_alone(tmp_path):
    source = Folder().write(tmp_path / "source")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not an episode store"):
        import_lerobot(source, tmp_path / "folder")
    features = EpisodeStore.open(import_into(tmp_path / "s.zarr", source)).features
    EpisodeStore.create(tmp_path / "own.zarr", features=features, fps=10).close()
    with pytest.raises(StoreError, match="exists already, and is not from an import"):
        import_lerobot(source, tmp_path / "own.zarr")


def import_into(path, source):
    import_lerobot(source, path)
    return path


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    source = Folder().write(tmp_path / "source")
    (tmp_path / "file").write_text("x")
    for out in (Path("/proc/s.zarr"), tmp_path / "file" / "s.zarr"):
        with pytest.raises(StoreError, match=r"s\.zarr.*could not be"):
            import_lerobot(source, out)


def test_a_disk_that_is_full_keeps_what_was_committed(tmp_path, repository):
    source = Folder(lengths=(40,) * 6).write(tmp_path / "source")
    for part in source.rglob("*.mp4"):
        folders.write_noise(part, 40)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, str(IMPORTER), str(source), str(tmp_path / "s.zarr"), "900000"]
    spoken = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "episodes could not be written" in spoken.stderr
    committed = re.search(r"The (\d) episodes committed before are intact", spoken.stderr)
    assert committed is not None
    assert int(committed[1]) > 0
    import_lerobot(source, tmp_path / "whole.zarr")
    assert import_lerobot(source, tmp_path / "s.zarr").found == int(committed[1])
    assert content(tmp_path / "s.zarr") == content(tmp_path / "whole.zarr")
