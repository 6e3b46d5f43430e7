"""A policy that looks ahead in MuJoCo itself: tries a few random action sequences and follows the best."""

from collections.abc import Callable

import numpy as np

from sim.simulation import Simulation

type Cost = Callable[[np.ndarray], np.ndarray]
"""Quantities of a sequence [H + 1, Q], the present first, to the cost of each step [H + 1]."""


def seek(
    simulation: Simulation,
    quantities_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    cost: Cost,
    rng: np.random.Generator,
    *,
    num_candidates: int = 10,
    horizon: int = 8,
    held: int = 4,
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a policy that follows the best of some random action sequences.

    Args:
        simulation: Tries them.
        quantities_of: Positions and velocities to quantities, as in `Task`.
        cost: What the sequence should keep small: its mean over the steps plus its last.
        rng: Draws the candidates; the rest of the last choice is always among them.
        num_candidates: Sequences tried at each choice.
        horizon: Steps of a sequence, each action held for two.
        held: Steps that are followed before the next choice.
    """
    plan: list[np.ndarray] = []
    rest: np.ndarray | None = None

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal rest
        if not plan:
            size = simulation.action_size
            knots = rng.uniform(-1.0, 1.0, size=(num_candidates, (horizon + 1) // 2, size))
            candidates = np.repeat(knots, 2, axis=1)[:, :horizon]
            if rest is not None:
                candidates[0, : len(rest)] = rest
            best = min(candidates, key=lambda actions: _total(simulation, quantities_of, cost, state, actions))
            plan.extend(best[:held])
            rest = best[held:]
        return plan.pop(0)

    return policy


def _total(
    simulation: Simulation,
    quantities_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    cost: Cost,
    state: np.ndarray,
    actions: np.ndarray,
) -> float:
    simulation.restore(state)
    data = simulation.data
    positions, velocities = [data.qpos.copy()], [data.qvel.copy()]
    for action in actions:
        if simulation.step(action)[1] is not None:
            return np.inf
        positions.append(data.qpos.copy())
        velocities.append(data.qvel.copy())
    costs = cost(quantities_of(np.stack(positions), np.stack(velocities)))
    return float(costs.mean() + costs[-1])
