"""Episodes of refinement tell the truth: they are physics, in row convention, from the states that they say."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from known import SIZE, CopyModel

from embodied_wm.evaluation.planned_episodes import PlannedConfig, PlannedEpisodes, planned_features
from embodied_wm.types import Episode
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.branch import Brancher
from sim.tasks import get_task
from sim.tasks.base import Task

PLANNER = CEM(horizon=4, num_candidates=8, num_iterations=1, num_elites=4, num_kept=2)
CONFIG = PlannedConfig(num_episodes=4, noise=0.4, num_branch_points=3, num_branches=4)
MIN_ROWS = 9

pytestmark = pytest.mark.render


def maker(task: Task, **changes: Any) -> PlannedEpisodes:
    model = CopyModel(task, StepWeights())
    settings = {"context": 2, "min_rows": MIN_ROWS, "seed": 3} | changes
    return PlannedEpisodes(task, model, PLANNER, CONFIG, **settings)


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("push")


@pytest.fixture(scope="module")
def group(task: Task) -> Iterator[list[Episode]]:
    with maker(task) as making:
        yield making.episode(3)


def test_one_episode_and_its_branches_with_all_features(task: Task, group: list[Episode]) -> None:
    assert len(group) == 1 + 3 * 4
    assert [episode.info["policy"] for episode in group] == ["planned"] + 12 * ["branch"]
    assert group[0].num_rows == task.episode_steps + 1
    assert {episode.num_rows for episode in group[1:]} == {MIN_ROWS}  # 5 rows before, 4 steps of a candidate
    specs = planned_features(task, CopyModel(task, StepWeights()))
    for episode in group:
        found = {name: (rows.dtype.name, rows.shape[1:]) for name, rows in episode.features.items()}
        assert found == {name: (spec.dtype, spec.shape) for name, spec in specs.items()}
    assert specs["observation.images.top"].shape == (*SIZE, 3)


def test_stored_actions_replay_the_stored_states_frames_and_contacts(task: Task, group: list[Episode]) -> None:
    brancher, renderer = Brancher(task, num_threads=1), task.renderer(*SIZE, "top")
    for episode in group:
        rows = episode.features
        replayed = brancher(rows["sim.physics"][0], rows["action"][None, :-1])
        np.testing.assert_array_equal(replayed.states[0], rows["sim.physics"][1:])
        np.testing.assert_array_equal(renderer.render_states(rows["sim.physics"]), rows["observation.images.top"])
        np.testing.assert_array_equal(replayed.contacts[0], rows["sim.contact"][1:, 0] > 0)
        assert (rows["action"][-1] == 0).all()
        assert episode.info["contact_steps"] == int(replayed.contacts.sum())
    brancher.close()
    renderer.close()


def test_branches_start_in_the_episode_and_part_there(group: list[Episode]) -> None:
    whole, branches = group[0].features, group[1:]
    times = {episode.info["row"] for episode in branches}
    assert len(times) == 3
    past = MIN_ROWS - PLANNER.horizon
    for time in times:
        same = [episode.features for episode in branches if episode.info["row"] == time]
        for rows in same:
            for name in ("sim.physics", "observation.images.top", "sim.contact"):
                np.testing.assert_array_equal(rows[name][:past], whole[name][time - past + 1 : time + 1])
            np.testing.assert_array_equal(rows["action"][: past - 1], whole["action"][time - past + 1 : time])
        ends = {rows["sim.physics"][-1].tobytes() for rows in same}
        assert len(ends) >= 3  # the same state, other futures; what was chosen can be met again among the compared


def test_noise_goes_round_from_none_and_is_told(task: Task) -> None:
    with maker(task) as making:
        planned = []
        act = making.agent.act
        making.agent.act = lambda frame, physics: planned.append(act(frame, physics)) or planned[-1]
        quiet, noisy = making.episode(4)[0], making.episode(7)[0]
    assert (quiet.info["noise"], noisy.info["noise"]) == (0.0, pytest.approx(0.4))
    steps = task.episode_steps
    np.testing.assert_array_equal(quiet.features["action"][:-1], planned[:steps])
    difference = noisy.features["action"][:-1] - planned[steps:]
    assert 0.2 < difference.std() < 0.5
    assert np.abs(noisy.features["action"]).max() <= 1


def test_an_episode_depends_on_the_seed_and_its_number(task: Task, group: list[Episode]) -> None:
    with maker(task) as making:
        making.episode(0)
        again = making.episode(3)
    for first, second in zip(group, again, strict=True):
        for name, rows in first.features.items():
            np.testing.assert_array_equal(rows, second.features[name])
    with maker(task, seed=4) as making:
        other = making.episode(3)
    assert not np.array_equal(other[0].features["sim.physics"][0], group[0].features["sim.physics"][0])


def test_what_an_environment_ends_ends_there() -> None:
    """Frames that stand still whatever is done would teach that actions do nothing."""
    task = get_task("InvertedPendulum-v5")
    with maker(task, min_rows=5) as making:
        making.config = PlannedConfig(num_episodes=4, noise=0.4, num_branch_points=90, num_branches=4)
        groups = [making.episode(number) for number in (1, 3)]
    wholes, branches = [group[0] for group in groups], [episode for group in groups for episode in group[1:]]
    assert all(2 < whole.num_rows < task.episode_steps + 1 for whole in wholes)
    assert branches
    assert len({episode.num_rows for episode in branches}) > 1
    brancher = Brancher(task, num_threads=1)
    for episode in [*wholes, *branches]:
        states, actions = episode.features["sim.physics"], episode.features["action"]
        assert not task.has_ended(states[:-1]).any()
        np.testing.assert_array_equal(brancher(states[0], actions[None, :-1]).states[0], states[1:])
    assert all(task.has_ended(whole.features["sim.physics"][-1]) for whole in wholes)
    brancher.close()


def test_branches_that_do_not_fit_are_refused(task: Task) -> None:
    with pytest.raises(ValueError, match=r"3 branch points with 296 frames before each do not fit into episodes of"):
        maker(task, min_rows=300)
    with pytest.raises(ValueError, match="num_branches=1; expected at least"):
        PlannedConfig(num_branches=1)
