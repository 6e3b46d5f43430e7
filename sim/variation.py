# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Factors of variation: what may differ from episode to episode, each with its ranges and drawn from a seed.

A variation changes the model and nothing else, so all that holds for a task holds for a varied one: its physics state
is complete, replay and branching are exact (an action's delay is MuJoCo's own, its buffer a part of the state). Every
factor draws from its own stream of the seed, so a factor looks the same whichever others come with it.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np

from sim import visual_factors as visual
from sim.physical_factors import change_damping, change_delay, change_friction, change_gain, change_mass


class Draw:
    """Draws the numbers of one factor, and keeps what it drew."""

    def __init__(self, ranges: Mapping[str, tuple[float, float]], seed: Sequence[int]) -> None:
        """Seed the stream."""
        self.rng = np.random.default_rng(seed)
        self.ranges = ranges
        self.values: dict[str, Any] = {}

    def __call__(self, name: str, *shape: int, scale: bool = False) -> np.ndarray:
        """Draw uniformly from the range of `name`, or uniformly in its logarithm for a factor to multiply by."""
        low, high = self.ranges[name]
        drawn = (
            np.exp(self.rng.uniform(np.log(low), np.log(high), shape)) if scale else self.rng.uniform(low, high, shape)
        )
        self.values[name] = np.round(drawn, 6).tolist()
        return np.asarray(drawn)


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that varies.

    Attributes:
        kind: Whether pictures or physics differ.
        meaning: What it changes, in one line.
        ranges: What is drawn, and between what.
        edit: Changes a compiled model in place; returns False where the model has nothing of the kind.
        edit_file: Changes the model's file before it is compiled, instead; only for tasks that have one.
    """

    kind: Literal["visual", "physical"]
    meaning: str
    ranges: Mapping[str, tuple[float, float]]
    edit: Callable[[mujoco.MjModel, Draw], bool] | None = None
    edit_file: Callable[[mujoco.MjSpec, Draw], bool] | None = None


FACTORS: Mapping[str, Factor] = {
    "color": Factor(
        kind="visual",
        meaning="colour of every geom and material: hue in turns, saturation and brightness times",
        ranges={"hue": (-0.12, 0.12), "saturation": (0.6, 1.4), "brightness": (0.8, 1.2)},
        edit=visual.change_color,
    ),
    "light": Factor(
        kind="visual",
        meaning="all lights: brightness times, tint of red, green and blue times, direction in degrees",
        ranges={"brightness": (0.6, 1.25), "tint": (0.85, 1.15), "direction": (-30.0, 30.0)},
        edit=visual.change_light,
    ),
    "camera": Factor(
        kind="visual",
        meaning="every camera: shift in shares of the scene's extent, turn in degrees, field of view times",
        ranges={"shift": (-0.04, 0.04), "turn": (-3.0, 3.0), "zoom": (0.93, 1.07)},
        edit=visual.change_camera,
    ),
    "texture": Factor(
        kind="visual",
        meaning="a chequered or graded texture on what does not move: contrast, and repeats across",
        ranges={"contrast": (0.1, 0.4), "repeats": (2.0, 8.0), "graded": (0.0, 1.0)},
        edit_file=visual.add_texture,
    ),
    "distractors": Factor(
        kind="visual",
        meaning="flat coloured shapes near the picture's border, for the eye only: number, size in shares of distance",
        ranges={"number": (2.0, 6.0), "size": (0.025, 0.05), "place": (0.6, 0.92)},
        edit_file=visual.add_distractors,
    ),
    "mass": Factor(
        kind="physical",
        meaning="mass and inertia of every moving body, times",
        ranges={"scale": (0.5, 2.0)},
        edit=change_mass,
    ),
    "friction": Factor(
        kind="physical",
        meaning="friction of every geom, and dry friction of every joint, times",
        ranges={"geoms": (0.5, 2.0), "joints": (0.5, 2.0)},
        edit=change_friction,
    ),
    "damping": Factor(
        kind="physical",
        meaning="damping of every degree of freedom, more by the rate at which speed decays, in 1/s",
        ranges={"rate": (0.0, 3.0)},
        edit=change_damping,
    ),
    "gain": Factor(
        kind="physical",
        meaning="force of every actuator per control, times; a servo's own feedback stays",
        ranges={"scale": (0.7, 1.3)},
        edit=change_gain,
    ),
    "delay": Factor(
        kind="physical",
        meaning="delay of every control, in seconds, rounded up to physics steps",
        ranges={"seconds": (0.0, 0.1)},
        edit_file=change_delay,
    ),
}
"""Name to factor."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(name for name, factor in FACTORS.items() if factor.kind == kind) for kind in ("visual", "physical")
}
"""Name of a group to its factors."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Say how one episode's model differs.

    Attributes:
        factors: Names, in the order of `FACTORS`.
        seed: Seed of all draws.
    """

    factors: tuple[str, ...]
    seed: int

    def edit(self, model: mujoco.MjModel) -> dict[str, Any]:
        """Change a compiled model in place, by the factors that need no file; returns what was drawn.

        Raises:
            ValueError: the model has nothing that a factor varies.
        """
        return self._apply(model, "edit")

    def edit_file(self, spec: mujoco.MjSpec) -> dict[str, Any]:
        """Change a model's file, by the factors that need one; returns what was drawn.

        Raises:
            ValueError: the model has nothing that a factor varies.
        """
        return self._apply(spec, "edit_file")

    def _apply(self, target: Any, way: Literal["edit", "edit_file"]) -> dict[str, Any]:
        values = {}
        for name in self.factors:
            change = getattr(FACTORS[name], way)
            if change is None:
                continue
            draw = Draw(FACTORS[name].ranges, [self.seed, zlib.crc32(name.encode())])
            if not change(target, draw):
                raise ValueError(
                    f"this model has nothing that the factor {name!r} could vary ({FACTORS[name].meaning}): leave it "
                    "out"
                )
            values[name] = draw.values
        return values


def factor_names(factors: Iterable[str]) -> tuple[str, ...]:
    """Return the factors that names of factors and groups stand for, in the order of `FACTORS`.

    Raises:
        ValueError: an unknown name; lists the valid ones.
    """
    asked: set[str] = set()
    for name in factors:
        if name not in FACTORS and name not in GROUPS:
            valid = ", ".join([*FACTORS, *GROUPS])
            raise ValueError(f"unknown factor of variation {name!r}; valid are {valid}")
        asked.update(GROUPS.get(name, (name,)))
    return tuple(name for name in FACTORS if name in asked)


def seed_of(state: np.ndarray) -> int:
    """Return the seed that a physics state of a varied task, or of an environment, ends with.

    An environment's state at the end of its episode ends with -1 - seed; see `sim.external`.

    Raises:
        ValueError: it ends with something else.
    """
    last = float(np.asarray(state)[-1])
    seed = last if last >= 0 else -1.0 - last
    if not 0 <= seed < 2**32 or seed != int(seed):
        raise ValueError(f"this physics state ends with {last}, not with a seed: was it stored for another task?")
    return int(seed)


def varied_model(path: Path, variation: Variation) -> tuple[mujoco.MjModel, dict[str, Any]]:
    """Compile the model of a file as a variation changes it; returns it and what was drawn."""
    if any(FACTORS[name].edit_file for name in variation.factors):
        spec = mujoco.MjSpec.from_file(str(path))
        values = variation.edit_file(spec)
        model = spec.compile()
    else:
        values, model = {}, mujoco.MjModel.from_xml_path(str(path))
    return model, values | variation.edit(model)
