"""stable-worldmodel: our model behind its solvers, our planners over its models. Skipped where it is absent."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.world_model import WorldModel
from planners import CEM, StepWeights
from sim.tasks import get_task

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SIZE, HORIZON = 16, 3


def script(name: str, *needs: str) -> ModuleType:
    """Import a script, or skip where what it needs is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer warns of what else could be installed
        for package in needs:
            pytest.importorskip(package)
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def solvers() -> ModuleType:
    return script("swm_solvers", "stable_worldmodel")


@pytest.fixture
def judged(tiny_checkpoint: Path) -> JudgedWorldModel:
    model = WorldModel.load(tiny_checkpoint)
    return JudgedWorldModel(model, get_task("reach"), objective="latent", weights=StepWeights())


def info_of(seed: int, candidates: int) -> dict[str, Any]:
    """Return what a solver hands to a model: two environments, each repeated for every candidate."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 2, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    seen = {"pixels": frames[:, :1], "goal": frames[:, 1:]}
    return {name: value[:, None].expand(-1, candidates, *value.shape[1:]) for name, value in seen.items()}


def test_costs_are_those_of_our_own_planners(solvers: ModuleType, judged: JudgedWorldModel) -> None:
    """One context and one goal per environment, actions within bounds, and nothing is encoded twice."""
    info = info_of(0, 5)
    candidates = 3 * torch.randn(2, 5, HORIZON, 2, generator=torch.Generator().manual_seed(1))
    judged.reseed(0)
    costs = solvers.CostModel(judged).get_cost(info, candidates)
    judged.reseed(0)
    for number in range(2):
        context = judged.prefill(judged.encode(info["pixels"][number, 0]), torch.zeros(0, 2))
        actions = candidates[number].clamp(-1, 1)
        expected = judged.objective(info["goal"][number, 0, 0])(judged.imagine(context, actions), actions)
        torch.testing.assert_close(costs[number], expected)
    info["pixels"] = None  # the second iteration needs no frames
    assert solvers.CostModel(judged).get_cost(info, candidates).shape == (2, 5)


@pytest.mark.parametrize("name", ["CEMSolver", "ICEMSolver", "MPPISolver", "PredictiveSamplingSolver"])
def test_their_solvers_find_cheap_plans_in_our_imagination(
    solvers: ModuleType, judged: JudgedWorldModel, name: str
) -> None:
    """What a solver returns costs less than nine in ten random sequences."""
    generator = torch.Generator().manual_seed(0)
    frame, goal = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator).numpy()
    knobs = {"num_samples": 32, "seed": 0} | ({} if name == "PredictiveSamplingSolver" else {"n_steps": 4})
    knobs |= {"topk": 6} if "CEM" in name else {}
    knobs |= {"temperature": 0.002} if name == "MPPISolver" else {}  # costs here differ by hundredths
    agent = solvers.SolverAgent(
        judged, getattr(solvers.solvers, name)(solvers.CostModel(judged), **knobs), horizon=HORIZON
    )
    agent.begin(goal, np.zeros(1), 0)
    action = torch.from_numpy(agent.act(frame, np.zeros(1)))
    found = torch.cat([action[None, None], agent.plan], dim=1).clamp(-1, 1)
    random = torch.rand(200, HORIZON, 2, generator=generator) * 2 - 1
    every = torch.cat([found, random])
    context = judged.prefill(judged.encode(torch.from_numpy(frame)[None]), torch.zeros(0, 2))
    costs = judged.objective(torch.from_numpy(goal))(judged.imagine(context, every), every)
    assert costs[0] < costs[1:].quantile(0.1)


class Quadratic:
    """A model of the peer's kind whose best actions are known; counts what it encodes."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        """Return the squared distance of actions to the goal."""
        if "goal_emb" not in info:
            self.num_encoded += 1
            info["goal_emb"] = info["goal"][:, 0]
        return (candidates - info["goal_emb"][:, None]).square().sum((2, 3))


