"""What cannot be trained is refused before anything is: settings, stages, and episodes, those held out too."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family
from embodied_wm.goal_policy import GoalPolicyConfig
from embodied_wm.temporal_distance import TemporalDistanceConfig
from embodied_wm.training.config import TrainConfig
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.labels import labelled_members
from embodied_wm.training.loop import KeepConfig, StageConfig
from embodied_wm.training.observer import WatchConfig
from embodied_wm.training.refine import RefineConfig
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import train_world_model
from embodied_wm.types import Episode

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labelled_fraction", 5),
        ("labelled_fraction", -0.5),
        ("labelled_fraction", 0),
        ("labelled_fraction", NAN),
        ("code_fraction", 1.5),
        ("code_fraction", -0.1),
        ("held_out_fraction", 0),
        ("held_out_fraction", 1),
        ("sequence_length", 1),
        ("memory_budget_mb", -1),
    ],
)
def test_settings_of_a_training_have_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}: expected "):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", -1),
        ("batch_size", 0),
        ("accumulate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", NAN),
        ("decay_fraction", 0),
        ("weight_decay", -1),
        ("warmup_steps", -1),
        ("clip_norm", 0),
        ("ema_decay", 1.0),
        ("num_threads", -1),
    ],
)
@pytest.mark.parametrize("kind", [StageConfig, DistillationConfig, SelfForcingConfig])
def test_settings_of_a_stage_have_ranges(kind: type[StageConfig], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}: expected "):
        kind(**{name: value})  # type: ignore[arg-type]


def test_settings_of_what_is_kept_and_of_refinement_have_ranges() -> None:
    with pytest.raises(ValueError, match="evaluate_every=-1: expected 0 or more"):
        KeepConfig(evaluate_every=-1)
    with pytest.raises(ValueError, match="num_held_out=0: expected 1 or more"):
        KeepConfig(num_held_out=0)
    with pytest.raises(ValueError, match=r"code_fraction=1.5: expected a part in \[0, 1\]"):
        RefineConfig(code_fraction=1.5)
    with pytest.raises(ValueError, match="sequence_length=1: expected 2 or more"):
        RefineConfig(sequence_length=1)


def test_ends_of_ranges_are_taken() -> None:
    assert TrainConfig(labelled_fraction=1, code_fraction=0, sequence_length=2).labelled_fraction == 1
    assert StageConfig(num_steps=0, batch_size=1, learning_rate=0, ema_decay=0, clip_norm=float("inf")).num_steps == 0


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (("goal_policy",), r"stages=\[goal_policy\] would train nothing: goal_policy needs model.goal_policy.width"),
        (("temporal_distance",), r"train nothing: temporal_distance needs model.temporal_distance.components"),
        (("distillation", "self_forcing"), r"distillation needs trainer.distillation.num_steps above 0; self_forcing"),
        (("predictor", "readouts"), r"leaves out the tokenizer.*start_from=MODEL"),
    ],
)
def test_stages_of_no_use_are_refused(
    tiny_store: Path, tmp_path: Path, together: bool, stages: tuple[str, ...], says: str
) -> None:
    model = replace(tiny.MODEL, goal_policy=GoalPolicyConfig(), temporal_distance=TemporalDistanceConfig())
    config = replace(tiny.training(), distillation=DistillationConfig(), self_forcing=SelfForcingConfig())
    store = EpisodeStore.open(tiny_store)
    data, train = ({"dot": RobotStore(store=store)}, train_together) if together else (store, train_world_model)
    with pytest.raises(ValueError, match=says):
        train(data, model, config, tmp_path / "run", seed=0, stages=stages)  # type: ignore[operator]
    assert not (tmp_path / "run").exists()


def test_no_readouts_are_no_stage(tmp_path: Path) -> None:
    specs = {name: spec for name, spec in tiny.features().items() if name != "observation.state"}
    episodes = [tiny.episode(seed) for seed in range(4)]
    with EpisodeStore.create(tmp_path / "blind.zarr", features=specs, fps=10.0) as store:
        store.append([replace(each, features={name: each.features[name] for name in specs}) for each in episodes])
    with pytest.raises(ValueError, match=r"readouts needs a store with states or rewards"):
        train_world_model(
            EpisodeStore.open(tmp_path / "blind.zarr"),
            tiny.MODEL,
            tiny.training(),
            tmp_path / "run",
            seed=0,
            stages=["readouts"],
        )


def store_of(path: Path, episodes: list[Episode]) -> EpisodeStore:
    return EpisodeStore.open(tiny.write_store(path, episodes))


MEASURED = replace(tiny.training(), keep=KeepConfig(evaluate_every=1))
SHOWN = replace(tiny.training(), watch=WatchConfig(picture_every=1))


@pytest.mark.parametrize("config", [MEASURED, SHOWN], ids=["measured", "shown"])
@pytest.mark.parametrize("together", [False, True])
def test_held_out_actions_are_looked_at_before_training(tmp_path: Path, config: TrainConfig, together: bool) -> None:
    episodes = [tiny.episode(seed) for seed in range(6)]
    np.asarray(episodes[-1].features["action"])[3] = NAN
    store = store_of(tmp_path / "bad.zarr", episodes)
    data, train = ({"dot": RobotStore(store=store)}, train_together) if together else (store, train_world_model)
    with pytest.raises(ValueError, match=r"bad\.zarr: 'action' is not finite in episode 5, row 3"):
        train(data, tiny.MODEL, config, tmp_path / "run", seed=0)  # type: ignore[operator]
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


def test_held_out_episodes_that_are_too_short_are_told_before_training(tmp_path: Path) -> None:
    store = store_of(tmp_path / "short.zarr", [*(tiny.episode(seed) for seed in range(5)), tiny.episode(5, rows=4)])
    with pytest.raises(
        ValueError, match=r"short\.zarr, held-out episodes: .*window of 6 rows: episodes 5 \(4 rows\).*sequence_length"
    ):
        train_world_model(store, tiny.MODEL, MEASURED, tmp_path / "run", seed=0)
    assert not list((tmp_path / "run").glob("**/*.safetensors"))
    train_world_model(store, tiny.MODEL, tiny.training(), tmp_path / "unmeasured", seed=0)


def test_training_episodes_that_are_too_short_are_counted(tmp_path: Path) -> None:
    lengths = (12, 12, 4, 12, 4, 12)
    store = store_of(tmp_path / "some.zarr", [tiny.episode(seed, rows=rows) for seed, rows in enumerate(lengths)])
    told = io.StringIO()
    train_world_model(store, tiny.MODEL, tiny.training(), tmp_path / "run", seed=0, console=Console(file=told))
    assert "note: 2 of 5 training episodes of " in told.getvalue()
    assert "some.zarr are shorter than a window of 6 rows" in told.getvalue()
    every = store_of(tmp_path / "every.zarr", [tiny.episode(seed, rows=4) for seed in range(3)])
    with pytest.raises(ValueError, match=r"every\.zarr, training episodes: Every episode is shorter.*0 \(4 rows\)"):
        train_world_model(every, tiny.MODEL, tiny.training(), tmp_path / "none", seed=0)


def test_stages_want_windows_of_their_own_alone(tmp_path: Path) -> None:
    """Readouts look at single frames: episodes too short for the predictor's windows teach them all the same."""
    whole = store_of(tmp_path / "whole.zarr", [tiny.episode(seed) for seed in range(4)])
    base = train_world_model(whole, tiny.MODEL, tiny.training(), tmp_path / "base", seed=0)
    short = store_of(tmp_path / "short.zarr", [tiny.episode(seed, rows=4) for seed in range(4)])
    train_world_model(short, tiny.MODEL, tiny.training(), tmp_path / "a", seed=0, start_from=base, stages=["readouts"])
    robots, known = {"dot": RobotStore(store=short)}, Family({"dot": base})
    train_together(robots, tiny.MODEL, tiny.training(), tmp_path / "b", seed=0, start_from=known, stages=["readouts"])
    says = "Every episode is shorter than a window of 6 rows"
    rest = {"seed": 0, "stages": ["predictor"]}
    with pytest.raises(ValueError, match=says):
        train_world_model(short, tiny.MODEL, tiny.training(), tmp_path / "c", start_from=base, **rest)
    with pytest.raises(ValueError, match=says):
        train_together(robots, tiny.MODEL, tiny.training(), tmp_path / "d", start_from=known, **rest)


def test_actions_that_may_not_be_read_need_not_be_numbers(tmp_path: Path) -> None:
    labelled = labelled_members(5, 2, 0)
    episodes = [tiny.episode(seed) for seed in range(6)]
    for place in set(range(5)) - set(labelled):
        episodes[place].features["action"][:] = np.nan
    store = EpisodeStore.open(tiny.write_store(tmp_path / "some.zarr", episodes))
    model = train_world_model(store, tiny.MODEL, tiny.training(2, labelled_fraction=0.4), tmp_path / "run", seed=0)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
