"""Models that ship: they are found by name, load, are small, keep their cards, and plan right after installation."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_wm import cli, pretrained
from embodied_wm.checkpoint import CheckpointError, read_description, read_tensors
from embodied_wm.commands import showing
from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.verbs import checkpoint_folder, with_start
from embodied_wm.near_names import nearest
from embodied_wm.pretrained import FOLDER, pretrained_folder, pretrained_names
from embodied_wm.world_model import WorldModel
from scripts.make_pretrained import RECIPES
from sim.tasks import get_task

MOST_BYTES = 20e6
SHIPPED = pretrained_names()


@pytest.fixture
def shipped(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "juggle")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path / "juggle"


def test_a_model_is_found_by_its_name_or_by_the_task(shipped: Path) -> None:
    assert checkpoint_folder({"checkpoint": "pretrained:juggle"}) == shipped
    assert checkpoint_folder({"checkpoint": "pretrained", "task": {"name": "juggle"}}) == shipped
    assert WorldModel.from_pretrained("pretrained:juggle").fingerprint() == WorldModel.load(shipped).fingerprint()


def test_what_does_not_ship_is_refused_by_name(shipped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model ships for 'fold'; there are: juggle"):
        WorldModel.from_pretrained("pretrained:fold")
    with pytest.raises(UsageError, match=r"say which, pretrained:NAME; there are juggle"):
        checkpoint_folder({"checkpoint": "pretrained"})


def test_inspect_shows_a_model_that_ships(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "pretrained:juggle"]) == 0
    assert "16x16" in capsys.readouterr().out


def test_all_together_are_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".safetensors", ".json", ".md")]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_fits_its_task_and_says_what_it_reached(name: str) -> None:
    folder, task = pretrained_folder(name), get_task(name)
    model = WorldModel.load(folder)
    assert model.embodiment.robot == name
    assert model.embodiment.action_size == task.action_size
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(folder / "model.safetensors").values())
    card = read_description(folder)["card"]
    assert {entry["kind"] for entry in card["figures"]} >= {"planning", "imagination"}
    assert all(entry["checkpoint"] == model.fingerprint() for entry in card["figures"]), "figures of other weights"
    assert "/" not in card["store"], "a path of the machine it was trained on"
    assert "## Figures" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_what_its_recipe_makes(name: str) -> None:
    overrides = cli.read_overrides("train", (*RECIPES[name].train, *RECIPES[name].policy))
    composed, _ = cli.compose_config("train", overrides | {"data.path": "none"})
    made = json.loads(json.dumps(dataclasses.asdict(cli.instantiate_config(composed)["model"])))
    saved = read_description(pretrained_folder(name))["config"]
    assert saved == known(made, saved)


@pytest.mark.parametrize("name", SHIPPED)
def test_training_goes_on_from_a_shipped_model_with_its_own_options(name: str) -> None:
    overrides = with_start("train", {"start_from": f"pretrained:{name}", "data.path": "none", "seed": "1"})
    config = cli.instantiate_config(cli.compose_config("train", overrides)[0])
    model = WorldModel.load(pretrained_folder(name))
    made, own = (json.loads(json.dumps(dataclasses.asdict(each))) for each in (config["model"], model.config))
    assert made == own
    assert config["seed"] == 1
    assert config["trainer"].camera == (model.embodiment.camera if model.config.tokenizer.cameras > 1 else "")


def known(values: Any, saved: Any) -> Any:
    """Return the values of the fields that the release which saved a model knew."""
    return {key: known(values.get(key), saved[key]) for key in saved} if isinstance(saved, dict) else values


@pytest.mark.render
@pytest.mark.skipif("push" not in SHIPPED, reason="no model ships for push")
def test_planning_works_right_after_installation(tmp_path: Path) -> None:
    before = (pretrained_folder("push") / "config.json").read_bytes()
    line = f"plan task=push checkpoint=pretrained open=false run_dir={tmp_path / 'run'}"
    assert cli.main(line.split()) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    measures = report["tasks"]["push"]
    assert measures["final_cost_m"]["value"] < measures["start_cost_m"]["value"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert (pretrained_folder("push") / "config.json").read_bytes() == before


def test_a_page_is_opened_only_before_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(showing.webbrowser, "open", opened.append)
    monkeypatch.setattr(showing, "has_screen", lambda: False)
    showing.show_page(tmp_path / "report.html", True)
    monkeypatch.setattr(showing, "has_screen", lambda: True)
    showing.show_page(tmp_path / "report.html", False)
    assert opened == []
    showing.show_page(tmp_path / "report.html", True)
    assert opened == [(tmp_path / "report.html").as_uri()]


def test_of_many_valid_names_only_those_alike_are_listed() -> None:
    names = [f"trainer.{stage}.{key}" for stage in ("tokenizer", "predictor") for key in map(chr, range(97, 117))]
    said = nearest("trainer.predictor.zz", names)
    assert "trainer.predictor.a" in said
    assert "trainer.tokenizer.a" not in said
    assert nearest("zz", [*names, "seed"]).endswith("Valid: seed, trainer.*")
