"""What `start_from` takes over: robots are recognised, new ones get all parts that they need, or are refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family, shared_names
from embodied_wm.training.labels import labelled_members
from embodied_wm.training.stages import STAGES
from embodied_wm.training.together import SHARED_STAGES, RobotStore, train_together
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel

OWN = ("adapter.to_code_network.0.weight", "predictor.real_in.0.weight", "readouts.observation_state.bend.0.weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the store of a robot, and the run of a model of it, called as no store is."""
    folder = tmp_path_factory.mktemp("adoption")
    store = EpisodeStore.open(tiny.write_store(folder / "dot.zarr"))
    train_world_model(store, tiny.MODEL, tiny.training(4), folder / "2026-01-01", seed=0)
    return folder


def other_robot(path: Path, robot: str = "other", rows: int = 17) -> EpisodeStore:
    """Write a store of a robot with three actions, and open it."""
    wrist = "observation.images.wrist"
    episodes = [tiny.episode(seed, rows=rows, action_size=3, camera=wrist) for seed in range(10, 15)]
    features = tiny.features(action_size=3, camera=wrist)
    with EpisodeStore.create(path, features=features, fps=10.0, metadata={"robot": robot}) as store:
        store.append(episodes)
    return EpisodeStore.open(path)


def without_actions(path: Path) -> EpisodeStore:
    """Write a store of video alone, and open it."""
    specs = {tiny.CAMERA: tiny.features()[tiny.CAMERA]}
    episodes = [tiny.episode(seed) for seed in range(20, 24)]
    with EpisodeStore.create(path, features=specs, fps=10.0, metadata={"robot": "film"}) as store:
        store.append([replace(each, features={tiny.CAMERA: each.features[tiny.CAMERA]}) for each in episodes])
    return EpisodeStore.open(path)


def go_on(
    stores: dict[str, EpisodeStore],
    start_from: Family,
    run_dir: Path,
    stages: tuple[str, ...],
    console: Console | None = None,
    **fractions: float,
) -> Family:
    robots = {name: RobotStore(store=each, labelled_fraction=fractions.get(name)) for name, each in stores.items()}
    return train_together(
        robots,
        tiny.MODEL,
        tiny.training(3),
        run_dir,
        seed=1,
        stages=stages,
        start_from=start_from,
        console=console or Console(quiet=True),
    )


def changed(before: WorldModel, after: WorldModel) -> set[str]:
    """Return the parts of which a tensor differs."""
    old, new = before.state_dict(), after.state_dict()
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_a_model_is_known_under_whatever_name_its_run_has(folder: Path, tmp_path: Path) -> None:
    before, store = Family.load(folder / "2026-01-01"), EpisodeStore.open(folder / "dot.zarr")
    assert list(before) == ["dot"]
    console = Console(record=True, width=200, file=io.StringIO())
    after = go_on({"dot": store}, before, tmp_path / "run", ("predictor",), console).for_robot("dot")
    assert changed(WorldModel.load(folder / "2026-01-01" / "model"), after) == {"predictor"}
    assert "start_from: dot is known, all of its weights are taken over" in console.export_text()


@pytest.mark.parametrize("how", ["the same episodes", "the same robot"])
def test_a_model_is_known_by_its_episodes_and_by_its_robot(folder: Path, tmp_path: Path, how: str) -> None:
    before = Family.load(folder / "2026-01-01")
    model = before.for_robot("dot")
    episodes = None if how == "the same episodes" else [tiny.episode(seed) for seed in range(30, 34)]
    if how == "the same episodes":
        model.embodiment = replace(model.embodiment, robot="unknown")
    store = EpisodeStore.open(tiny.write_store(tmp_path / "copy.zarr", episodes))
    after = go_on({"copy": store}, before, tmp_path / "run", ("predictor",)).for_robot("copy")
    assert changed(model, after) == {"predictor"}