def test_our_planners_reach_the_optimum_of_a_model_that_only_has_costs() -> None:
    models, model = script("swm_models"), Quadratic()
    goal = torch.tensor([0.3, -0.6])
    plan = CEM(horizon=HORIZON, num_candidates=64, num_iterations=12, num_elites=8, min_std=0.005).plan(
        models.NoStates(-torch.ones(2), torch.ones(2)),
        None,
        models.cost_of(model, {"goal": goal[None, None]}),
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(plan.actions, goal.expand(HORIZON, 2), atol=0.05, rtol=0)
    assert model.num_encoded == 1


@pytest.mark.slow
def test_our_planners_cost_is_lewms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lewm, models = script("judge_lewm", "stable_worldmodel", "transformers"), script("swm_models")
    monkeypatch.setitem(sys.modules, "judge_lewm", lewm)
    torch.manual_seed(0)
    model = lewm.build(2)
    info = {
        "pixels": torch.randn(1, 1, 3, 64, 64),
        "goal": torch.randn(1, 1, 3, 64, 64),
        "action": torch.zeros(1, 1, 2),
    }
    plan = CEM(horizon=HORIZON, num_candidates=8, num_iterations=2, num_elites=2, num_kept=1).plan(
        models.NoStates(-torch.ones(2), torch.ones(2)),
        None,
        models.cost_of(model, info),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        alone = {name: value[:, None] for name, value in info.items()}
        expected = model.get_cost(alone, plan.actions[None, None])
    assert plan.cost == pytest.approx(float(expected), rel=1e-3)


def lewm_setup(objective: str) -> PlanningSetup:
    return PlanningSetup(task="push", planner=CEM(), objective=objective, weights=StepWeights())  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("frameskip", [1, 3])
def test_lewm_imagines_what_its_own_rollout_does(frameskip: int) -> None:
    """Whole steps are the peer's own predictions; states in between lie on the line between them."""
    lewm = script("judge_lewm", "stable_worldmodel", "transformers")
    torch.manual_seed(0)
    task, mean, std = get_task("push"), torch.tensor([0.1, -0.2]), torch.tensor([0.5, 0.6])
    model = lewm.build(2 * frameskip, lewm.SMALL)
    marks = {"frameskip": frameskip, "action_mean": mean, "action_std": std}
    judged = lewm.JudgedLeWM(model, task, lewm_setup("latent"), **marks)
    codes, actions = torch.randn(1, 192), torch.rand(4, 6, 2)
    states = judged.imagine(judged.prefill(codes, actions[0, :0]), actions)
    steps = ((actions - mean) / std).unflatten(1, (-1, frameskip)).flatten(2)
    info = {"pixels": torch.empty(1, 4, 1, 0), "emb": codes.expand(1, 4, 1, 192)}
    with torch.no_grad():
        expected = model.rollout(info, steps[None])["predicted_emb"][0]
    torch.testing.assert_close(states[:, frameskip - 1 :: frameskip], expected[:, 1:])
    torch.testing.assert_close(states[:, 0], torch.lerp(expected[:, 0], expected[:, 1], 1 / frameskip))
    shorter = judged.imagine(judged.prefill(codes, actions[0, :0]), actions[:, :4])
    assert shorter.shape == (4, 4, 192)
    torch.testing.assert_close(shorter[:, :3], states[:, :3])


@pytest.mark.slow
def test_lewm_is_read_by_its_probes_alone() -> None:
    lewm = script("judge_lewm", "stable_worldmodel", "transformers")
    torch.manual_seed(0)
    task, model = get_task("push"), lewm.build(2, lewm.SMALL)
    frame = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    probes = {"sim.quantities": lewm.probe(task, "sim.quantities", 192).requires_grad_(requires_grad=False)}
    judged = lewm.JudgedLeWM(model, task, lewm_setup("state"), probes=probes)
    states = judged.encode(frame[None])[:, None]
    assert judged.objective(frame)(states, torch.zeros(1, 1, 2)).item() < judged.objective(255 - frame)(
        states, torch.zeros(1, 1, 2)
    )
    assert judged.touches(states) is None
    with pytest.raises(ValueError, match=r"train_lewm\.py"):
        lewm.JudgedLeWM(model, task, lewm_setup("state"))


def test_a_head_to_head_has_one_column_for_each_entrant() -> None:
    """Figures that only one of them has leave the others' cells empty; metres are shown in centimetres."""
    module = script("peers/head_to_head")
    rate, metres = ({"value": value, "ci95": [0.5 * value, 2 * value], "n": 30} for value in (0.4, 0.03))
    names = ("success", "success_any", "success.oracle", "seconds_per_decision", "candidate_steps_per_decision")
    planned = {"tasks": {"push": {**dict.fromkeys(names, rate), "final_cost_m": metres}}}
    errors = {"state_error": {"by_horizon": {"1": metres, "5": metres}}, "spearman": rate}
    columns = {}
    for name, imagined in (("ours", errors), ("theirs", {"spearman": rate})):
        entrant = module.Entrant(name=name, checkpoint=Path("x"), facts={"parameters": "7"})
        reports = {"planning": planned, "imagination": {"tasks": {"push": imagined}}}
        columns[name] = module.rows_of(entrant, reports, "push", [1, 5, 10])
    assert columns["ours"]["success"] == "0.40 [0.20, 0.80], 30 pairs"
    assert columns["ours"]["state error (cm), h = 5"] == "3.00 [1.50, 6.00]"
    assert "state error (cm), h = 10" not in columns["ours"]
    table = module.table_of(columns, "push")
    assert [str(column.header) for column in table.columns] == ["", "ours", "theirs"]
    assert table.row_count == len(columns["ours"])
