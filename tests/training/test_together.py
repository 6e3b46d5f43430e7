"""Robots trained together: shared weights are one, own parts are apart, one robot alone is what it always was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family, shared_names
from embodied_wm.predictor.inputs import ActionInputs
from embodied_wm.training import forcing
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import train_world_model
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EpisodeStore]:
    """Return stores of two robots: actions of size 2 and 3, cameras of other names, episodes of other lengths."""
    folder = tmp_path_factory.mktemp("stores")
    wrist = "observation.images.wrist"
    three = [tiny.episode(seed, rows=17, action_size=3, camera=wrist) for seed in range(10, 15)]
    return {
        "two": EpisodeStore.open(tiny.write_store(folder / "two.zarr")),
        "three": EpisodeStore.open(tiny.write_store(folder / "three.zarr", three, action_size=3, camera=wrist)),
    }


def robots(stores: dict[str, EpisodeStore], **fractions: float) -> dict[str, RobotStore]:
    return {name: RobotStore(store=store, labelled_fraction=fractions.get(name)) for name, store in stores.items()}


@pytest.fixture(scope="module")
def trained(stores: dict[str, EpisodeStore], tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    folder = tmp_path_factory.mktemp("run")
    return train_together(robots(stores), tiny.MODEL, tiny.training(6), folder, seed=0), folder


def test_one_robot_is_trained_bit_for_bit_as_ever(stores: dict[str, EpisodeStore], tmp_path: Path) -> None:
    alone = train_world_model(stores["two"], tiny.MODEL, tiny.training(4), tmp_path / "alone", seed=3)
    one = {"two": RobotStore(store=stores["two"])}
    family = train_together(one, tiny.MODEL, tiny.training(4), tmp_path / "family", seed=3)
    assert family.for_robot("two").fingerprint() == alone.fingerprint()


def test_shared_weights_are_the_same_tensors_and_own_ones_are_not(trained: tuple[Family, Path]) -> None:
    two, three = (dict(trained[0].for_robot(name).named_parameters()) for name in ("two", "three"))
    shared = shared_names(trained[0].for_robot("two"))
    assert {name.split(".")[0] for name in shared} == {"tokenizer", "latent_actions", "predictor"}
    assert all(two[name] is three[name] for name in shared)
    assert not any(two[name] is three[name] for name in two.keys() & three.keys() - set(shared))
    assert two["predictor.real_in.0.weight"].shape[1] == 2
    assert three["predictor.real_in.0.weight"].shape[1] == 3


def test_robots_of_two_cameras_that_feel_have_backgrounds_and_guesses_of_their_own(tmp_path: Path) -> None:
    """A guess that both trained would be the last one's, and robots that feel more or less could not share at all."""
    cameras, stores = ("observation.images.top", "observation.images.wrist"), {}
    for name, size in (("two", 2), ("three", 3)):
        state = FeatureSpec(dtype="float32", shape=(size,))
        features = tiny.features() | {cameras[1]: tiny.features()[cameras[0]], "observation.state": state}
        with EpisodeStore.create(tmp_path / f"{name}.zarr", features=features, fps=10.0) as store:
            for seed in range(3):
                rows = dict(tiny.episode(seed).features)
                felt = np.resize(rows["observation.state"].T, (size, tiny.ROWS)).T
                seen = rows[cameras[0]] // size
                store.append(
                    [Episode(features={**rows, cameras[0]: seen, cameras[1]: seen, "observation.state": felt})]
                )
        stores[name] = RobotStore(store=EpisodeStore.open(tmp_path / f"{name}.zarr"), camera="+".join(cameras))
    tokenizer = replace(tiny.MODEL.tokenizer, cameras=2)
    config = replace(tiny.MODEL, tokenizer=tokenizer, proprioception="observation.state")
    family = train_together(stores, config, tiny.training(2), tmp_path / "run", seed=0)
    two, three = (dict(family.for_robot(name).named_parameters()) for name in stores)
    own = {f"tokenizer.parts.{place}.background" for place in range(2)} | {"proprioception.guess.line.weight"}
    assert all(two[name] is not three[name] for name in own)
    assert not own & set(shared_names(family.for_robot("two")))
    assert all(two[name] is three[name] for name in shared_names(family.for_robot("two")))
    assert [two["proprioception.guess.line.weight"].shape[0], three["proprioception.guess.line.weight"].shape[0]] == [
        2,
        3,
    ]
    assert Family.load(tmp_path / "run").for_robot("three").fingerprint() == family.for_robot("three").fingerprint()


