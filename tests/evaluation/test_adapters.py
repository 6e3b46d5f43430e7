"""Models that are not ours, through the command line's adapter: the recurrent example, tiny, and what goes wrong."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import known
import numpy as np
import pytest
import tiny
import torch

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged, make_model_agent
from embodied_wm.evaluation.planning import Arena
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.collect import collect, features
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "judge_recurrent.py"
REACH = get_task("reach")
PLANNER = CEM(horizon=2, num_candidates=8, num_iterations=1, num_elites=4, num_kept=1)
SETUP = PlanningSetup(task="reach", planner=PLANNER, objective="state", weights=StepWeights(), adapter=f"{SCRIPT}:load")


@pytest.fixture(scope="module")
def recurrent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge_recurrent", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(recurrent: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what one step of training on three short episodes leaves."""
    folder = tmp_path_factory.mktemp("recurrent")
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in features(REACH, 64, "top").items()
    }
    episodes = collect("reach", num_episodes=3, seed=5, num_workers=1, num_rows=12)
    with EpisodeStore.create(folder / "reach.zarr", features=specs, fps=REACH.fps, metadata={}) as store:
        store.append([Episode(features=episode["features"], info=episode["info"]) for episode in episodes])
        recurrent.train(store, folder / "gru.pt", seconds=0.0, batch_size=2)
    return folder / "gru.pt"


@pytest.mark.render
def test_the_command_line_judges_a_foreign_model(checkpoint: Path, tmp_path: Path) -> None:
    sizes = {"num_branch_points": 2, "num_candidates": 6, "horizon": 3, "context": 2}
    arguments = [f"imagination.{name}={value}" for name, value in sizes.items()]
    arguments += ["planner.horizon=2", "planner.num_candidates=8", "planner.num_iterations=1", "planner.num_elites=4"]
    common = ["task=reach", f"checkpoint={checkpoint}", f"adapter={SCRIPT}:load", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["benchmark", "imagination", *common, *arguments]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    measured = report["tasks"]["reach"]
    assert {"psnr", "psnr_ceiling", "state_error", "spearman", "elite_regret", "stability"} <= set(measured)
    absent = {row[0]: row[1] for row in report["sections"][-1]["table"]["rows"]}
    assert absent["spread_skill"] == "the model imagines a future in one way alone"
    assert report["run"]["config"]["adapter"].endswith("judge_recurrent.py:load")


@pytest.mark.render
def test_a_foreign_model_plans_within_its_bounds(checkpoint: Path) -> None:
    agent = make_model_agent(checkpoint, SETUP)
    assert isinstance(agent, ModelAgent)
    arena = Arena(REACH, image_size=(64, 64), camera="top")
    cost, film, _ = arena.run(agent, evaluation_pairs("reach", 1, 0)[0])
    arena.close()
    assert len(cost) == REACH.episode_steps + 1
    assert film is not None
    actions = torch.stack(list(agent.actions))
    assert (actions >= agent.model.action_low).all()
    assert (actions <= agent.model.action_high).all()
    assert len(agent.seconds) == REACH.episode_steps


def test_the_example_imagines_what_it_would_see(checkpoint: Path) -> None:
    """Where frames are what it expects, seeing them and imagining them lead to the same states."""
    model = load_judged(checkpoint, SETUP)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    codes, past = model.encode(frames), torch.rand(2, 2)
    actions = torch.rand(5, 4, 2)
    states = model.imagine(model.prefill(codes, past), actions)
    expected_codes = states[..., : codes.shape[-1]]
    every = torch.cat([codes.expand(5, *codes.shape), expected_codes], dim=1)
    seen = model.observe(every, torch.cat([past.expand(5, *past.shape), actions], dim=1))
    assert seen is not None
    torch.testing.assert_close(seen[:, 3:], states, atol=1e-5, rtol=1e-5)
    frames_imagined = model.decode(states, frames[-1])
    assert frames_imagined is not None
    assert frames_imagined.shape == (5, 4, 64, 64, 3)


@known.OF_ANOTHER_TASK
def test_a_model_of_ours_that_is_of_another_task_is_refused(changes: dict[str, Any], message: str) -> None:
    WorldModel(tiny.MODEL, replace(tiny.make_model().embodiment, **changes)).save("model")
    setup = replace(SETUP, adapter=None, objective="latent")
    with pytest.raises(ValueError, match=f"the model {message}.*Use a checkpoint that was trained on reach"):
        load_judged(Path("model"), setup)


def test_a_foreign_model_of_another_task_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="the model wants actions of size 2; drawer has 3: "):
        load_judged(checkpoint, replace(SETUP, task="drawer"))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("no_such_package:load", "No module named 'no_such_package'"),
        ("nowhere.py:load", "No such file"),
        (f"{SCRIPT}:fetch", "no attribute 'fetch'"),
        ("load", "cannot be loaded"),
    ],
)
def test_adapters_that_cannot_be_found_are_explained(checkpoint: Path, adapter: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        load_judged(checkpoint, replace(SETUP, adapter=adapter))
    assert "JudgedModel" in str(found.value)


def test_baselines_of_our_latents_are_refused_for_a_foreign_model(checkpoint: Path, tmp_path: Path, capsys) -> None:
    arguments = ["task=reach", f"checkpoint={checkpoint}", f"adapter={SCRIPT}:load", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["benchmark", "planning", *arguments, "planning.controllers=[behaviour_cloning]"]) == 1
    assert "leave them out of planning.controllers" in " ".join(capsys.readouterr().err.split())


def test_imagination_is_in_the_precision_that_is_asked_for(checkpoint: Path) -> None:
    tiny.make_model().save("model")
    setup = replace(SETUP, adapter=None, objective="latent", precision="int8")
    model = load_judged(Path("model"), setup)
    assert isinstance(model, JudgedWorldModel)
    assert model.world_model.predictor.transformer.precision == "int8"
    with pytest.raises(ValueError, match=r"precision=int8.*the model of adapter=.* chooses its own; leave them"):
        load_judged(checkpoint, replace(SETUP, precision="int8"))
