"""The optional stages of the predictor: left out by default, resumed bit for bit, in refinement too, refused early."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor.self_forcing import Rollouts
from embodied_wm.training import forcing, refine
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.refine import RefineConfig, refine_model
from embodied_wm.training.stages import STAGES
from embodied_wm.training.train import train_world_model

WITHOUT = replace(tiny.training(), distillation=DistillationConfig(), self_forcing=SelfForcingConfig())


def weights(model: tiny.WorldModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith("predictor")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_stages_without_steps_leave_no_trace(tmp_path: Path, tiny_store: Path) -> None:
    model = train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, WITHOUT, tmp_path, seed=3)
    assert {"distillation", "self_forcing"}.isdisjoint(model.card["steps"])
    assert {path.stem for path in (tmp_path / "stages").iterdir()} == set(STAGES) - {
        "distillation",
        "self_forcing",
    }


def test_each_stage_changes_the_predictor_alone(tmp_path: Path, tiny_store: Path) -> None:
    store, found = EpisodeStore.open(tiny_store), {}
    for name in ("neither", "distillation", "self_forcing"):
        config = WITHOUT if name == "neither" else replace(WITHOUT, **{name: getattr(tiny.training(), name)})
        found[name] = train_world_model(store, tiny.MODEL, config, tmp_path / name, seed=3).state_dict()
    for name in ("distillation", "self_forcing"):
        changed = {key for key in found[name] if not torch.equal(found[name][key], found["neither"][key])}
        assert {key.split(".")[0] for key in changed} == {"predictor"}
        assert "predictor.change_std" not in changed


def test_what_cannot_be_trained_is_refused_before_anything_is(tmp_path: Path, tiny_store: Path) -> None:
    store = EpisodeStore.open(tiny_store)
    regression = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, kind="regression"))
    with pytest.raises(ValueError, match="regression' has no such steps"):
        train_world_model(store, regression, tiny.training(), tmp_path / "a", seed=0)
    far = replace(tiny.training(), self_forcing=SelfForcingConfig(num_steps=2, rollouts=Rollouts(horizon=40)))
    with pytest.raises(ValueError, match="shorter than a window of 43 rows"):
        train_world_model(store, tiny.MODEL, far, tmp_path / "b", seed=0)
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="leaves no window to the stage's own loss"):
        SelfForcingConfig(share=0.01)


def test_regression_trains_on_its_own_contexts(tmp_path: Path, tiny_store: Path) -> None:
    regression = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, kind="regression"))
    config = replace(WITHOUT, self_forcing=tiny.training().self_forcing)
    model = train_world_model(EpisodeStore.open(tiny_store), regression, config, tmp_path, seed=0)
    assert model.card["metrics"]["self_forcing"]["own_last"] > 0


def test_a_round_of_refinement_with_both_stages_goes_on_bit_for_bit(
    tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RefineConfig(
        predictor_steps=2, distillation_steps=3, self_forcing_steps=3, readout_steps=2, batch_size=4, sequence_length=6
    )
    store, features = EpisodeStore.open(tiny_store), ["action", "observation.state"]

    def run(folder: Path) -> tiny.WorldModel:
        model = tiny.make_model()
        data = LatentEpisodes(store, model.tokenizer, camera=tiny.CAMERA, episodes=range(6), features=features)
        metrics = refine_model(model, data, data, config, folder, seed=0)
        assert list(metrics) == ["predictor", "distillation", "self_forcing", "readouts"]
        return model

    whole = run(tmp_path / "whole")
    for name in ("distillation_loss", "self_forced_loss"):
        calls, original = 0, getattr(forcing, name)

        def stops(*arguments: object, original=original, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(forcing, name, stops)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name)
        assert same(run(tmp_path / name).state_dict(), whole.state_dict())
    before = weights(tiny.make_model())
    assert not same(before, weights(whole))
    assert refine.RefineConfig().self_forcing_steps == 0
