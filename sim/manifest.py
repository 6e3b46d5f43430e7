"""The frozen list of start and goal pairs that planning is judged on."""

import numpy as np

from sim.branch import Brancher
from sim.tasks import get_task

DRAWS_PER_PAIR = 200
"""After so many draws for each pair asked for, the task is taken to have none."""


def evaluation_pairs(task_name: str, num: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return `num` triples (start physics, goal physics, seed of the pair), the same ones every time.

    Pairs that are solved at the start, at the goal's own start pose, or by doing nothing for an episode are dropped, so
    that success is always something that was done. A longer list begins with the shorter one of the same seed.

    Raises:
        ValueError: unknown task, `num` below 1, or hardly a pair that is not solved already.
    """
    if num < 1:
        raise ValueError(f"num_pairs={num}: expected at least 1 pair of start and goal to plan for")
    task = get_task(task_name)
    brancher = Brancher(task, num_threads=1)
    idle = np.zeros((1, task.episode_steps, task.action_size), dtype=np.float32)
    pairs: list[tuple[np.ndarray, np.ndarray, int]] = []
    first_seed = 1_000_003 * seed
    for pair_seed in range(first_seed, first_seed + DRAWS_PER_PAIR * num):
        start, goal = draw_pair(task_name, pair_seed)
        goal_quantities = task.state_quantities(goal)
        after_idling = brancher(start, idle).quantities[0]
        visited = np.concatenate([task.state_quantities(start)[None], after_idling])
        if not task.success(visited, goal_quantities).any():
            pairs.append((start, goal, pair_seed))
        if len(pairs) == num:
            break
    else:
        raise ValueError(
            f"only {len(pairs)} of {DRAWS_PER_PAIR * num} starts and goals of {task_name!r} are not solved by doing "
            f"nothing (within {task.tolerance_m} m): there is nothing to plan for"
        )
    brancher.close()
    return pairs


def draw_pair(task_name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one start and goal, unchecked; what the environment draws for the same seed."""
    task = get_task(task_name)
    rng = np.random.default_rng(seed)
    start = task.reset(task.model, rng)
    return start, task.sample_goal(task.model, start, rng)
