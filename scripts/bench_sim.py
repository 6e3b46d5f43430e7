# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Measure how fast the tasks run here: pictures per second, and branching against stepping.

    python scripts/bench_sim.py                     every task
    python scripts/bench_sim.py push rope           some

Pictures are 64x64, by two processes at once. Branching is `sim.branch` with two native threads, 64 candidates of 16
control steps; it is compared with a bare loop of `mj_step` in Python and with `step` of the Gymnasium environment that
renders nothing (observation="state"), both in one thread.
By the clock: run it on a quiet machine. Rates are medians of `--rounds`, every ratio compares two things in one round.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import mujoco
import numpy as np

from sim import get_task, task_names
from sim.branch import Brancher
from sim.env import MujocoTaskEnv

SIZE = 64
NUM_PROCESSES = 2
NUM_PICTURES = 400
CANDIDATES, HORIZON = 64, 16


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes, by the clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def visited(name: str, num_steps: int) -> np.ndarray:
    """Return physics states [num_steps, nstate] that the play policy visits."""
    task, rng = get_task(name), np.random.default_rng(0)
    simulation, policy = task.simulation(), task.play_policy(rng)
    simulation.restore(task.reset(task.model, rng))
    states = []
    for _ in range(num_steps):
        states.append(simulation.state())
        simulation.step(policy(states[-1]))
    simulation.close()
    return np.stack(states)


def draw(name: str) -> float:
    """Return pictures per second of this process."""
    renderer = get_task(name).renderer(SIZE, SIZE)
    states = visited(name, 100)[np.arange(NUM_PICTURES) % 100]
    renderer.render_states(states[:20])
    rate = NUM_PICTURES / seconds(lambda: renderer.render_states(states))
    renderer.close()
    return rate


def physics_rates(name: str) -> tuple[float, float, float]:
    """Return physics steps per second of branching, of a bare loop and of the environment's step."""
    task, rng = get_task(name), np.random.default_rng(0)
    state = visited(name, 20)[-1]
    actions = rng.uniform(-1, 1, size=(CANDIDATES, HORIZON, task.action_size)).astype(np.float32)
    brancher = Brancher(task, num_threads=2)
    brancher(state, actions)
    branching = CANDIDATES * HORIZON * task.substeps / seconds(lambda: brancher(state, actions))
    brancher.close()

    simulation = task.simulation()
    model, data, controls = task.model, simulation.data, task.controls(actions)
    num = CANDIDATES // 8

    def bare() -> None:
        for candidate in range(num):
            simulation.restore(state)
            for step in range(HORIZON):
                data.ctrl[:] = controls[candidate, step]
                for _ in range(task.substeps):
                    mujoco.mj_step(model, data)

    environment = MujocoTaskEnv(name, observation="state")
    environment.reset(seed=0)

    def own() -> None:
        for candidate in range(num):
            environment.restore(state)
            for action in actions[candidate]:
                environment.step(action)

    steps = num * HORIZON * task.substeps
    found = branching, steps / seconds(bare), steps / seconds(own)
    simulation.close()
    environment.close()
    return found


def main() -> None:
    """Print a table of all tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(task_names()), help="tasks to measure; all when left out")
    parser.add_argument("--rounds", type=int, default=5, help="repeats, of which the medians are printed")
    arguments = parser.parse_args()
    print(f"{'task':12} {'pictures/s':>10} {'branching, steps/s':>19} {'over bare mj_step':>18} {'over env.step':>14}")
    pictures, over_bare, over_own = [], [], []
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        for name in arguments.tasks:
            drawn = [sum(pool.map(draw, [name] * NUM_PROCESSES, chunksize=1)) for _ in range(arguments.rounds)]
            rates = [physics_rates(name) for _ in range(arguments.rounds)]
            pictures.append(statistics.median(drawn))
            over_bare.append(statistics.median(branching / bare for branching, bare, _ in rates))
            over_own.append(statistics.median(branching / own for branching, _, own in rates))
            branching = statistics.median(rate[0] for rate in rates)
            print(f"{name:12} {pictures[-1]:10,.0f} {branching:19,.0f} {over_bare[-1]:17.1f}x {over_own[-1]:13.1f}x")
    mean = f"{'mean':12} {statistics.mean(pictures):10,.0f} {'':19}"
    print(f"{mean} {statistics.mean(over_bare):17.1f}x {statistics.mean(over_own):13.1f}x")


if __name__ == "__main__":
    main()
