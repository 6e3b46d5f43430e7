"""Refinement of a model: old and new in a fixed share, statistics and latents as they were, resumed bit for bit."""

from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.data.store import EpisodeStore
from embodied_wm.training import losses
from embodied_wm.training.labels import labelled_members, labelled_of_card
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.refine import RefineConfig, mixed, refine_model
from embodied_wm.world_model import WorldModel

CONFIG = RefineConfig(predictor_steps=6, readout_steps=4, batch_size=8, new_share=0.25, sequence_length=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentEpisodes, LatentEpisodes]:
    model, folder = tiny.make_model(), tmp_path_factory.mktemp("stores")
    found = []
    for name, seeds in (("old", range(4)), ("new", range(10, 13))):
        store = EpisodeStore.open(tiny.write_store(folder / name, [tiny.episode(seed) for seed in seeds]))
        features = ["action", "observation.state"]
        found.append(
            LatentEpisodes(
                store, model.tokenizer, camera=tiny.CAMERA, episodes=range(store.num_episodes), features=features
            )
        )
    return found[0], found[1]


def run(data: tuple[LatentEpisodes, LatentEpisodes], folder: Path, config: RefineConfig = CONFIG) -> WorldModel:
    model = tiny.make_model()
    refine_model(model, *data, config, folder, seed=0)
    return model


def test_batches_hold_old_and_new_in_the_share_asked_for(data: tuple[LatentEpisodes, LatentEpisodes]) -> None:
    old, new = data
    batch = mixed(old.sampler(length=6, batch_size=6, seed=0), new.sampler(length=6, batch_size=2, seed=1))(3)
    assert batch["latents"].shape == (8, 6, 1, 8)

    def is_of(rows: Tensor, source: LatentEpisodes) -> bool:
        return bool((source.features["observation.state"] == rows[0]).all(1).any())

    states = batch["observation.state"]
    assert [is_of(rows, old) for rows in states] == [True] * 6 + [False] * 2
    assert [is_of(rows, new) for rows in states] == [False] * 6 + [True] * 2


def test_only_the_predictor_and_the_readouts_change(
    data: tuple[LatentEpisodes, LatentEpisodes], tmp_path: Path
) -> None:
    before, after = tiny.make_model().state_dict(), run(data, tmp_path).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"predictor", "readouts"}
    fitted = [name for name in before if name.endswith(("change_std", ".mean", ".std", "latent_mean", "latent_std"))]
    assert len(fitted) >= 5
    assert all(torch.equal(before[name], after[name]) for name in fitted)


def test_a_round_that_was_stopped_goes_on_bit_for_bit(
    data: tuple[LatentEpisodes, LatentEpisodes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole")
    calls = 0
    original: Callable = losses.conditioning

    def stops(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(losses, "conditioning", stops)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "parts")
    again = run(data, tmp_path / "parts")
    assert calls == 4 + 3  # three steps were done, the fourth was stopped; four remained
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_labels_that_training_withheld_are_withheld_again(
    data: tuple[LatentEpisodes, LatentEpisodes], tmp_path: Path
) -> None:
    old, new = data
    card = {"seed": 9, "labelled_seed": 3, "episodes": 4, "labelled_episodes": 1}
    (chosen,) = labelled_of_card(card) or set[int]()
    found = []
    for name, offset in (("as it is", 0.0), ("others", 5.0), ("its own", 5.0)):
        model, changed = tiny.make_model(), copy(old)
        model.card = card
        rows = old.rows_of(chosen)
        is_touched = torch.zeros(len(old.latents), dtype=torch.bool)
        is_touched[rows] = True
        is_touched = is_touched if name == "its own" else ~is_touched
        changed.features = {key: values + offset * is_touched[:, None] for key, values in old.features.items()}
        refine_model(model, changed, new, CONFIG, tmp_path / name, seed=0)
        found.append(model.fingerprint())
    assert found[0] == found[1]  # neither actions nor states of the other episodes are read
    assert found[0] != found[2]


def test_what_a_card_says_of_labels() -> None:
    assert labelled_of_card({"seed": 0}) is None
    assert labelled_of_card({"seed": 0, "episodes": 4, "labelled_episodes": 4}) is None
    assert labelled_of_card({"seed": 3, "episodes": 10, "labelled_episodes": 2}) == set(labelled_members(10, 2, 3))


def test_what_was_trained_on_video_alone_is_refused(
    data: tuple[LatentEpisodes, LatentEpisodes], tmp_path: Path
) -> None:
    model = tiny.make_model()
    model.card = {"seed": 0, "episodes": 4, "labelled_episodes": 0}
    with pytest.raises(ValueError, match="trained without the labels of these episodes"):
        refine_model(model, *data, CONFIG, tmp_path, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
def test_a_share_that_leaves_one_kind_out_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="leaves no old or no new window"):
        RefineConfig(new_share=share)
