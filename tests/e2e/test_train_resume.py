"""`embodied-wm train` killed, stopped by Ctrl-C and resumed gives bit for bit the model of a run that never stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from embodied_wm import cli
from embodied_wm.training.folder import owned
from embodied_wm.world_model import WorldModel

NUM_STEPS = 150
"""Of the predictor, in which training is stopped; the other stages have 20."""


def command(store: Path, run: str, *more: str, num_steps: int | None = None) -> list[str]:
    long = [*tiny.command_line(20), f"trainer.predictor.num_steps={NUM_STEPS}"]
    steps = long if num_steps is None else tiny.command_line(num_steps)
    return ["train", f"data.path={store}", f"run_dir={run}", *steps, *more]


def stages_logged(run: Path) -> list[str]:
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line)["stage"] for line in lines if line.endswith("\n")]


def stop_amid(stage: str, arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    """Run the command line, send a signal once a stage is under way, and return the exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "embodied_wm.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline_s = time.monotonic() + 60
        while stage not in stages_logged(Path("parts")) and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, errors


def test_training_from_a_url_gives_the_same_model(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    for address, run in ((str(tiny_store), "local"), (f"file://{tiny_store}", "remote")):
        arguments = ["train", f"data.path={address}", f"run_dir={run}", *tiny.command_line(2)]
        assert cli.main(arguments) == 0
    models = [load_file(next(Path(run, "model").glob("*.safetensors"))) for run in ("local", "remote")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert any(Path("cache/embodied_wm").iterdir())


def test_killed_then_stopped_by_ctrl_c_then_resumed(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tiny_store, "whole")) == 0
    code, _ = stop_amid("latent_actions", command(tiny_store, "parts"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert (Path("parts/stages/tokenizer.safetensors")).is_file()
    assert not Path("parts/model").exists()
    code, errors = stop_amid("predictor", command(tiny_store, "parts", "resume=true"), signal.SIGINT)
    assert code == 130
    assert "Stopped by Ctrl-C" in errors
    assert "Traceback" not in errors
    assert not Path("parts/model").exists()
    assert not list(Path("parts").rglob("*.part"))
    assert 0 < int(load_file("parts/stages/predictor.safetensors")["step"]) < NUM_STEPS
    assert cli.main(["train", "run_dir=parts", "resume=true"]) == 0  # the folder knows the rest
    models = [load_file(f"{run}/model/model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert stages_logged(Path("parts")) == stages_logged(Path("whole"))
    assert (
        WorldModel.load("parts/model").card["metrics"].keys() == WorldModel.load("whole/model").card["metrics"].keys()
    )


def test_a_finished_run_resumed_keeps_its_model_and_its_figures(tiny_store: Path) -> None:
    assert cli.main(command(tiny_store, "run", num_steps=20)) == 0
    before = WorldModel.load("run/model")
    weights = Path("run/model/model.safetensors").read_bytes()
    assert cli.main(command(tiny_store, "run", "resume=true", num_steps=20)) == 0
    assert Path("run/model/model.safetensors").read_bytes() == weights
    assert WorldModel.load("run/model").card["metrics"] == before.card["metrics"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["seed=1"], "seed=0 (now 1)"),
        (["model.predictor.window=12"], "model.predictor.window=8 (now 12)"),
        (["trainer.predictor.learning_rate=0.1"], "trainer.predictor.learning_rate=0.002 (now 0.1)"),
    ],
)
def test_a_run_is_resumed_with_its_own_options_only(
    tiny_store: Path, changes: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(tiny_store, "run", num_steps=2)) == 0
    files = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != "log.txt"}
    capsys.readouterr()
    assert cli.main(command(tiny_store, "run", "resume=true", *changes, num_steps=2)) == 2
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert words in message
    assert "same options" in message
    assert {path: path.read_bytes() for path in files} == files


def test_a_run_that_stopped_for_its_spikes_goes_on_where_more_are_allowed(
    tiny_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["stages=[tokenizer]", "trainer.keep.spike_factor=0.01", "trainer.keep.max_spikes=2"]
    assert cli.main(command(tiny_store, "run", *options, num_steps=60)) == 1
    assert "with resume=true and a larger trainer.keep.max_spikes" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert cli.main(["train", "run_dir=run", "resume=true", "trainer.keep.max_spikes=20"]) == 0
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["skipped"] == 10


def test_a_run_that_is_going_on_is_left_as_it_is(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tiny_store, "run", num_steps=2)) == 0
    files = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with owned(Path("run")), ThreadPoolExecutor(1) as other:
        again = command(tiny_store, "run", "resume=true", "trainer.keep.save_every_s=1", num_steps=2)
        assert other.submit(cli.main, again).result() == 1
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"belongs to a run that is going on (process {os.getpid()} on " in message
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == files


def test_a_run_is_resumed_with_its_own_data_only(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(tiny_store, "run", num_steps=2)) == 0
    moved = Path(shutil.copytree(tiny_store, tmp_path / "moved.zarr"))
    assert cli.main(command(moved, "run", "resume=true", num_steps=2)) == 0
    other = tiny.write_store(tmp_path / "other.zarr", [tiny.episode(seed) for seed in range(10, 16)])
    assert cli.main(command(other, "run", "resume=true", num_steps=2)) == 2
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "Give the same data" in message


def test_a_folder_without_a_run_is_not_resumed(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    assert cli.main(command(tiny_store, "mine", "resume=true")) == 2
    assert "no run to continue" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert Path("mine/notes.txt").read_text() == "precious"
    assert not Path("mine/config.yaml").exists()
