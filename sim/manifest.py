"""The frozen list of start and goal pairs that planning is judged on."""

from collections.abc import Sequence

import numpy as np

from sim.branch import Brancher, branch
from sim.tasks import get_task
from sim.tasks.base import Task

DRAWS_PER_PAIR = 200
"""After so many draws for each pair asked for, the task is taken to have none."""


def evaluation_pairs(
    task_name: str, num: int, seed: int, variation: Sequence[str] = ()
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return `num` triples (start physics, goal physics, seed of the pair), the same ones every time.

    Pairs that are solved at the start, at the goal's own start pose, or by doing nothing for an episode are dropped, so
    that success is always something that was done. A longer list begins with the shorter one of the same seed.

    Args:
        task_name: The task's name.
        num: How many.
        seed: Seed of the list.
        variation: Factors of variation; a pair's states are of `task.varied(variation, seed of the pair)`.

    Raises:
        ValueError: unknown task, `num` below 1, or hardly a pair that is not solved already.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    task = get_task(task_name)
    first_seed = 1_000_003 * seed
    pairs: list[tuple[np.ndarray, np.ndarray, int]] = []
    brancher = None if variation else Brancher(task, num_threads=1)
    for pair_seed in range(first_seed, first_seed + DRAWS_PER_PAIR * num):
        varied = task.varied(variation, pair_seed)
        start, goal = draw_pair(varied, pair_seed)
        if not _solved_by_idling(varied, start, goal, brancher):
            pairs.append((start, goal, pair_seed))
        if len(pairs) == num:
            break
    else:
        raise ValueError(
            f"only {len(pairs)} of {DRAWS_PER_PAIR * num} starts and goals of {task_name!r} are not solved by doing "
            f"nothing (within {task.tolerance_m} m): there is nothing to plan for"
        )
    if brancher is not None:
        brancher.close()
    return pairs


def _solved_by_idling(task: Task, start: np.ndarray, goal: np.ndarray, brancher: Brancher | None) -> bool:
    idle = np.zeros((1, task.episode_steps, task.action_size), dtype=np.float32)
    after_idling = (branch(task, start, idle, num_threads=1) if brancher is None else brancher(start, idle)).quantities[0]
    visited = np.concatenate([task.state_quantities(start)[None], after_idling])
    return bool(task.success(visited, task.state_quantities(goal)).any())


def draw_pair(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one start and goal, unchecked; what the environment draws for the same seed."""
    rng = np.random.default_rng(seed)
    start = task.reset(task.model, rng)
    return start, task.sample_goal(task.model, start, rng)