def test_units_stay_what_parts_that_are_not_trained_learnt_them_as(folder: Path, tmp_path: Path) -> None:
    """An adapter that is fitted to other episodes of a known robot changes nothing of what its predictor is told."""
    before = Family.load(folder / "2026-01-01")
    model = before.for_robot("dot")
    episodes = [tiny.episode(seed) for seed in range(30, 34)]
    slow = [replace(each, features={**each.features, "action": each.features["action"] / 5}) for each in episodes]
    store = EpisodeStore.open(tiny.write_store(tmp_path / "slow.zarr", slow))
    after = go_on({"slow": store}, before, tmp_path / "a", ("adapter", "readouts")).for_robot("slow")
    assert changed(model, after) == {"adapter", "readouts"}
    assert torch.equal(after.actions.std, model.actions.std)
    anew = go_on({"slow": store}, before, tmp_path / "b", STAGES).for_robot("slow")
    assert (anew.actions.std < model.actions.std / 2).all()
    assert (anew.action_high < model.action_high).all()


def test_a_model_that_ships_is_known_by_its_robot() -> None:
    family = Family.load("pretrained:push")
    assert [model.embodiment.robot for model in family.models.values()] == ["push"]


def test_other_robots_of_the_same_name_are_new(folder: Path, tmp_path: Path) -> None:
    """A single model's names are nobody's choice: what has another camera or other actions is another robot."""
    before, store = Family.load(folder / "2026-01-01"), other_robot(tmp_path / "dot.zarr", robot="dot")
    with pytest.raises(
        ValueError, match=r"knows not 'dot'.*leave its adapter and readouts untrained; it knows: dot \(dot, .*2 actions"
    ):
        go_on({"dot": store}, before, tmp_path / "a", ("predictor",))
    with pytest.raises(ValueError, match="leave its readouts untrained"):
        go_on({"dot": store}, before, tmp_path / "b", ("adapter", "predictor"))
    assert go_on({"dot": store}, before, tmp_path / "c", STAGES).for_robot("dot").embodiment.action_size == 3


def test_an_adopted_robot_is_told_its_real_actions_and_shared_weights_stay(folder: Path, tmp_path: Path) -> None:
    before, stores = Family.load(folder / "2026-01-01"), {"other": other_robot(tmp_path / "other.zarr")}
    shared = {name: tensor.clone() for name, tensor in before.for_robot("dot").named_parameters()}
    torch.manual_seed(1)
    fresh = dict(WorldModel(tiny.MODEL, replace(before.for_robot("dot").embodiment, action_size=3)).named_parameters())
    after = go_on(stores, before, tmp_path / "run", ("adapter", "readouts")).for_robot("other")
    own = dict(after.named_parameters())
    for name in OWN:
        assert not torch.equal(own[name], fresh[name]), name
    assert all(torch.equal(own[name], shared[name]) for name in shared_names(after))
    trains = {name for name, each in own.items() if each.requires_grad}
    assert trains == {name for name, each in fresh.items() if each.requires_grad}
    assert after.card["steps"]["real_actions"] == 3
    assert after.card["adopted"] == list(SHARED_STAGES)
    again = go_on(stores, before, tmp_path / "run", ("adapter", "readouts")).for_robot("other")  # resumed
    assert again.fingerprint() == after.fingerprint()


def test_labelled_episodes_too_short_for_real_actions_are_told_before_training(folder: Path, tmp_path: Path) -> None:
    labelled = labelled_members(4, 1, seed=1)[0]
    episodes = [tiny.episode(seed, rows=4 if seed == labelled else 12, action_size=3) for seed in range(5)]
    store = EpisodeStore.open(tiny.write_store(tmp_path / "short.zarr", episodes, action_size=3))
    before = Family.load(folder / "2026-01-01")
    with pytest.raises(ValueError, match=rf"labelled episodes: .*window of 6 rows: episodes {labelled} \(4 rows\)"):
        go_on({"short": store}, before, tmp_path / "run", ("adapter", "readouts"), short=0.25)
    assert not list((tmp_path / "run").glob("**/*.safetensors"))
    go_on({"short": store}, before, tmp_path / "all", ("adapter", "predictor", "readouts"), short=0.25)


