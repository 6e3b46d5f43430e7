"""The stages of a training, in their order, and which of them are worth asking for."""

from collections.abc import Sequence

from embodied_wm.training.config import TrainConfig
from embodied_wm.world_model import WorldModel

STAGES = (
    "tokenizer",
    "latent_actions",
    "adapter",
    "predictor",
    "distillation",
    "self_forcing",
    "readouts",
    "temporal_distance",
    "goal_policy",
)
WITH_LABELS = ("adapter", "distillation", "self_forcing", "readouts", "goal_policy")
"""Stages that train on robots with labels alone."""


def check_names(stages: Sequence[str]) -> None:
    """Raise ValueError unless all stages exist."""
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise ValueError(f"unknown training stage {unknown[0]!r}; choose from: {', '.join(STAGES)}")


def check_useful(
    stages: Sequence[str],
    models: Sequence[WorldModel],
    config: TrainConfig,
    *,
    is_fresh: bool,
    has_labels: bool = True,
) -> None:
    """Refuse stages that would all train nothing, or would build on a tokenizer that nobody trains.

    Args:
        stages: Those asked for; none at all is no mistake.
        models: What is to be trained.
        config: The training's settings.
        is_fresh: Whether all weights are initial ones.
        has_labels: Whether labels of any of their episodes may be used.

    Raises:
        ValueError: Naming the option to set.
    """
    idle = _idle(models, config)
    if not has_labels:
        idle = dict.fromkeys(WITH_LABELS, "a robot with labels, together.labelled above 0") | idle
    if stages and set(stages) <= set(idle):
        needs = "; ".join(f"{name} needs {idle[name]}" for name in dict.fromkeys(stages))
        raise ValueError(f"stages=[{','.join(stages)}] would train nothing: {needs}")
    if stages and is_fresh and "tokenizer" not in stages:
        raise ValueError(
            f"stages=[{','.join(stages)}] leaves out the tokenizer, and there is no model to take it from: the other "
            "stages would learn from frames that an untrained network encodes. Add tokenizer and latent_actions to "
            "the stages, or give start_from=MODEL"
        )


def _idle(models: Sequence[WorldModel], config: TrainConfig) -> dict[str, str]:
    """Return the stages that would train nothing: name to what it takes that they do."""
    found: dict[str, str] = {}
    for name in ("distillation", "self_forcing"):
        if not getattr(config, name).num_steps:
            found[name] = f"trainer.{name}.num_steps above 0"
    if not any(model.embodiment.readouts for model in models):
        found["readouts"] = "a store with states or rewards to read, such as observation.state"
    if not any(model.config.temporal_distance.components for model in models):
        found["temporal_distance"] = "model.temporal_distance.components above 0, such as 8"
    if not any(model.config.goal_policy.width for model in models):
        found["goal_policy"] = "model.goal_policy.width above 0, such as 256"
    return found


__all__ = ["STAGES", "WITH_LABELS", "check_names", "check_useful"]
