"""Model card and Hub: what a card says, figures that a benchmark adds, round trips through a Hub that is faked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import ModelCard, hub_mixin
from huggingface_hub.errors import LocalEntryNotFoundError

from embodied_wm import cli, hub, model_card
from embodied_wm.checkpoint import CheckpointError, read_description
from embodied_wm.commands import verbs
from embodied_wm.model_card import MARK, README, add_figures, without_places
from embodied_wm.world_model import WorldModel


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "run" / "model"))


def estimate(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.1, value + 0.1], "n": n}


def report(success: float, *, n: int = 100, weights: str = "abc", task: str = "push") -> dict[str, Any]:
    config = {"planner": {"_target_": "planners.cem.CEM"}, "objective": {"kind": "state"}}
    return {
        "kind": "planning",
        "run": {"config": config, "seed": 3, "revision": "0123456789abcdef", "checkpoint": weights},
        "tasks": {task: {"success": estimate(success, n), "steps_to_success": estimate(9.0, n)}},
    }


def text_of(folder: Path) -> str:
    return (folder / README).read_text()


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard(text_of(folder)).data.to_dict()


def test_a_card_says_what_the_model_is_and_that_nothing_was_measured(folder: Path) -> None:
    text = text_of(folder)
    for words in (
        "# World-action model of unknown", f"`{tiny.CAMERA}`, 16x16, 10 frames a second", "acts: 2 numbers (a, b)",
        "reads from latents: observation.state", "seed: 0", "None yet", "remembers 8 frames", "## Limits",
    ):  # fmt: skip
        assert words in text
    data = metadata(folder)
    assert (data["library_name"], data["pipeline_tag"]) == ("embodied-wm", "robotics")
    assert "world-model" in data["tags"]
    weights = sum(tensor.numel() for tensor in tiny.make_model().state_dict().values())
    assert f"numbers in its tensors: {weights:,} (adapter " in text


@pytest.mark.parametrize(("stillness", "says"), [(0.0, False), (0.3, True)])
def test_a_card_says_what_is_taken_for_rest(tmp_path: Path, stillness: float, says: bool) -> None:
    model = tiny.make_model()
    predictor = replace(model.config.predictor, stillness=stillness)
    WorldModel(replace(model.config, predictor=predictor), model.embodiment).save(tmp_path / "model")
    assert ("more slowly than about 0.3 times" in text_of(tmp_path / "model")) is says


def test_a_trained_model_says_on_what_and_for_how_long(tiny_store: Path, tmp_path: Path) -> None:
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.training.train import train_world_model

    store = EpisodeStore.open(tiny_store)
    train_world_model(store, tiny.MODEL, tiny.training(), tmp_path / "run", seed=5)
    text = text_of(tmp_path / "run" / "model")
    for words in (
        "of dot", "episodes: 5\n", "held out: 1\n", "frames: 60 (0.1 minutes", "seed: 5", store.fingerprint(),
        "store: dot.zarr\n", "| tokenizer | 2 | ", "| predictor | 2 | ", "loss ",
    ):  # fmt: skip
        assert words in text, words
    assert str(tmp_path) not in text


def test_figures_are_added_and_the_weights_stay(folder: Path) -> None:
    before, weights = WorldModel.load(folder), (folder / "model.safetensors").read_bytes()
    assert add_figures(folder, report(0.5)) == []
    assert (folder / "model.safetensors").read_bytes() == weights
    after = WorldModel.load(folder)
    assert after.fingerprint() == before.fingerprint()
    assert after.card["seed"] == 0
    (entry,) = after.card["figures"]
    assert entry["measures"] == {"success": estimate(0.5)}  # what a card does not show stays out of it
    assert "| success | 0.5 | 0.4 to 0.6 | 100 |" in text_of(folder)
    assert "planner CEM, objective state, seed 3, revision 0123456789ab" in text_of(folder)
    (result,) = metadata(folder)["model-index"][0]["results"]
    assert result["dataset"]["name"] == "push"
    assert result["metrics"][0].items() >= {"type": "success", "value": 0.5}.items()
    after.save(folder)  # figures belong to the model: saving it anywhere keeps them
    assert read_description(folder)["card"]["figures"] == [entry]


def test_newer_figures_replace_older_ones_unless_they_rest_on_less(folder: Path) -> None:
    add_figures(folder, report(0.5))
    add_figures(folder, report(0.1, task="reach"))
    assert add_figures(folder, report(0.7)) == []
    (refusal,) = add_figures(folder, report(1.0, n=5))
    assert "they rest on 100 samples, these on 5" in refusal
    entries = read_description(folder)["card"]["figures"]
    assert [(e["task"], e["measures"]["success"]["value"]) for e in entries] == [("push", 0.7), ("reach", 0.1)]
    add_figures(folder, report(0.2, n=5, weights="other"))
    (entry,) = read_description(folder)["card"]["figures"]  # those of other weights are gone
    assert entry["measures"]["success"]["value"] == 0.2


def test_samples_are_those_of_the_first_figure(folder: Path) -> None:
    """Two timed episodes, or the one codebook, must not decide what a hundred pairs are worth."""
    for number, (kind, first, other) in enumerate(
        [("planning", "success", "seconds_per_decision"), ("latent_actions", "r2", "code_bits")]
    ):
        many, fewer = (
            report(0) | {"kind": kind, "tasks": {"push": {first: estimate(value, n), other: estimate(9.0, 1)}}}
            for value, n in ((0.5, 100), (0.7, 20))
        )
        assert add_figures(folder, many) == []
        (refusal,) = add_figures(folder, fewer)
        assert "they rest on 100 samples, these on 20" in refusal
        assert len(read_description(folder)["card"]["figures"]) == number + 1


def test_baselines_alone_do_not_replace_a_models_own_figures(folder: Path) -> None:
    add_figures(folder, report(0.5))
    add_figures(
        folder, report(0) | {"tasks": {"push": {"success.oracle": estimate(1.0), "success.random": estimate(0)}}}
    )
    (entry,) = read_description(folder)["card"]["figures"]
    assert entry["measures"] == {"success": estimate(0.5)}


def test_a_curve_is_shown_at_its_last_step(folder: Path) -> None:
    curve = {"by_horizon": {"2": estimate(20.0), "10": estimate(15.0)}}
    add_figures(folder, report(0.5) | {"kind": "imagination", "tasks": {"push": {"psnr": curve}}})
    assert "| psnr | 15 (h = 10) | 14.9 to 15.1 | 100 |" in text_of(folder)


def test_what_people_write_into_a_card_stays(folder: Path) -> None:
    added = text_of(folder).replace("library_name:", "license: mit\nlibrary_name:", 1)
    (folder / README).write_text(added)
    add_figures(folder, report(0.5))
    assert metadata(folder)["license"] == "mit"
    own = text_of(folder).replace(MARK, "I tried it on my desk.")
    (folder / README).write_text(own)
    add_figures(folder, report(0.9))
    assert text_of(folder) == own
    assert read_description(folder)["card"]["figures"][0]["measures"]["success"]["value"] == 0.9


def test_a_benchmark_adds_its_figures_unless_asked_not_to(
    folder: Path, tiny_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["benchmark", "latent_actions", f"checkpoint={folder.parent}", f"data.path={tiny_store}"]
    assert cli.main([*line, "card=false"]) == 0
    assert "None yet" in text_of(folder)
    assert cli.main(line) == 0
    assert "`embodied-wm benchmark latent_actions`" in text_of(folder)
    assert "| r2 |" in text_of(folder)
    capsys.readouterr()
    assert cli.main(["inspect", str(folder.parent)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "World-action model of" in page
    assert "delta_psnr" in page
    assert "Written by embodied-wm" not in page


def test_a_folder_without_a_model_gets_no_figures(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder that can be opened"):
        add_figures(tmp_path / "nowhere", report(0.5))
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        add_figures(tmp_path, report(0.5))
    assert list(tmp_path.iterdir()) == []


# The Hub


class FakeHub:
    """Keep repositories as folders, as the Hub's API does."""

    def __init__(self, root: Path) -> None:
        self.root, self.uploads = root, []

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id, private=options["private"])

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.uploads.append({"repo_id": repo_id, **options})
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        if not (self.root / repo_id).is_dir():
            raise LocalEntryNotFoundError("offline")
        copy = self.root / "cache" / repo_id
        copy.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            shutil.copy(self.root / repo_id / name, copy)
        return str(copy)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub_mixin, "HfApi", lambda token: fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_model_goes_to_the_hub_and_comes_back_the_same(fake_hub: FakeHub) -> None:
    model = tiny.make_model()
    model.card = {"seed": 0, "store": "/somewhere/of/mine/dot.zarr"}
    url = model.push_to_hub("me/dots", private=True, model_card_kwargs={"license": "mit"})
    assert url == "https://hub/me/dots/commit/1"
    pushed = fake_hub.root / "me/dots"
    assert sorted(path.name for path in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "somewhere" not in text_of(pushed) + (pushed / "config.json").read_text()
    assert metadata(pushed)["license"] == "mit"
    (pushed / "pytorch_model.bin").write_bytes(b"never fetched")
    again = WorldModel.from_pretrained("me/dots", revision="main")
    assert not (fake_hub.root / "cache/me/dots/pytorch_model.bin").exists()
    assert again.fingerprint() == model.fingerprint()
    assert again.card["store"] == "dot.zarr"
    assert model.card["store"].startswith("/somewhere")
    assert not again.training


def test_models_are_loaded_from_folders_of_this_machine(folder: Path, tmp_path: Path) -> None:
    model = WorldModel.from_pretrained(folder)
    assert WorldModel.from_pretrained(str(folder.parent)).fingerprint() == model.fingerprint()  # a run folder
    assert model.save_pretrained(tmp_path / "given") is None
    assert WorldModel.from_pretrained(tmp_path / "given").fingerprint() == model.fingerprint()
    assert str(model.generate_model_card(license="mit")).replace("license: mit\n", "") == text_of(folder)


def test_saving_for_others_leaves_a_whole_model_when_it_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = tiny.make_model()
    torch.nn.init.zeros_(other.predictor.slots)
    monkeypatch.setattr(Path, "write_bytes", _full_disk)
    with pytest.raises(CheckpointError, match="what it held before is intact"):
        other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _full_disk(path: Path, content: bytes) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nobody/nothing", "no folder here, and as the name of a model on the Hugging Face Hub it is not in the cache"),
        ("a/b/c", r"no such folder: a/b/c. Give the folder that `embodied-wm train` wrote, or OWNER/NAME"),
    ],
)
def test_models_that_do_not_exist(fake_hub: FakeHub, place: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.count("/") > 1:
        monkeypatch.undo()  # the Hub's own check of names needs no network
    with pytest.raises(CheckpointError, match=words):
        WorldModel.from_pretrained(place)


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="not one of ours"):
        WorldModel.from_pretrained(tmp_path)


