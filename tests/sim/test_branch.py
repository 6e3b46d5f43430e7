# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Branching physics equals stepping it, bit for bit; the oracle solves what random and idle policies do not."""

import dataclasses

import mujoco
import numpy as np
import pytest
from unstable import check_names_the_wild_candidate

from sim import get_task, manifest, task_names
from sim.branch import Brancher, branch
from sim.manifest import evaluation_pairs
from sim.physics import get_state, set_state

TASKS = task_names()
LONG = ("pick_place", "stack", "rope")  # their oracle takes seconds per episode


def middle_of_an_episode(task, seed):
    """Return a physics state in motion (for push: after playing, often in contact)."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(task.model)
    set_state(task.model, data, task.reset(task.model, rng))
    policy = task.play_policy(rng)
    for _ in range(20):
        task.step(task.model, data, policy(get_state(task.model, data)))
    return get_state(task.model, data), data


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_branch_equals_stepping_bit_for_bit(name, num_threads):
    task = get_task(name)
    any_contact = False
    for seed in range(4):
        state, _ = middle_of_an_episode(task, seed)
        actions = np.random.default_rng(seed).uniform(-1.2, 1.2, size=(6, 9, task.action_size))
        result = branch(task, state, actions, num_threads=num_threads)
        data = mujoco.MjData(task.model)
        for candidate in range(len(actions)):
            set_state(task.model, data, state)
            for step, action in enumerate(actions[candidate]):
                touched, _ = task.step(task.model, data, action)
                after = get_state(task.model, data)
                assert np.array_equal(result.states[candidate, step], after)
                assert np.array_equal(result.quantities[candidate, step], task.state_quantities(after))
                assert result.contacts[candidate, step] == touched
        any_contact = any_contact or result.contacts.any()
    assert any_contact == (task.contact_sensor is not None)


@pytest.mark.parametrize("name", TASKS)
def test_branch_continues_an_episode_that_was_never_interrupted(name):
    """The saved state is all there is: going on from it equals never having stopped."""
    task = get_task(name)
    state, data = middle_of_an_episode(task, seed=1)
    actions = np.random.default_rng(0).uniform(-1, 1, size=(1, 10, task.action_size))
    for action in actions[0]:
        task.step(task.model, data, action)
    assert np.array_equal(branch(task, state, actions).states[0, -1], get_state(task.model, data))


@pytest.mark.parametrize("name", TASKS)
def test_replay_from_a_restored_state_is_exact_over_200_steps(name):
    task = get_task(name)
    state, data = middle_of_an_episode(task, seed=2)
    policy = task.play_policy(np.random.default_rng(7))
    actions, states = [], []
    for _ in range(200):
        actions.append(policy(get_state(task.model, data)))
        _, warning = task.step(task.model, data, actions[-1])
        assert warning is None
        states.append(get_state(task.model, data))
    assert np.array_equal(branch(task, state, np.stack(actions)[None]).states[0], np.stack(states))
    other = mujoco.MjData(task.model)
    set_state(task.model, other, state)
    for action, expected in zip(actions, states, strict=True):
        task.step(task.model, other, action)
        assert np.array_equal(get_state(task.model, other), expected)


def test_a_brancher_can_be_used_again_and_takes_a_state_per_candidate():
    task = get_task("push")
    brancher = Brancher(task, num_threads=2)
    states = np.stack([middle_of_an_episode(task, seed)[0] for seed in range(3)])
    actions = np.random.default_rng(0).uniform(-1, 1, size=(3, 5, 2))
    together = brancher(states, actions)
    for index in range(3):
        alone = brancher(states[index], actions[index : index + 1])
        assert np.array_equal(alone.states[0], together.states[index])
    brancher.close()


def test_branch_refuses_what_does_not_fit():
    reach, push = get_task("reach"), get_task("push")
    state = reach.reset(reach.model, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\[candidates, horizon, 2\]"):
        branch(reach, state, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="candidate 1"):
        branch(reach, state, np.stack([np.zeros((3, 2)), np.full((3, 2), np.nan)]))
    with pytest.raises(ValueError, match="another task"):
        branch(push, state, np.zeros((1, 3, 2)))


def test_branch_instability_names_task_candidate_and_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT in the working folder
    check_names_the_wild_candidate(get_task("reach"))


@pytest.mark.parametrize("name", TASKS)
def test_manifest_is_frozen_and_drops_solved_pairs(name):
    task = get_task(name)
    pairs = evaluation_pairs(name, 12, seed=3)
    again = evaluation_pairs(name, 6, seed=3)
    assert len({seed for _, _, seed in pairs}) == 12
    for (start, goal, seed), (other_start, other_goal, other_seed) in zip(pairs, again, strict=False):
        assert seed == other_seed
        assert np.array_equal(start, other_start)
        assert np.array_equal(goal, other_goal)
    assert not np.array_equal(pairs[0][0], evaluation_pairs(name, 1, seed=4)[0][0])
    idle = np.zeros((1, task.episode_steps, task.action_size))
    for start, goal, _ in pairs:
        goal_quantities = task.state_quantities(goal)
        assert not task.success(task.state_quantities(start), goal_quantities)
        assert not task.success(branch(task, start, idle).quantities, goal_quantities).any()


def test_manifest_drops_pairs_that_are_solved_already(monkeypatch):
    """With goals drawn on top of the start every other time, those pairs are gone and the rest is kept."""
    task = get_task("reach")
    drawn = []

    def sample_goal(model, start, rng):
        solved = len(drawn) % 2 == 0
        drawn.append(solved)
        return start.copy() if solved else task.sample_goal(model, start, rng)

    monkeypatch.setattr(manifest, "get_task", lambda name: dataclasses.replace(task, sample_goal=sample_goal))
    pairs = evaluation_pairs("reach", 5, seed=0)
    assert len(pairs) == 5
    assert drawn.count(True) == 5
    for start, goal, _ in pairs:
        assert task.cost(task.state_quantities(start), task.state_quantities(goal)) > task.tolerance_m


def cross_entropy_plan(task, brancher, state, goal_quantities, mean, rng):
    """One decision of a plain cross-entropy planner with MuJoCo as its dynamics."""
    horizon = len(mean)
    std = np.ones_like(mean)
    for _ in range(3):
        noise = rng.normal(size=(96, horizon, task.action_size))
        for step in range(1, horizon):
            noise[:, step] = 0.7 * noise[:, step - 1] + np.sqrt(1 - 0.49) * noise[:, step]
        actions = np.clip(mean + std * noise, -1, 1)
        actions[0] = mean
        costs = task.planning_cost(brancher(state, actions).quantities, goal_quantities)
        elites = actions[np.argsort(costs.mean(axis=1) + costs[:, -1], kind="stable")[:12]]
        mean, std = elites.mean(axis=0), np.maximum(elites.std(axis=0), 0.05)
    return mean


HEAVY = ("push_t", "drawer", *LONG)
"""Tasks whose search takes more than some seconds; their experts solve them in the default suite."""
HORIZONS = {"rope": 10, "pick_place": 8, "stack": 8}
"""Steps that the search looks ahead, where 7 do not suffice."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in TASKS]
)
def test_oracle_planner_solves_the_task(name):
    task = get_task(name)
    brancher = Brancher(task, num_threads=2)
    solved = 0
    pairs = evaluation_pairs(name, 4, seed=0)
    for start, goal, seed in pairs:
        rng, state = np.random.default_rng(seed), start
        mean = np.zeros((HORIZONS.get(name, 7), task.action_size))
        held = 0
        goal_quantities = task.state_quantities(goal)
        for _ in range(task.episode_steps):
            mean = cross_entropy_plan(task, brancher, state, goal_quantities, mean, rng)
            state = brancher(state, mean[None, :1]).states[0, 0]
            mean = np.concatenate([mean[1:], np.zeros_like(mean[:1])])
            held = held + 1 if task.success(task.state_quantities(state), goal_quantities) else 0
            if held == 4:
                break  # the planner holds the goal; the rest of the episode only costs time
        solved += bool(task.success(task.state_quantities(state), goal_quantities))
    brancher.close()
    assert solved == 4


@pytest.mark.parametrize("name", TASKS)
def test_random_actions_hardly_ever_solve_the_task(name):
    task = get_task(name)
    pairs = evaluation_pairs(name, 100, seed=0)
    starts = np.stack([start for start, _, _ in pairs])
    actions = np.random.default_rng(0).uniform(-1, 1, size=(100, task.episode_steps, task.action_size))
    final = branch(task, starts, actions).quantities[:, -1]
    goals = task.state_quantities(np.stack([goal for _, goal, _ in pairs]))
    assert task.success(final, goals).mean() < 0.1
