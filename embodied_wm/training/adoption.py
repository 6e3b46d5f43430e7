"""What a training takes over from models that were trained before, and what a robot that is new to them needs.

A family knows its robots by their names, which are those of their stores. A single model is known by more than that,
as a run's or a shipped model's store may be called anything: by the fingerprint of the very episodes, and by the name
of the robot where camera, actions and readouts are the same.

A robot is new where it is not known, or where only its video was. Its adapter, its readouts and the predictor's
parts that know its real actions are initial weights then. The first two have stages of their own; those parts are
trained by the predictor's stage, or, where that is left out so that shared weights stay as they are, alone
(`train_real_actions`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family, copy_shared
from embodied_wm.predictor.joint import told_actions
from embodied_wm.training.card import OPTIONAL
from embodied_wm.training.losses import predictor_loss
from embodied_wm.world_model import WorldModel

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

REAL_ACTIONS = "real_actions"
"""Name of the stage that trains what knows real actions alone."""
OWN_STAGES = ("adapter", "readouts")
"""Stages of parts that every robot with labels needs for itself."""
TOLD_ACTIONS = ("adapter", "predictor", "goal_policy")
"""Stages of parts that know actions in units of their spread."""
TOLD_WHAT_IS_FELT = ("latent_actions", "adapter", "predictor", "readouts", "temporal_distance", "goal_policy")
"""Stages of parts that know what is felt in units of its spread, as it is a token of their latents."""


def take_over(
    start_from: Family | None,
    models: Mapping[str, WorldModel],
    stores: Mapping[str, EpisodeStore],
    stages: Sequence[str],
) -> dict[str, WorldModel]:
    """Copy what an earlier family learnt into new models.

    Args:
        start_from: The family, if any.
        models: Robot to its new model.
        stores: Robot to its episodes.
        stages: What will be trained.

    Returns:
        Robot to the earlier model of it, for those that the family knows.

    Raises:
        ValueError: If a robot that it knew is another one now, or a model of another configuration.
    """
    if start_from is None:
        return {}
    leader = next(iter(start_from.models.values()))
    copy_shared(leader, models.values())
    if len(start_from.models) > 1:
        sources = {name: start_from.models[name] for name in models if name in start_from.models}
    elif set(stages) <= set(OPTIONAL) and len(models) == 1:
        sources = dict.fromkeys(models, leader)
    else:
        (name_there,) = start_from.models
        sources = {
            name: leader for name in models if _is_the_same(leader, name_there, models[name], name, stores[name])
        }
    for name, source in sources.items():
        if not _fits(source, models[name]):
            then = (
                "Give this robot's store another name, and it is adopted as a new one."
                if set(stages) - set(OPTIONAL)
                else f"stages=[{','.join(stages)}] adds to a model of this very robot: give one as start_from."
            )
            raise ValueError(
                f"the family to start from knows {name!r} as another robot: {source.embodiment}; the store says "
                f"{models[name].embodiment}. {then}"
            )
        models[name].load_state_dict(_known_weights(source, models[name], stages))
    return sources


def _fits(source: WorldModel, model: WorldModel) -> bool:
    before, now = source.embodiment, model.embodiment
    return (before.camera, before.action_size, before.readouts) == (now.camera, now.action_size, now.readouts)


def _is_the_same(source: WorldModel, name_there: str, model: WorldModel, name: str, store: EpisodeStore) -> bool:
    """Tell whether a single model is one of this robot."""
    robot = model.embodiment.robot
    return _fits(source, model) and (
        name == name_there
        or source.card.get("fingerprint") == store.fingerprint()
        or (robot != "unknown" and robot == source.embodiment.robot)
    )


def check_new_robots(
    models: Mapping[str, WorldModel],
    labelled: Sequence[str],
    sources: Mapping[str, WorldModel],
    start_from: Family,
    stages: Sequence[str],
) -> list[str]:
    """Return the robots with labels that are new, after a check that no part of them stays untrained.

    Args:
        models: Robot to its model.
        labelled: Those with labels; a robot of video alone has no such parts.
        sources: From `take_over`.
        start_from: What it took them from.
        stages: What will be trained.

    Raises:
        ValueError: If stages are left out that a new robot needs; the message lists the robots that are known.
    """
    new = [name for name in labelled if name not in sources or sources[name].card.get("labelled_episodes") == 0]
    for name in new:
        needed = [part for part in OWN_STAGES if part == "adapter" or models[name].embodiment.readouts]
        missing = [part for part in needed if part not in stages]
        if missing:
            knows = ", ".join(
                f"{each} ({model.embodiment.robot}, {model.embodiment.camera}, {model.embodiment.action_size} actions)"
                for each, model in start_from.models.items()
            )
            seen = "only video of" if name in sources else "not"
            raise ValueError(
                f"start_from knows {seen} {name!r}, and stages=[{','.join(stages)}] would leave its "
                f"{' and '.join(missing)} untrained; it knows: {knows}. Add {','.join(missing)} to the stages, or give "
                "a model that was trained on this robot, with its camera, actions and readouts"
            )
    return new


def untrained_options(model: WorldModel, stages: Sequence[str]) -> list[str]:
    """Return the optional parts that a new robot's model has and that are not trained."""
    return [part for part in OPTIONAL if _has(model, part) and part not in stages]