def test_a_configuration_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other than the model's own"):
        tiny.make_model().save_pretrained(tmp_path, config={"width": 3})


def test_every_kind_of_report_with_a_checkpoint_has_figures_for_a_card() -> None:
    assert set(model_card.SHOWN) == {"imagination", "planning", "speed", "latent_actions"}


def test_a_shared_card_names_stores_without_their_folders() -> None:
    card = {"store": "data/push.zarr", "refinement": [{"round": 1, "store": "runs/refine/a/episodes.zarr"}]}
    assert without_places(card) == {"store": "push.zarr", "refinement": [{"round": 1, "store": "episodes.zarr"}]}
    assert without_places({"store": "s3://all/push.zarr", "seed": 0}) == {"store": "s3://all/push.zarr", "seed": 0}


def test_figures_of_unusual_settings_do_not_enter_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ["benchmark", "imagination", "task=reach", f"checkpoint={folder}", "objective=latent"]
    fewer = ["imagination.num_branch_points=2", "imagination.num_candidates=6", "imagination.context=3"]
    assert cli.main([*usual, "imagination.horizon=3", *fewer]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "its figures are of usual settings, without imagination.num_candidates=6, imagination.horizon=3" in told
    assert "imagination.context" not in told  # which was given as it is anyway
    assert "None yet" in text_of(folder)


def test_another_environments_id_is_no_unusual_setting() -> None:
    given = {"task": "gym", "id": "FetchPush-v4", "checkpoint": "model"}
    for name in ("benchmark_imagination", "benchmark_planning", "benchmark_speed"):
        usual = {key: value for key, value in given.items() if key in verbs.USUAL}
        assert cli.flat_values(cli.compose_config(name, usual)[0])["task.name"] == "FetchPush-v4"
