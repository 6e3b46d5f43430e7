"""Scripted behaviour: noise that covers the action space, and the small pieces experts are made of."""

from collections.abc import Callable

import numpy as np

from sim.tasks.base import Policy


class SmoothNoise:
    """Ornstein-Uhlenbeck noise squashed into [-1, 1], whose speed and size are redrawn now and then.

    The stationary distribution of each channel reaches the whole range, ends included.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        """Start from a draw of the stationary distribution."""
        self._rng = rng
        self._size = size
        self._redraw()
        self._value = rng.normal(size=size)

    def _redraw(self) -> None:
        self._memory = self._rng.uniform(0.0, 0.95)
        self._gain = self._rng.uniform(0.4, 1.6)

    def __call__(self) -> np.ndarray:
        """Return the next action [A]."""
        if self._rng.random() < 0.05:
            self._redraw()
        noise = self._rng.normal(size=self._size)
        self._value = self._memory * self._value + np.sqrt(1.0 - self._memory**2) * noise
        return np.clip(self._gain * self._value, -1.0, 1.0)


def segments(
    choices: list[tuple[float, Callable[[], Policy]]], rng: np.random.Generator, lengths: tuple[int, int]
) -> Policy:
    """Play one behaviour for a while, then another.

    Args:
        choices: Weight and maker of each behaviour; a fresh behaviour is made for every segment.
        rng: Draws which behaviour comes next and for how many steps.
        lengths: Shortest and longest segment, in steps.
    """
    weights = np.array([weight for weight, _ in choices])
    remaining = 0
    current: Policy | None = None

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal remaining, current
        if remaining == 0 or current is None:
            current = choices[rng.choice(len(choices), p=weights / weights.sum())][1]()
            remaining = int(rng.integers(lengths[0], lengths[1] + 1))
        remaining -= 1
        return np.clip(current(state), -1.0, 1.0).astype(np.float32)

    return policy


def noise_policy(size: int, rng: np.random.Generator) -> Policy:
    """Return smooth noise that ignores the state."""
    noise = SmoothNoise(size, rng)
    return lambda state: noise()


def constant_policy(action: np.ndarray) -> Policy:
    """Return a policy that always commands `action` [A]."""
    return lambda state: action