def learns_anew(model: WorldModel, parts: Sequence[str], stages: Sequence[str]) -> bool:
    """Tell whether all of some parts that a model has are trained; if not, their units must stay what they were."""
    return all(part in stages for part in parts if _has(model, part))


def _has(model: WorldModel, part: str) -> bool:
    sizes = {
        "readouts": len(model.embodiment.readouts),
        "temporal_distance": model.config.temporal_distance.components,
        "goal_policy": model.config.goal_policy.width,
    }
    return bool(sizes.get(part, 1))


def train_real_actions(trainer: "Trainer") -> None:
    """Train how a robot's real actions are told to the predictor, which stays as it is otherwise.

    It takes the settings of the predictor's stage, on labelled episodes alone, all told their real actions.
    """
    model, config = trainer.model, trainer.config.predictor
    _, read, held_out_of = trainer.samplers(trainer.config.sequence_length, config, labelled_only=True)
    with _frozen_but(model.predictor, told_actions(model.predictor).values()):
        trainer.fit(
            REAL_ACTIONS,
            {"predictor": model.predictor},
            trainer.told(read),
            predictor_loss(model, code_fraction=0.0),
            config,
            trainer.told(held_out_of) if held_out_of else None,
        )


@contextmanager
def _frozen_but(module: nn.Module, parts: Iterable[nn.Module]) -> Iterator[None]:
    """Let only some parts of a module be trained."""
    free = {id(parameter) for part in parts for parameter in part.parameters()}
    frozen = [each for each in module.parameters() if each.requires_grad and id(each) not in free]
    try:
        for each in frozen:
            each.requires_grad_(False)
        yield
    finally:
        for each in frozen:
            each.requires_grad_(True)


def _known_weights(source: WorldModel, model: WorldModel, stages: Sequence[str]) -> dict[str, Tensor]:
    """Return a source's weights for a model of its configuration.

    Parts that a model may have or not are the model's own where they are trained now and the source has none like them.
    """
    given, own = source.state_dict(), model.state_dict()
    shapes = ({key: tensor.shape for key, tensor in each.items()} for each in (given, own))
    different = {key for key, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))}
    new = {part for part in OPTIONAL if part in stages and any(key.startswith(f"{part}.") for key in different)}
    wrong = sorted(key for key in different if key.partition(".")[0] not in new)
    if wrong:
        there, here = (tuple(each[wrong[0]].shape) if wrong[0] in each else "none" for each in (given, own))
        raise ValueError(
            f"cannot start from this model: {wrong[0]!r} is {there} there, {here} here. Train with the same model "
            f"configuration (its config.json holds it); only {' and '.join(OPTIONAL)} may differ, if they are trained."
        )
    return {key: own[key] if key.partition(".")[0] in new else given[key] for key in own}


__all__ = [
    "REAL_ACTIONS",
    "TOLD_ACTIONS",
    "TOLD_WHAT_IS_FELT",
    "check_new_robots",
    "learns_anew",
    "take_over",
    "train_real_actions",
    "untrained_options",
]