def test_what_is_no_change_is_the_same_for_all_who_share_the_predictor(
    stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    config = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, shrinkage=0.3, fourier_features=4))
    family = train_together(robots(stores), config, tiny.training(4), tmp_path / "run", seed=0)
    two, three = (family.for_robot(name).predictor for name in ("two", "three"))
    assert two.zone is three.zone
    assert two.zone is not None
    assert float(two.zone) == pytest.approx(0.3 * float(two.change_std))
    assert float(two.change_std) != float(three.change_std)
    loaded = Family.load(tmp_path / "run").for_robot("three").predictor
    assert loaded.zone is not None
    assert torch.equal(loaded.zone, two.zone)


def test_every_robot_moves_its_own_parts_and_both_move_the_shared_ones(
    trained: tuple[Family, Path], stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    untrained = train_together(robots(stores), tiny.MODEL, tiny.training(6), tmp_path, seed=0, stages=())
    for name in trained[0]:
        before, after = untrained.for_robot(name).state_dict(), trained[0].for_robot(name).state_dict()
        for part in ("tokenizer.background", "adapter.to_code_network.0.weight", "predictor.real_in.0.weight"):
            assert not torch.equal(before[part], after[part]), (name, part)
        assert not torch.equal(before["tokenizer.latent_std"], after["tokenizer.latent_std"])
    fps = [model.actions.std for model in trained[0].models.values()]
    assert [len(std) for std in fps] == [2, 3]


def test_robots_that_share_a_predictor_infer_actions_each_of_its_own(
    stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    joint = replace(tiny.MODEL.predictor, joint_actions=True, action_token=True, clean_pass=True)
    config = replace(tiny.MODEL, predictor=joint)
    family = train_together(robots(stores), config, tiny.training(6), tmp_path / "run", seed=0)
    for name, size in {"two": 2, "three": 3}.items():
        model = family.for_robot(name)
        frames = torch.from_numpy(stores[name].read(model.embodiment.camera, 0, 4))
        assert model.infer_actions(frames).shape == (3, size)
        assert model.state_dict()["predictor.joint.out.weight"].any(), name  # zeros before it learns
    start = Family({"two": family.for_robot("two")})
    new = {"three": robots(stores)["three"]}
    adopted = train_together(
        new, config, tiny.training(6), tmp_path / "new", seed=0, start_from=start, stages=("adapter", "readouts")
    ).for_robot("three")
    assert adopted.state_dict()["predictor.joint.out.weight"].any()


def test_self_forcing_and_distillation_take_turns_as_the_predictor_does(
    stores: dict[str, EpisodeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One robot after the other, the weights that both share would be those of the last."""
    told: list[str] = []
    before = forcing.conditioning

    def noted(model: WorldModel, *arguments: Any, **others: Any) -> ActionInputs:
        told.append(model.embodiment.camera)
        return before(model, *arguments, **others)

    monkeypatch.setattr(forcing, "conditioning", noted)
    config = tiny.training(2)
    forced = replace(config.self_forcing, num_steps=30, share=1.0)
    config = replace(config, self_forcing=forced, distillation=replace(config.distillation, num_steps=0))
    train_together(robots(stores), tiny.MODEL, config, tmp_path / "run", seed=0)
    assert len(told) == 30
    assert len(set(told[:15])) == len(set(told[15:])) == 2
    assert (tmp_path / "run/stages/self_forcing.safetensors").is_file()
    assert not list((tmp_path / "run/stages").glob("distillation*"))


def test_members_load_alone_and_as_a_family(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    loaded = Family.load(folder)
    assert set(loaded) == {"two", "three"}
    for name in loaded:
        alone = WorldModel.load(folder / "robots" / name / "model")
        assert alone.fingerprint() == loaded.for_robot(name).fingerprint() == family.for_robot(name).fingerprint()
        assert alone.card["trained_together"] == ["two", "three"]
    with torch.no_grad():
        loaded.for_robot("two").predictor.slots.add_(1)
    assert torch.equal(loaded.for_robot("three").predictor.slots, loaded.for_robot("two").predictor.slots)


def test_interrupted_and_resumed_is_the_same(
    trained: tuple[Family, Path], stores: dict[str, EpisodeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embodied_wm.predictor.model import LatentPredictor

    original, calls = LatentPredictor.loss, []

    def stopped(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LatentPredictor, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_together(robots(stores), tiny.MODEL, tiny.training(6), tmp_path, seed=0)
    monkeypatch.undo()
    resumed = train_together(robots(stores), tiny.MODEL, tiny.training(6), tmp_path, seed=0)
    for name in resumed:
        assert resumed.for_robot(name).fingerprint() == trained[0].for_robot(name).fingerprint()


def test_video_alone_teaches_the_shared_parts_and_never_reads_its_labels(
    stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    wrist = "observation.images.wrist"
    other = [tiny.episode(seed, rows=17, action_size=3, camera=wrist) for seed in range(10, 15)]
    for each in other:
        each.features["action"][:] = 7.0  # type: ignore[index]
    changed = EpisodeStore.open(tiny.write_store(tmp_path / "other.zarr", other, action_size=3, camera=wrist))
    families = [
        train_together(
            robots(stores | {"three": store}, three=0.0), tiny.MODEL, tiny.training(3), tmp_path / name, seed=0
        )
        for name, store in (("a", stores["three"]), ("b", changed))
    ]
    for name in families[0]:
        assert families[0].for_robot(name).fingerprint() == families[1].for_robot(name).fingerprint()
    assert families[0].for_robot("three").card["labelled_episodes"] == 0


def test_what_is_felt_has_a_scale_without_labels_too(tmp_path: Path) -> None:
    stores: dict[str, EpisodeStore] = {}
    for name, offset in (("two", 0.0), ("video", 500.0)):
        episodes = [tiny.episode(seed) for seed in range(3)]
        for each in episodes:
            each.features["observation.state"][:] += offset
        stores[name] = EpisodeStore.open(tiny.write_store(tmp_path / f"{name}.zarr", episodes))
    config = replace(tiny.MODEL, proprioception="observation.state")
    family = train_together(robots(stores, video=0.0), config, tiny.training(2), tmp_path / "run", seed=0)
    felt = family.for_robot("video").proprioception
    assert felt is not None
    tokens = felt.encode(torch.from_numpy(stores["video"].read("observation.state", 0, 24)))
    assert tokens.abs().max() < 5


def test_a_new_robot_is_adopted_and_what_is_not_trained_stays(
    trained: tuple[Family, Path], stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    family = trained[0]
    before = {name: tensor.clone() for name, tensor in family.for_robot("two").named_parameters()}
    new = {"new": RobotStore(store=stores["three"])}
    adopted = train_together(
        new, tiny.MODEL, tiny.training(3), tmp_path, seed=1, stages=("adapter", "readouts"), start_from=family
    ).for_robot("new")
    own = dict(adopted.named_parameters())
    assert all(torch.equal(own[name], before[name]) for name in shared_names(adopted))
    assert not any(own[name] is each for name, each in family.for_robot("two").named_parameters())
    frames = torch.from_numpy(stores["three"].episode(0).features["observation.images.wrist"])
    assert float(adopted.encode(frames).std()) == pytest.approx(1, rel=0.5)  # its own statistics of latents
    assert adopted.actions.std.shape == (3,)


def test_a_known_robot_goes_on_from_all_its_weights(
    trained: tuple[Family, Path], stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    family = trained[0]
    again = train_together(
        robots(stores), tiny.MODEL, tiny.training(2), tmp_path, seed=1, stages=("readouts",), start_from=family
    )
    old, new = (each.for_robot("three").state_dict() for each in (family, again))
    assert {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])} == {"readouts"}


def test_what_does_not_fit_is_refused(
    trained: tuple[Family, Path], stores: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no robot 'four'.* two, three"):
        trained[0].for_robot("four")
    with pytest.raises(ValueError, match=r"labelled_fraction=1\.5"):
        RobotStore(store=stores["two"], labelled_fraction=1.5)
    with pytest.raises(ValueError, match="another robot"):
        train_together(
            {"two": RobotStore(store=stores["three"])},
            tiny.MODEL,
            tiny.training(),
            tmp_path,
            seed=0,
            start_from=trained[0],
        )
    wider = replace(tiny.MODEL, latent_actions=replace(tiny.MODEL.latent_actions, width=24))
    with pytest.raises(ValueError, match=r"cannot start from this model.*latent_actions"):
        train_together(robots(stores), wider, tiny.training(), tmp_path, seed=0, start_from=trained[0])
    apart = tmp_path / "apart"
    for name, folder in trained[0].models.items():
        folder.save(apart / name / "model")
    tiny.make_model().save(apart / "stranger" / "model")
    with pytest.raises(ValueError, match="do not share their weights"):
        Family.load(apart)
