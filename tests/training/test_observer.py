"""What people see: picture grids, trackers that cannot stop a training, the page."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from rich.console import Console

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.observer import GAP, RunObserver, WatchConfig, arrange, seconds_spent
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel

BROKEN = "def init(**options):\n    raise ConnectionError('no route to host')\n"


def test_frames_are_arranged_in_rows_and_columns() -> None:
    frames = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 5, 4, 3), np.uint8)
    picture = arrange(frames)
    assert picture.shape == (2 * 5 + GAP, 3 * 4 + 2 * GAP, 3)
    assert picture[0, 0, 0] == 0
    assert picture[-1, -1, 0] == 5
    assert (picture[5 : 5 + GAP] == 255).all()


def test_grids_show_truth_above_what_the_model_makes_of_it(tmp_path: Path, tiny_store: Path) -> None:
    config = tiny.training(4, watch=WatchConfig(picture_every=2))  # type: ignore[arg-type]
    model = train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, config, tmp_path, seed=0)
    names = sorted(path.name for path in (tmp_path / "grids").iterdir())
    stages = ("distillation", "predictor", "self_forcing", "tokenizer")
    assert names == [f"{stage}-{step:07d}.png" for stage in stages for step in (2, 4)]
    picture = np.asarray(Image.open(tmp_path / "grids/tokenizer-0000004.png"))[::2, ::2]
    store = EpisodeStore.open(tiny_store)
    frame = store.read(tiny.CAMERA, int(store.episode_ends[-2]), int(store.episode_ends[-2]) + 1)[0]
    np.testing.assert_array_equal(picture[: tiny.SIZE, : tiny.SIZE], frame)
    plain = train_world_model(store, tiny.MODEL, tiny.training(4), tmp_path / "plain", seed=0)
    assert model.fingerprint() == plain.fingerprint()  # looking on changes nothing


def heard(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\s+", " ", console.file.getvalue())


def test_a_tracker_without_network_is_named_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    console = Console(file=io.StringIO())
    observer = RunObserver(WatchConfig(trackers=("trackio",)), tmp_path, console=console)
    for step in (20, 40):
        observer.log("stage", step, {"loss": 1.0, "frames_per_s": 3.0, "seconds": 0.5})
    observer.close()
    said = heard(console)
    assert said.count("tracker trackio is left out") == 1
    assert "ConnectionError: no route to host" in said
    assert [json.loads(line)["step"] for line in (tmp_path / "speed.jsonl").read_text().splitlines()] == [20, 40]


def test_a_tracker_that_fails_later_is_left_out_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = tmp_path / "logged"
    (tmp_path / "trackio.py").write_text(
        "class Run:\n    count = 0\n    def log(self, values, step):\n        Run.count += 1\n"
        f"        with open({str(logged)!r}, 'a') as file:\n"
        "            file.write(f'{step} {values}\\n')\n"
        "        if Run.count == 2:\n            raise TimeoutError('gone')\n"
        "    def finish(self):\n        raise AssertionError('is not asked')\n"
        "def init(**options):\n    return Run()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    console = Console(file=io.StringIO())
    observer = RunObserver(WatchConfig(trackers=("trackio",)), tmp_path, console=console)
    for step in (20, 40, 60):
        observer.log("stage", step, {"loss": 1.0, "frames_per_s": 3.0, "seconds": 0.5})
    observer.close()
    assert logged.read_text().splitlines() == [
        f"{step} {{'stage/loss': 1.0, 'stage/frames_per_s': 3.0}}" for step in (20, 40)
    ]
    assert heard(console).count("TimeoutError: gone") == 1


def test_tensorboard_has_the_losses_and_the_pictures(tmp_path: Path, tiny_store: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny.training(20, watch=WatchConfig(trackers=("tensorboard",), picture_every=10))  # type: ignore[arg-type]
    train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, config, tmp_path, seed=0)
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        shown = events.Scalars(f"{line['stage']}/loss")
        assert [(event.step, pytest.approx(event.value)) for event in shown] == [(line["step"], line["loss"])]
    assert [event.step for event in events.Images("predictor")] == [10, 20]


def test_a_stage_took_the_time_of_all_the_calls_that_trained_it(tmp_path: Path, tiny_store: Path) -> None:
    earlier = {"stage": "predictor", "step": 20, "frames_per_s": 1.0, "seconds": 100.0}
    (tmp_path / "speed.jsonl").write_text(2 * (json.dumps(earlier) + "\n") + '{"stage": "pre')  # cut short by a kill
    model = train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, tiny.training(20), tmp_path, seed=0)
    assert 200 < model.card["seconds"]["predictor"] < 300
    assert model.card["seconds"]["readouts"] < 100
    again = train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, tiny.training(20), tmp_path, seed=0)
    assert again.card["seconds"]["predictor"] == pytest.approx(model.card["seconds"]["predictor"], abs=10)
    assert seconds_spent(tmp_path, "predictor") > 200


def test_unknown_trackers_are_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match=r"no tracker 'mlflow'; choose from \['tensorboard', 'wandb', 'trackio'\]"):
        WatchConfig(trackers=("mlflow",))


def test_the_page_of_a_training(tiny_store: Path) -> None:
    more = ["report=true", "trainer.keep.evaluate_every=10", "trainer.watch.picture_every=10"]
    assert cli.main(["train", f"data.path={tiny_store}", "run_dir=run", *tiny.command_line(20), *more]) == 0
    page = Path("run/report.html").read_text()
    assert "Training of dot" in page
    for words in ("Stage predictor", "training, held out", "What was learnt", "tokenizer after 20 steps", "Speed"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert '"num_steps": 20' in page.replace("&quot;", '"')
    report = json.loads(Path("run/report.json").read_text())
    model = WorldModel.load("run/model")
    assert report["tasks"]["predictor"]["loss"]["value"] == model.card["metrics"]["predictor"]["loss"]
    assert report["run"]["checkpoint"] == model.fingerprint()
    assert cli.main(["report", "run"]) == 0