def test_the_embedding_of_real_actions_is_learnt_by_the_predictors_own_loss(folder: Path, tmp_path: Path) -> None:
    """With the shared weights at rest, imagination follows the actions of a new robot better than without."""
    before, store = Family.load(folder / "2026-01-01"), other_robot(tmp_path / "other.zarr", rows=30)
    config = tiny.training(3)
    longer = replace(config, predictor=replace(config.predictor, num_steps=200, learning_rate=1e-2))
    train_together(
        {"other": RobotStore(store=store)},
        tiny.MODEL,
        longer,
        tmp_path / "run",
        seed=1,
        stages=("adapter", "readouts"),
        start_from=before,
        console=Console(quiet=True),
    )
    lines = [json.loads(line) for line in (tmp_path / "run/robots/other/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "real_actions"]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_a_robot_of_which_only_video_was_known_is_new_to_its_labels(folder: Path, tmp_path: Path) -> None:
    stores = {"dot": EpisodeStore.open(folder / "dot.zarr"), "other": other_robot(tmp_path / "other.zarr")}
    robots = {name: RobotStore(store=each) for name, each in stores.items()}
    robots["other"] = replace(robots["other"], labelled_fraction=0)
    before = train_together(robots, tiny.MODEL, tiny.training(2), tmp_path / "video", seed=0)
    with pytest.raises(ValueError, match=r"knows only video of 'other'.*adapter"):
        go_on({"other": stores["other"]}, before, tmp_path / "a", ("predictor", "readouts"))
    after = go_on({"other": stores["other"]}, before, tmp_path / "b", ("adapter", "readouts")).for_robot("other")
    old, new = before.for_robot("other").state_dict(), after.state_dict()
    assert all(not torch.equal(old[name], new[name]) for name in OWN)
    with pytest.raises(
        ValueError, match=r"train nothing: adapter needs a robot with labels, together.labelled above 0"
    ):
        go_on({"other": stores["other"]}, before, tmp_path / "d", ("adapter", "readouts"), other=0.0)
    still = go_on({"other": stores["other"]}, before, tmp_path / "c", ("temporal_distance",), other=0.0)
    assert changed(before.for_robot("other"), still.for_robot("other")) == {"temporal_distance"}


def test_the_folder_of_a_run_is_the_model_in_it_and_not_those_beside_it(folder: Path, tmp_path: Path) -> None:
    """A demo or a refinement keeps further models below its own."""
    model = WorldModel.load(folder / "2026-01-01" / "model")
    model.save(tmp_path / "model")
    tiny.make_model().save(tmp_path / "few_labels" / "model")
    assert Family.load(tmp_path).for_robot("dot").fingerprint() == model.fingerprint()


def test_video_without_actions_takes_part(folder: Path, tmp_path: Path) -> None:
    film, dot = without_actions(tmp_path / "film.zarr"), EpisodeStore.open(folder / "dot.zarr")
    robots = {"dot": RobotStore(store=dot), "film": RobotStore(store=film, labelled_fraction=0)}
    config = tiny.training(2)
    config = replace(
        config,
        keep=replace(config.keep, evaluate_every=1, num_held_out=4),
        watch=replace(config.watch, picture_every=1),
    )
    family = train_together(robots, tiny.MODEL, config, tmp_path / "run", seed=0, console=Console(quiet=True))
    seen = WorldModel.load(tmp_path / "run/robots/film/model")
    assert seen.fingerprint() == family.for_robot("film").fingerprint()
    assert seen.embodiment.action_size == 1
    assert seen.card["labelled_episodes"] == 0
    card = (tmp_path / "run/robots/film/model/README.md").read_text()
    assert "none: the video came without actions" in card
    assert "of them with action labels: 0" in card
    with pytest.raises(ValueError, match=r"film.zarr needs a feature 'action'.*together.labelled=\[1,0\]"):
        train_world_model(film, tiny.MODEL, config, tmp_path / "alone", seed=0)
