# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Environments made up for tests: those that cannot be used say so, and one that ends its episode stays there."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from unstable import check_names_the_wild_candidate

from sim import InstabilityError, get_task
from sim.branch import branch
from sim.collect import collect
from sim.env import MujocoTaskEnv
from sim.external import Environment, EnvironmentSimulation

pytestmark = pytest.mark.render


class Stateless(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}


MODEL = """
<mujoco>
  <worldbody>
    <body name="ball"><joint name="slide" type="slide" axis="1 0 0"/><geom name="ball" size="0.1" {geom}/></body>
  </worldbody>
  <actuator><motor joint="slide"/></actuator>
</mujoco>"""


class Ball(Stateless):
    """A ball on a slide; the class attributes make it bad in one way."""

    geom, noise, time_limit, force = "", 0.0, 10**9, 1.0

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(MODEL.format(geom=self.geom))
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = self.np_random.uniform(-0.5, 0.5)
        self.steps = 0
        mujoco.mj_forward(self.model, self.data)
        return self.data.qpos.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps > self.time_limit:
            self.reset()
        self.data.ctrl[:] = self.force * action + self.noise * self.np_random.uniform()
        mujoco.mj_step(self.model, self.data, nstep=5)
        return self.data.qpos.astype(np.float32), 0.0, False, False, {}


class Fenced(Ball):
    """Ends its episode where the ball is off."""

    force = 100.0

    def step(self, action):
        seen, reward, _, *rest = super().step(action)
        return seen, reward, bool(abs(self.data.qpos[0]) > 0.6), *rest


class Discrete(Ball):
    action_space = spaces.Discrete(3)


class Unbounded(Ball):
    action_space = spaces.Box(-np.inf, np.inf, (1,))


class Noisy(Ball):
    noise = 1.0


class Invisible(Ball):
    geom = 'rgba="0 0 0 0"'


class Restless(Ball):
    time_limit = 10


class Wild(Ball):
    force = 1e12


@pytest.fixture
def registered():
    made: list[str] = []

    def register(kind: type[gymnasium.Env]) -> str:
        name = f"test/{kind.__name__}-v0"
        gymnasium.register(name, entry_point=kind)
        made.append(name)
        return name

    yield register
    for name in made:
        del gymnasium.registry[name]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Stateless, "no MuJoCo state"),
        (Discrete, r"Discrete\(3\).*Discrete actions are not supported"),
        (Unbounded, "unbounded actions"),
        (Noisy, "cannot be restored exactly: 1 steps after"),
    ],
)
def test_an_environment_that_cannot_be_used_says_why(registered, kind, message):
    with pytest.raises(ValueError, match=message):
        get_task(registered(kind))


def test_a_good_environment_of_the_same_make_is_accepted(registered):
    assert get_task(registered(Ball)).quantity_names == ("ball_x", "ball_y", "ball_z")


def test_an_environment_that_shows_nothing_is_refused(registered):
    name = registered(Invisible)
    with pytest.raises(ValueError, match="'default' of test/Invisible-v0 sees nothing"):
        list(collect(name, num_episodes=1, seed=0, image_size=16, num_rows=2, num_workers=1))


def test_an_environment_that_starts_anew_by_itself_is_noticed(registered):
    simulation = EnvironmentSimulation(registered(Restless))
    for _ in range(10):
        simulation.step(np.zeros(1))
    with pytest.raises(ValueError, match="began a new episode by itself"):
        simulation.step(np.zeros(1))


def test_an_unstable_environment_is_an_error(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT in the working folder
    with pytest.raises(InstabilityError, match="test/Wild-v0"):
        Environment(registered(Wild))
    check_names_the_wild_candidate(get_task("Reacher-v5"))


def test_an_episode_that_its_environment_ends_stays_where_it_ended(registered):
    task = get_task(registered(Fenced))
    start = task.reset(task.model, np.random.default_rng(0))
    simulation, states = task.simulation(), []
    simulation.restore(start)
    for _ in range(40):
        simulation.step(np.ones(1))
        states.append(simulation.state())
    ended = [bool(state[-1] < 0) for state in states]
    last = ended.index(True)
    assert 1 < last < 38
    assert all(ended[last:])
    assert simulation.ended
    assert all(np.array_equal(state, states[last]) for state in states[last:])
    assert not np.array_equal(states[last], states[last - 1])
    assert abs(task.state_quantities(states[last])[0]) > 0.6 >= abs(task.state_quantities(states[last - 1])[0])
    for before in (start, states[last - 1], states[last]):
        result = branch(task, before, np.ones((2, 40, 1)) * [[[1.0]], [[-1.0]]])
        assert np.array_equal(result.states[0, -1], states[last])
        assert np.array_equal(result.states[1, -1], states[last]) == (before is states[last])
    simulation.restore(start)
    assert not simulation.ended
    simulation.close()


def test_goals_and_gymnasium_know_of_the_end(registered):
    env = MujocoTaskEnv(registered(Fenced), observation="state")
    env.reset(seed=1)
    assert env.goal_state()[-1] >= 0
    ends = [env.step(np.ones(1))[2:4] for _ in range(100)]
    first = ends.index((True, False))
    assert all(terminated == (step >= first) for step, (terminated, _) in enumerate(ends))
    assert ends[-1] == (True, True)
    env.reset(seed=1)
    assert env.step(np.zeros(1))[2] is False
    env.close()


def test_collecting_ends_with_the_episode(registered):
    collected = list(collect("InvertedPendulum-v5", num_episodes=3, seed=0, image_size=16, num_rows=40, num_workers=1))
    task = get_task("InvertedPendulum-v5")
    for episode in collected:
        physics, num_rows = episode["features"]["sim.physics"], len(episode["features"]["action"])
        assert {len(rows) for rows in episode["features"].values()} == {num_rows}
        assert num_rows < 40
        assert episode["info"]["ended"]
        assert (physics[:, -1] < 0).tolist() == [False] * (num_rows - 1) + [True]
        replayed = branch(task, physics[0], episode["features"]["action"][None, :-1])
        assert np.array_equal(replayed.states[0], physics[1:])
    never = next(iter(collect("Reacher-v5", num_episodes=1, seed=0, image_size=16, num_rows=5, num_workers=1)))
    assert "ended" not in never["info"]
