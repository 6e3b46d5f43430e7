"""Measure what other people's environments cost here: rendering against their own, stepping, restoring, branching.

    python scripts/bench_environments.py Reacher-v5 Pusher-v5 FetchPush-v4

Times are this process's CPU time, so that other work on the machine hardly counts; branching with two threads is by the
clock. Every ratio compares two things in this one run.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from sim import get_task
from sim.branch import Brancher
from sim.external import make_environment

SIZE = 64


def milliseconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Return the mean time of `work` after a first go that does not count."""
    work()
    began = clock()
    for _ in range(repeats):
        work()
    return 1e3 * (clock() - began) / repeats


def their_rendering(name: str, repeats: int) -> float:
    """Return milliseconds of a picture by the environment's own renderer."""
    sizes = {"width": SIZE, "height": SIZE}
    kwargs: dict[str, Any] = {"render_kwargs": sizes} if name.startswith("dm_control/") else sizes
    make_environment(name).close()  # registers it
    env = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **kwargs)
    env.reset(seed=0)
    found = milliseconds(env.render, repeats)
    env.close()
    return found


def measure(name: str, repeats: int) -> None:
    """Print the figures of one environment."""
    task = get_task(name)
    simulation, renderer = task.simulation(), task.renderer(SIZE, SIZE)
    state = task.reset(task.model, np.random.default_rng(0))
    simulation.restore(state)
    theirs, ours = their_rendering(name, repeats), milliseconds(lambda: renderer.render(simulation.data), repeats)
    bare = make_environment(name)
    bare.reset(seed=0)
    rng = np.random.default_rng(0)
    own_step = milliseconds(lambda: bare.step(bare.action_space.sample()), repeats)
    simulation.restore(state)
    step = milliseconds(lambda: simulation.step(rng.uniform(-1, 1, task.action_size)), repeats)
    restore = milliseconds(lambda: simulation.restore(state), repeats)
    actions = rng.uniform(-1, 1, size=(16, 10, task.action_size))
    branching = []
    for num_threads in (1, 2):
        brancher = Brancher(task, num_threads=num_threads)
        branching.append(milliseconds(lambda: brancher(state, actions), 2, time.perf_counter))  # noqa: B023
        brancher.close()
    print(f"{name}:")
    print(f"  picture of {SIZE}x{SIZE}: {theirs:.2f} ms theirs, {ours:.2f} ms ours: {theirs / ours:.1f} times faster")
    print(f"  control step: {own_step:.3f} ms theirs, {step:.3f} ms ours; restoring a state: {restore:.3f} ms")
    print(f"  branching 16 x 10: {branching[0]:.0f} ms on one thread, {branching[1]:.0f} ms on two")
    renderer.close()
    simulation.close()
    bare.close()


def main() -> None:
    """Measure every environment that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="+", help="Gymnasium ids")
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    for name in arguments.ids:
        measure(name, arguments.repeats)


if __name__ == "__main__":
    main()
