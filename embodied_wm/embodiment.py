"""What robot and data a model belongs to."""

from dataclasses import dataclass, field

REWARDS = ("next.reward", "sim.reward")
"""Features that tell a reward, each row that of the action which follows it."""

OUTCOMES = (*REWARDS, "next.success")
"""Features that tell what a row's action led to: they are read from the frame after it."""


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """Say what robot and data a model belongs to.

    Attributes:
        camera: Feature name of the frames the model was trained on; of several cameras "first+second", left to right.
        action_size: A.
        action_names: One name per action channel, where known.
        fps: Frames per second of the data.
        readouts: Feature name to (names, units) of what is read from latents.
        robot: The robot's or task's name.
    """

    camera: str
    action_size: int
    action_names: tuple[str, ...] = ()
    fps: float = 10.0
    readouts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    robot: str = "unknown"

    @property
    def reward_feature(self) -> str:
        """Return the feature whose readout is the reward; raise ValueError if no reward is read."""
        for name in REWARDS:
            if name in self.readouts:
                return name
        raise ValueError(
            f"this model reads no reward; it reads: {', '.join(self.readouts) or 'nothing'}. Train on a store that "
            f"holds {' or '.join(REWARDS)}, or plan with objective=state."
        )
