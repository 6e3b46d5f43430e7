# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Factors of variation: each changes what it says and nothing else, from its seed alone, and physics stays exact."""

import mujoco
import numpy as np
import pytest

from sim import get_task
from sim.branch import branch
from sim.collect import collect
from sim.manifest import evaluation_pairs
from sim.tasks import varied_name
from sim.variation import FACTORS, GROUPS, factor_names

VISUAL, PHYSICAL = GROUPS["visual"], GROUPS["physical"]
pytestmark = pytest.mark.render


def starts(task, number=4):
    return np.stack([task.reset(task.model, np.random.default_rng(seed)) for seed in range(number)])


def pushing(task, state, steps=20):
    """Return actions [1, steps, A] that run at the box."""
    policy = task.expert(get_task("push").sample_goal(task.model, state[:11], np.random.default_rng(0)), None)
    simulation, actions = get_task("push").simulation(), []
    simulation.restore(state[:11])
    for _ in range(steps):
        actions.append(policy(simulation.state()))
        simulation.step(actions[-1])
    return np.stack(actions)[None]


def without_variation(states):
    """Return time, positions and velocities [..., 11] of push; a delay's buffer and the seed come after."""
    return states[..., :11]


def draw(task, states, size=64):
    renderer = task.renderer(size, size)
    frames = renderer.render_states(states).astype(int)
    renderer.close()
    return frames


def test_without_factors_a_task_is_itself():
    task = get_task("push")
    assert task.varied(()) is task
    assert varied_name("push", ["light"]) == get_task("push+light").name == "push+light"
    assert get_task("push+light").robot == "push"


@pytest.mark.parametrize("name", FACTORS)
def test_the_same_seed_gives_the_same_variation_and_another_another(name):
    one, other = get_task(f"push+{name}"), get_task(f"push+{name}")
    states = starts(one)
    assert np.array_equal(states, starts(other))
    told = [one.variation_of(state) for state in states]
    assert told[0] == other.variation_of(states[0])
    assert told[0]["factors"] == [name]
    assert told[0]["seed"] == int(states[0, -1])
    assert len({str(variation["values"]) for variation in told}) > 1
    assert len({variation["seed"] for variation in told}) == 4


@pytest.mark.parametrize("name", FACTORS)
def test_draws_lie_in_their_ranges(name):
    task = get_task(f"push+{name}")
    for state in starts(task, 6):
        for number, drawn in task.variation_of(state)["values"][name].items():
            low, high = FACTORS[name].ranges[number]
            assert all(low <= value <= high for value in np.ravel(drawn))


@pytest.mark.parametrize("name", VISUAL)
def test_visual_factors_change_pictures_and_no_bit_of_physics(name):
    plain, task = get_task("push"), get_task(f"push+{name}")
    states = starts(task, 2)
    assert np.array_equal(states[:, :-1], starts(plain, 2))
    actions = pushing(task, states[0])
    varied, expected = branch(task, states[0], actions), branch(plain, states[0, :-1], actions)
    assert np.array_equal(varied.states[..., :-1], expected.states)
    assert np.array_equal(varied.quantities, expected.quantities)
    assert expected.contacts.any()
    changed = np.abs(draw(task, states) - draw(plain, states[:, :-1])).mean(axis=(1, 2, 3))
    assert (changed > 1.0).all()
    assert np.array_equal(draw(task, states), draw(task, states))


@pytest.mark.parametrize("name", VISUAL)
def test_what_matters_stays_visible(name):
    """Moving the box changes the picture as clearly as it does without the variation."""
    task = get_task(f"push+{name}")
    for state in starts(task, 6):
        moved = state.copy()
        moved[1:3] += 0.03 * np.sign(-state[1:3])
        before, after = draw(task, np.stack([state, moved]))
        assert (np.abs(before - after).max(axis=-1) > 40).sum() > 25


@pytest.mark.parametrize("name", PHYSICAL)
def test_physical_factors_change_physics_and_no_picture(name):
    plain, task = get_task("push"), get_task(f"push+{name}")
    states = starts(task, 3)
    assert np.array_equal(without_variation(states), starts(plain, 3))
    assert np.array_equal(draw(task, states), draw(plain, starts(plain, 3)))
    for state in states:
        actions = pushing(task, state)
        varied = branch(task, state, actions).quantities
        expected = branch(plain, without_variation(state), actions).quantities
        assert np.abs(varied - expected).max() > 1e-4


@pytest.mark.parametrize("factors", ["delay", "mass+friction+gain+damping+delay", "visual+physical"])
def test_branching_a_variation_equals_stepping_it(factors):
    task = get_task(f"push+{factors}")
    states = starts(task, 3)
    actions = np.concatenate([pushing(task, state, 12) for state in states])
    together = branch(task, states, actions, num_threads=2)
    simulation = task.simulation()
    for index in (2, 0, 1):
        simulation.restore(states[index])
        for step, action in enumerate(actions[index]):
            touched, _ = simulation.step(action)
            assert np.array_equal(simulation.state(), together.states[index, step])
            assert touched == together.contacts[index, step]
        middle = together.states[index, 4]  # with delayed actions on their way
        rest = branch(task, middle, actions[index : index + 1, 5:])
        assert np.array_equal(rest.states[0], together.states[index, 5:])


