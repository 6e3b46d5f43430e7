"""The judge is judged: models whose scores are known beforehand must get them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from known import SIZE, CopyModel, OracleModel, curve, mean

from embodied_wm.evaluation.branches import BranchConfig, BranchPoint, BranchStart, branch_points, branch_starts
from embodied_wm.evaluation.contacts import onset_f1, onset_steps
from embodied_wm.evaluation.imagination import ImaginationJudge, Judged, agreement, favourites, judge_imagination
from embodied_wm.evaluation.judged import JudgedModel
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.tasks import get_task
from sim.tasks.base import Task

CONFIG = BranchConfig(num_branch_points=8, num_candidates=12, horizon=6, context=2)
PLANNER = CEM(horizon=6, num_candidates=16, num_iterations=2, num_elites=4)
WEIGHTS = StepWeights()
SEEN: dict[str, Any] = {"image_size": SIZE, "camera": "top"}
KEYS = {
    *(f"{key}{ending}" for key in ("psnr", "ssim") for ending in ("", "_copy", "_ceiling")),
    *("latent_mse", "state_error", "state_error_true", "spearman", "elite_regret", "optimism", "ghost_motion"),
    *("spread_skill", "contact_f1", "stability", "horizon_at"),
}
"""Every measure of the protocol."""


@pytest.fixture(scope="module", params=["reach", "push"])
def task(request: pytest.FixtureRequest) -> Task:
    return get_task(request.param)


@pytest.fixture(scope="module")
def starts(task: Task) -> list[BranchStart]:
    return list(branch_starts(task, CONFIG, **SEEN, seed=0))


Judge = Callable[..., Judged]


@pytest.fixture(scope="module")
def judge_oracle(task: Task, starts: list[BranchStart]) -> Judge:
    """Return what judges an oracle with faults."""

    def judge(**faults: Any) -> Judged:
        model = OracleModel(task, starts, WEIGHTS, **faults)
        found = judge_imagination(task, model, PLANNER, CONFIG, weights=WEIGHTS, seed=0)
        model.close()
        return found

    return judge


@pytest.fixture(scope="module")
def oracle(judge_oracle: Judge) -> Judged:
    return judge_oracle()


@pytest.fixture(scope="module")
def copy(task: Task) -> Judged:
    return judge_imagination(task, CopyModel(task, WEIGHTS), PLANNER, CONFIG, weights=WEIGHTS, seed=0)


@pytest.mark.render
def test_every_measure_is_there_or_said_to_be_missing(oracle: Judged, copy: Judged, task: Task) -> None:
    for judged in (oracle, copy):
        measured = {key.split(".")[0] for key in judged.measures}
        assert set(judged.missing) == KEYS - measured
        assert all(judged.missing.values())
    lacking = {"spread_skill", "contact_f1", "ghost_motion"} if task.name == "reach" else {"spread_skill", "stability"}
    assert set(oracle.missing) == lacking
    assert copy.missing["state_error"] == "the model reads no physical quantities"


@pytest.mark.render
def test_knowing_physics_is_perfect(oracle: Judged, task: Task) -> None:
    found = oracle.measures
    for key in ("spearman", "spearman_true"):
        assert found[key]["value"] == pytest.approx(1.0)
    for key in ("elite_regret", "optimism", "optimism_random"):
        assert found[key]["value"] == pytest.approx(0.0, abs=1e-9)
    for key in ("state_error", "state_error_true", "latent_mse"):
        assert max(curve(found[key])) == pytest.approx(0.0, abs=1e-9)
    assert set(curve(found["psnr"])) == {60.0}
    assert min(curve(found["ssim"])) == pytest.approx(1.0, abs=1e-5)
    assert found["horizon_at"]["value"] == CONFIG.horizon + 1
    if task.objects:
        assert max(curve(found["ghost_motion"])) <= 1e-4  # what MuJoCo itself calls unmoved
        assert found["contact_f1"]["value"] == 1.0
        assert found["contact_f1"]["n"] >= 4
    if task.reversible:
        assert found["stability"]["value"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.render
def test_expecting_no_change_scores_as_chance(copy: Judged) -> None:
    found = copy.measures
    assert np.ptp(copy.imagined_costs, axis=1).max() < 1e-6 * copy.imagined_costs.max()
    assert found["spearman"]["value"] == 0.0
    costs = copy.physical_costs
    regret = (costs - costs.min(1, keepdims=True)) / np.ptp(costs, axis=1)[:, None]
    assert found["elite_regret"]["value"] == pytest.approx(regret.mean())
    assert found["elite_regret_chance"]["value"] == pytest.approx(regret.mean())
    assert 0.2 < regret.mean() < 0.8
    assert curve(found["psnr"]) == curve(found["psnr_copy"])
    assert curve(found["psnr_over_copy"]) == [0.0] * CONFIG.horizon
    assert set(curve(found["psnr_ceiling"])) == {60.0}


@pytest.mark.render
def test_optimism_is_true_minus_imagined_cost(task: Task, starts: list[BranchStart]) -> None:
    """Of a model that expects no change: what the chosen future costs, less what the present does."""
    model = CopyModel(task, WEIGHTS)
    judge = ImaginationJudge(task, model, weights=WEIGHTS)
    planned = np.zeros((4, CONFIG.horizon, task.action_size), np.float32)
    planned[1] = 1.0
    surprises, randoms = [], []
    for point in branch_points(task, iter(starts[:3]), lambda _: (planned, 1), **SEEN):
        judge.judge(point)
        squared = (point.true_frames.astype(float) - point.start.goal_frame).reshape(*point.contacts.shape, -1) ** 2
        true = WEIGHTS.reduce(torch.from_numpy(squared.mean(-1))).numpy()
        now = np.square(point.start.frames[-1].astype(float) - point.start.goal_frame).mean()
        surprises.append(true[9] - now)
        randoms.append((true[4:8] - now).mean())
    judge.brancher.close()
    found = judge.rows.measures(0)
    assert found["optimism"]["value"] == pytest.approx(mean(surprises), rel=1e-4)
    assert found["optimism_random"]["value"] == pytest.approx(mean(randoms), rel=1e-4)


@pytest.mark.render
def test_mixed_up_actions_are_seen(judge_oracle: Judge) -> None:
    found = judge_oracle(shuffled=True).measures
    assert found["spearman"]["value"] < 0.5
    assert found["elite_regret"]["value"] > 0.15
    assert curve(found["state_error"])[-1] > 0.01
    assert max(curve(found["state_error_true"])) == pytest.approx(0.0, abs=1e-9)
    assert max(curve(found["psnr"])) < 40


@pytest.mark.render
@pytest.mark.parametrize("task", ["push"], indirect=True)
def test_ghosts_are_seen(judge_oracle: Judge) -> None:
    found = judge_oracle(ghost_m=0.01).measures
    expected = [0.01 * step for step in range(1, CONFIG.horizon + 1)]
    assert curve(found["ghost_motion"]) == pytest.approx(expected, abs=2e-4)
    assert curve(found["state_error"]) == pytest.approx(expected, abs=1e-6)
    assert found["horizon_at"]["value"] == 3  # 3 cm off is more than the tolerance of 2.5 cm


@pytest.mark.render
@pytest.mark.parametrize("task", ["push"], indirect=True)
def test_late_contacts_are_seen(judge_oracle: Judge) -> None:
    # One step late is within the tolerance, but for onsets that leave the horizon.
    assert judge_oracle(contact_delay=1).measures["contact_f1"]["value"] > 0.8
    assert judge_oracle(contact_delay=3).measures["contact_f1"]["value"] < 0.7


@pytest.mark.render
def test_every_model_meets_the_same_states(oracle: Judged, copy: Judged) -> None:
    model_free = 2 * CONFIG.num_candidates // 3
    assert np.array_equal(oracle.physical_costs[:, :model_free], copy.physical_costs[:, :model_free])
    assert np.array_equal(oracle.true_frames, copy.true_frames)


class Blind(CopyModel):
    """Do no more than the protocol demands."""

    def observe(self, codes: torch.Tensor, actions: torch.Tensor) -> None:
        return None

    def decode(self, states: torch.Tensor, seen: torch.Tensor) -> None:
        return None


@pytest.mark.render
@pytest.mark.parametrize("task", ["reach"], indirect=True)
def test_optional_parts_may_be_absent(task: Task) -> None:
    judged = judge_imagination(task, Blind(task, WEIGHTS), PLANNER, CONFIG, weights=WEIGHTS, seed=0)
    assert judged.imagined_frames is None
    assert {key.split(".")[0] for key in judged.measures} == {
        *("psnr_copy", "ssim_copy", "state_error_copy", "spearman", "elite_regret", "elite_regret_chance")
    }


@pytest.mark.parametrize("task", ["reach"], indirect=True)
def test_models_of_another_robot_or_camera_are_refused(task: Task) -> None:
    for name, value, message in (("action_size", 7, "actions of size 7"), ("camera", "wrist", "reach has: top")):
        model: JudgedModel = CopyModel(task, WEIGHTS)
        setattr(model, name, value)
        with pytest.raises(ValueError, match=message):
            judge_imagination(task, model, PLANNER, CONFIG, weights=WEIGHTS, seed=0)
    with pytest.raises(ValueError, match="do not fit in episodes of 50 rows"):
        next(branch_starts(task, BranchConfig(num_branch_points=1, horizon=48, context=3), **SEEN, seed=0))


def test_states_come_from_episodes_that_an_environment_does_not_end_too_early() -> None:
    task = get_task("InvertedPendulum-v5")
    seen: dict[str, Any] = {"image_size": (16, 16), "camera": task.cameras[0], "seed": 0}
    config = BranchConfig(num_branch_points=3, num_candidates=6, horizon=6, context=3)
    starts = list(branch_starts(task, config, **seen))
    assert [start.actions.shape for start in starts] == [(4, 6, 1)] * 3
    assert all(start.physics[-1] >= 0 for start in starts)  # in none of them the episode has ended
    with pytest.raises(ValueError, match=r"context=3 and horizon=80 do not fit .* rows \(0 of 20 are as long, of 1"):
        next(branch_starts(task, BranchConfig(num_branch_points=1, horizon=80), **seen))


def test_ties_get_no_favour() -> None:
    physical = np.array([0.0, 1.0, 2.0, 4.0])
    assert agreement(np.full(4, 0.3), physical) == 0.0
    assert agreement(np.array([0.3, 0.3, 0.3, 0.3 + 1e-9]), physical) == 0.0
    assert agreement(physical * 7, physical) == pytest.approx(1.0)
    assert np.isnan(agreement(physical, np.ones(4)))
    assert favourites(np.array([2.0, 1.0, 1.0 + 1e-9, 3.0])).tolist() == [False, True, True, False]


def test_onsets_pair_up_within_a_step() -> None:
    def flags(*on: int) -> np.ndarray:
        return np.isin(np.arange(9), on)

    assert onset_steps(flags(0, 1, 4, 5, 8)) == [4, 8]
    true = np.stack([flags(2, 3, 4), flags()])
    assert onset_f1(np.stack([flags(3, 4), flags()]), true) == 1.0
    assert onset_f1(np.stack([flags(4), flags()]), true) == 0.0
    assert onset_f1(np.stack([flags(2), flags(6)]), true) == pytest.approx(2 / 3)
    assert np.isnan(onset_f1(np.stack([flags(0), flags()]), np.stack([flags(), flags()])))


@pytest.mark.render
@pytest.mark.parametrize("task", ["reach"], indirect=True)
def test_replay_ends_when_the_reader_does(task: Task, starts: list[BranchStart]) -> None:
    planned = np.zeros((4, CONFIG.horizon, task.action_size), np.float32)
    points: Iterator[BranchPoint] = branch_points(task, iter(starts), lambda _: (planned, 0), **SEEN)
    first = next(points)
    assert np.array_equal(first.start.physics, starts[0].physics)
    assert first.sources == ("recorded",) * 4 + ("random",) * 4 + ("planner",) * 4
    points.close()  # pyright: ignore[reportAttributeAccessIssue]
