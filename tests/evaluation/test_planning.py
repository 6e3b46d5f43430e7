"""The judge of planning: the oracle reaches, doing nothing does not, and the model's agent acts within bounds."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

from embodied_wm.commands.benchmarks import planning_agents, split_of, training_latents
from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.baselines import BaselineConfig
from embodied_wm.evaluation.lineup import PlanningSetup, line_up, train_baselines
from embodied_wm.evaluation.oracle import OracleDynamics, task_cost
from embodied_wm.evaluation.planning import Arena, measure_agents, run_agents, time_decisions
from embodied_wm.evaluation.speed import SpeedConfig, measure_speed
from embodied_wm.training.labels import labelled_members
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel
from planners import Cautious, Gradient, Polished, Proposing
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

PLANNER = CEM(horizon=6, num_candidates=48, num_iterations=3, num_elites=8)
SETUP = PlanningSetup(task="reach", planner=PLANNER, objective="latent", weights=StepWeights())


@pytest.mark.render
def test_oracle_reaches_and_zero_does_not(tiny_checkpoint: Path) -> None:
    makers = line_up(tiny_checkpoint, SETUP)
    wanted = {name: makers[name] for name in ("oracle", "random", "zero")}
    runs = run_agents(
        get_task("reach"), wanted, num_episodes=4, seed=0, image_size=(64, 64), camera="top", num_workers=1
    )
    assert runs["oracle"].success.all()
    assert not runs["zero"].success_any.any()
    assert runs["oracle"].final_cost_m.max() < 0.02 < runs["zero"].final_cost_m.min()
    measures = measure_agents({**runs, "model": runs["zero"]}, {}, planned_steps=864, seed=0)
    assert measures["cpg"]["value"] == 1.0
    assert measures["success.oracle"]["n"] == 4


@pytest.mark.render
def test_model_agent_is_repeatable_and_within_bounds(tiny_checkpoint: Path) -> None:
    model = WorldModel.load(tiny_checkpoint)
    size = model.config.tokenizer.image_size
    planner = CEM(horizon=2, num_candidates=8, num_iterations=1, num_elites=2, num_kept=1)
    setup = PlanningSetup(task="reach", planner=planner, objective="latent", weights=StepWeights(), context=2)
    costs = []
    for _ in range(2):
        arena = Arena(get_task("reach"), image_size=size, camera="top")
        costs.append(arena.run(line_up(tiny_checkpoint, setup)["model"](), evaluation_pairs("reach", 1, 0)[0])[0])
        arena.close()
    assert np.array_equal(costs[0], costs[1])
    agent = line_up(tiny_checkpoint, setup)["model"]()
    seconds = time_decisions(get_task("reach"), agent, num_episodes=1, seed=0, image_size=size, camera="top")
    assert len(seconds) == get_task("reach").episode_steps
    assert (seconds > 0).all()


def test_baselines_learn_from_where_the_store_is_now(tiny_checkpoint: Path, tiny_store: Path) -> None:
    """A model that ships names its store without the folder, so somebody has to say where it is."""
    model, console = WorldModel.load(tiny_checkpoint), Console(quiet=True)
    model.card["store"] = "moved.zarr"
    with pytest.raises(StoreError, match=r"moved\.zarr"):
        training_latents(model, console)
    assert training_latents(model, console, str(tiny_store)).num_episodes > 0
    model.embodiment = replace(model.embodiment, action_names=("up", "right"))  # as of another robot with two
    with pytest.raises(ValueError, match=r"trained on actions named up, right; the store has a, b\. Use"):
        training_latents(model, console, str(tiny_store))


def test_held_out_is_what_this_models_training_held_out(tmp_path: Path) -> None:
    """Another share than the default must not let a benchmark measure on episodes that were trained on."""
    store = EpisodeStore.open(tiny.write_store(tmp_path / "s.zarr", [tiny.episode(seed) for seed in range(20)]))
    config = tiny.training(held_out_fraction=0.05)
    model = train_world_model(store, tiny.PLAIN, config, tmp_path / "run", seed=0, stages=["tokenizer"])
    assert split_of(model, store) == (list(range(19)), [19])
    assert training_latents(model, Console(quiet=True)).num_episodes == 19
    other = EpisodeStore.open(tiny.write_store(tmp_path / "o.zarr", [tiny.episode(seed) for seed in range(30, 50)]))
    assert split_of(model, other) == (list(range(18)), [18, 19])


def test_baselines_learn_from_the_labels_that_the_model_had(tiny_checkpoint: Path, tiny_store: Path) -> None:
    model, console = WorldModel.load(tiny_checkpoint), Console(quiet=True)
    mark = EpisodeStore.open(tiny_store).fingerprint()
    model.card |= {"fingerprint": mark, "episodes": 5, "labelled_episodes": 2, "labelled_seed": 3}
    assert list(training_latents(model, console, str(tiny_store)).episodes) == labelled_members(5, 2, 3)
    model.card["labelled_episodes"] = 0
    with pytest.raises(ValueError, match=r"without the labels of .* leave them out of planning\.controllers"):
        training_latents(model, console, str(tiny_store))


@pytest.mark.render
def test_baselines_train_and_act(tiny_checkpoint: Path, tiny_store: Path, tmp_path: Path) -> None:
    model = WorldModel.load(tiny_checkpoint)
    store = EpisodeStore.open(tiny_store)
    data = LatentEpisodes(store, model.tokenizer, camera=model.embodiment.camera, episodes=[0, 1], features=["action"])
    config = BaselineConfig(width=16, stage=StageConfig(num_steps=3, batch_size=8))
    makers = train_baselines(tiny_checkpoint, data, tmp_path, task="reach", seed=0, config=config)
    assert set(makers) == {"behaviour_cloning", "inverse_dynamics"}
    size = model.config.tokenizer.image_size
    agent = makers["inverse_dynamics"]()
    agent.begin(np.zeros((*size, 3), np.uint8), np.zeros(5), 0)
    action = agent.act(np.full((*size, 3), 200, np.uint8), np.zeros(5))
    assert (action >= model.action_low.numpy()).all()
    assert (action <= model.action_high.numpy()).all()


def test_oracle_dynamics_agree_with_the_simulator_and_its_cost_with_the_tasks() -> None:
    task = get_task("push")
    start, goal, _ = evaluation_pairs("push", 1, 0)[0]
    actions = torch.rand(3, 4, task.action_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantities = OracleDynamics(task).imagine(start, actions)
    assert quantities.shape == (3, 4, len(task.quantities))
    goal_quantities = task.state_quantities(goal)
    expected = task.planning_cost(quantities.numpy(), goal_quantities)
    assert np.array_equal(task_cost(task, goal_quantities)(quantities).numpy(), expected)


def test_speed_rows_say_that_cached_equals_uncached(tiny_checkpoint: Path) -> None:
    model = WorldModel.load(tiny_checkpoint)
    config = SpeedConfig(num_candidates=[4], context_frames=[1, 2], denoising_steps=[1], horizon=2, repeats=1)
    speed = measure_speed(model, config)
    assert speed["imagine"]
    assert all(row["relative_difference"] < 1e-4 for row in speed["imagine"])
    assert speed["matmul_flops"] > 0
    assert all(0 < row["utilisation"] < 2 and row["flops"] > 0 for row in speed["imagine"])


def test_makers_can_travel_to_other_processes(tiny_checkpoint: Path) -> None:
    assert all(isinstance(make, partial) for make in line_up(tiny_checkpoint, SETUP).values())


def test_controllers_that_could_not_run_are_refused_before_any_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rest = (tmp_path,)
    given = {"seed": 0, "console": Console(quiet=True)}
    with pytest.raises(ValueError, match=r"planning.controllers=\[\]: expected at least one of: model, oracle"):
        planning_agents(None, tiny_checkpoint, SETUP, [], *rest, **given)
    polished = Polished(planner=PLANNER, polish=Gradient(horizon=6))
    for planner in (Gradient(), Cautious(planner=polished), Proposing(planner=PLANNER)):
        setup = replace(SETUP, planner=planner)
        with pytest.raises(
            ValueError, match=f"{type(planner).__name__} wants gradients or proposals, which MuJoCo does"
        ):
            planning_agents(None, tiny_checkpoint, setup, ["model", "oracle"], *rest, **given)
        assert set(planning_agents(None, tiny_checkpoint, setup, ["model", "zero"], *rest, **given)) == {
            "model",
            "zero",
        }
    with pytest.raises(ValueError, match=r"task\.proposals=-3: expected 0"):
        replace(SETUP, proposals=-3)