def test_delay_is_the_time_it_says():
    task = get_task("push+delay")
    state = starts(task, 1)[0]
    seconds = task.variation_of(state)["values"]["delay"]["seconds"]
    simulation = task.simulation()
    simulation.restore(state)
    data, timestep = simulation.data, task.model.opt.timestep
    data.ctrl[:] = 0.3
    for step in range(int(np.ceil(seconds / timestep))):
        mujoco.mj_step(data.model, data)
        assert np.abs(data.qvel[3:5]).max() == 0.0, step
    mujoco.mj_step(data.model, data)
    assert np.abs(data.qvel[3:5]).min() > 0.01
    assert seconds > timestep


def test_gain_scales_the_speed_that_an_action_commands():
    task, plain = get_task("push+gain"), get_task("push")
    state = starts(task, 1)[0]
    gains = np.array(task.variation_of(state)["values"]["gain"]["scale"])
    far = state.copy()
    far[4:6] = -0.15  # in a corner, away from the box
    far[1:3] = 0.1
    actions = np.full((1, 3, 2), 0.5)
    speeds = branch(task, far, actions).states[0, -1, 9:11]
    expected = branch(plain, far[:-1], actions).states[0, -1, 9:11]
    assert np.allclose(speeds / expected, gains, rtol=1e-6)


def test_friction_decides_how_far_a_box_slides():
    task = get_task("push+friction")
    slid = []
    for state in starts(task, 8):
        moving = state.copy()
        moving[4:6] = 0.18
        moving[1:3] = 0.0
        moving[6] = 0.5
        joints = task.variation_of(state)["values"]["friction"]["joints"]
        ahead = branch(task, moving, np.zeros((1, 6, 2))).quantities[0, -1, 2]
        slid.append((joints[0], ahead))
    order = np.argsort([friction for friction, _ in slid])
    assert (np.diff(np.array([ahead for _, ahead in slid])[order]) < 0).all()


def test_collected_episodes_say_how_they_differ_and_replay():
    name = "push+light+mass+delay"
    task = get_task(name)
    plain = list(collect("push", num_episodes=3, seed=4, image_size=16, num_rows=6, num_workers=1))
    episodes = list(collect(name, num_episodes=3, seed=4, image_size=16, num_rows=6, num_workers=1))
    together = list(collect(name, num_episodes=3, seed=4, image_size=16, num_rows=6, num_workers=2))
    for episode, other, same in zip(episodes, plain, together, strict=True):
        rows = episode["features"]
        states = rows["sim.physics"]
        assert all(np.array_equal(rows[key], same["features"][key]) for key in rows)
        assert episode["info"] == same["info"]
        assert episode["info"]["variation"] == task.variation_of(states[3])
        assert np.array_equal(without_variation(states[0]), other["features"]["sim.physics"][0])
        assert np.array_equal(branch(task, states[0], rows["action"][None, :-1]).states[0], states[1:])
        assert np.array_equal(draw(task, states, 16), rows["observation.images.top"])
    assert len({episode["info"]["variation"]["seed"] for episode in episodes}) == 3


def test_pairs_of_a_variation_are_those_of_the_task():
    """So that success with a factor and without is compared on the same starts and goals."""
    plain, varied = evaluation_pairs("reach", 3, seed=2), evaluation_pairs("reach+gain+light", 3, seed=2)
    for (start, goal, seed), (other_start, other_goal, other_seed) in zip(plain, varied, strict=True):
        assert seed == other_seed
        assert np.array_equal(start, other_start[:-1])
        assert np.array_equal(goal, other_goal[:-1])
        assert other_start[-1] == other_goal[-1]


def test_factors_draw_the_same_whichever_come_with_them():
    alone, both = get_task("push+light"), get_task("push+light+camera+mass")
    state = starts(alone, 1)[0]
    assert alone.variation_of(state)["values"]["light"] == both.variation_of(state)["values"]["light"]


def test_an_environment_is_varied_too():
    task, plain = get_task("Pusher-v5+color+mass"), get_task("Pusher-v5")
    start = task.reset(task.model, np.random.default_rng(0))
    assert np.array_equal(start, plain.reset(plain.model, np.random.default_rng(0)))
    actions = np.random.default_rng(0).uniform(-1, 1, size=(2, 6, 7))
    varied = branch(task, start, actions)
    assert not np.array_equal(varied.states[:, -1], branch(plain, start, actions).states[:, -1])
    simulation = task.simulation()
    simulation.restore(plain.reset(plain.model, np.random.default_rng(1)))  # another variation in between
    simulation.restore(start)
    for action, state in zip(actions[1], varied.states[1], strict=True):
        simulation.step(action)
        assert np.array_equal(simulation.state(), state)
    simulation.close()
    assert np.abs(draw(task, start[None]) - draw(plain, start[None])).mean() > 1.0
    assert set(task.variation_of(start)["values"]) == {"color", "mass"}


def test_names_and_refusals():
    assert factor_names(["physical", "light"]) == ("light", *PHYSICAL)
    assert get_task("reach+physical").factors == ("mass", "damping", "gain", "delay")  # nothing rubs there
    with pytest.raises(ValueError, match=r"unknown factor of variation 'ligt'; valid are color, light"):
        get_task("push+ligt")
    with pytest.raises(ValueError, match="nothing that the factor 'friction' could vary"):
        get_task("reach+friction")
    with pytest.raises(ValueError, match=r"'delay': that changes a model's file.*color, light, camera, mass"):
        get_task("Pusher-v5+delay")
    task = get_task("push+light")
    state = starts(task, 1)[0]
    with pytest.raises(ValueError, match="not with a seed"):
        branch(task, np.append(state[:-1], 0.5), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="another task"):
        branch(task, state[:-1], np.zeros((1, 2, 2)))
