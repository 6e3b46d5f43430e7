"""Family: world models of several robots that share the tokenizer, one latent-action codebook and the predictor.

Each robot has a whole `WorldModel` of its own, so whatever takes one (planners, benchmarks, cards, the Hub) takes any
member as it is. What the members share are the weights themselves, the same tensors in memory: the networks of the
frame tokenizer, the latent actions, and the predictor. A robot's own are its action adapter, its action statistics and
bounds, what the predictor knows of its real actions, its readouts, what guesses its proprioception, the tokenizer's
background images, and the statistics of its latents: its cameras see another scene, and actions of another size.

Why not one network with a robot's name as input: a model trained on one store would change, every verb would have to
be told a name, and a batch would need padding to the largest action. Here a model of one robot is the family of one.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

import torch

from embodied_wm.checkpoint import CheckpointError, robot_models
from embodied_wm.pretrained import PREFIX, pretrained_folder
from embodied_wm.world_model import WorldModel

OWN = (
    "adapter.",
    "predictor.real_in.",
    "predictor.joint.",
    "readouts.",
    "proprioception.",
    "temporal_distance.",
    "goal_policy.",
)
"""What the names of a robot's own parameters begin with; background images and all buffers are its own, too."""
BACKGROUND = "background"
"""Last part of the name of a background image; a tokenizer of several cameras has one of each."""


def is_own(name: str) -> bool:
    """Tell by its name whether a model's parameter is the robot's own."""
    return name.startswith(OWN) or (name.startswith("tokenizer.") and _is_background(name))


def _is_background(name: str) -> bool:
    return name.rpartition(".")[2] == BACKGROUND


def shared_names(model: WorldModel) -> list[str]:
    """Return the names of the parameters that a model shares with its family."""
    return [name for name, _ in model.named_parameters() if not is_own(name)]


def own_backgrounds(model: WorldModel) -> list[torch.nn.Parameter]:
    """Return the background images of a model's cameras."""
    return [each for name, each in model.tokenizer.named_parameters() if _is_background(name)]


class Family:
    """Hold the models of several robots; their shared parameters become those of the first.

    Attributes:
        models: Robot to its model, in order.
    """

    def __init__(self, models: Mapping[str, WorldModel]) -> None:
        """Let the models share their weights.

        Raises:
            ValueError: If there is none, or their shared parts are of different sizes.
        """
        if not models:
            raise ValueError("a family needs at least one robot's model, got none")
        self.models = dict(models)
        leader, *others = self.models.values()
        for name, parameter in leader.named_parameters():
            if not is_own(name):
                for robot, other in zip(list(self.models)[1:], others, strict=True):
                    _replace(other, name, parameter, robot)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the robots' names."""
        return iter(self.models)

    def for_robot(self, name: str) -> WorldModel:
        """Return the model of a robot.

        Raises:
            ValueError: If it is not in the family; the message lists those that are.
        """
        if name not in self.models:
            raise ValueError(f"this family has no robot {name!r}; it has: {', '.join(self.models)}")
        return self.models[name]

    def save(self, folder: str | Path) -> None:
        """Write each member as `folder/ROBOT/model`, an ordinary model folder that loads alone."""
        for name, model in self.models.items():
            model.save(Path(folder) / name / "model")

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """Load the members that `save` wrote; a single model's folder loads as a family of one.

        The robot of a single model has the name of the store that its card names, as robots that are trained together
        have; the folder's where the card names none. "pretrained:TASK" is a model that ships.

        Raises:
            CheckpointError: If there is none, or they do not share their weights (members of two families, or one
                that was trained on alone).
        """
        models = {name: WorldModel.load(each, device=device) for name, each in model_folders(folder).items()}
        if "" in models:
            model = models.pop("")
            store = model.card.get("store")
            models[Path(store).stem if store else _place(folder).name] = model
        else:
            _check_shared(models, _place(folder))
        return cls(models)


def model_folders(folder: str | Path) -> dict[str, Path]:
    """Return robot to model folder of a family; the folder of a single model, or of its run, has "" for the robot.

    Raises:
        CheckpointError: If there is none.
    """
    place = _place(folder)
    alone = [each for each in (place, place / "model") if (each / "config.json").is_file()]
    found = robot_models(place / "robots") or ({"": alone[0]} if alone else robot_models(place))
    if not found:
        raise CheckpointError(
            f"{folder} holds no models; expected a model's folder, a run's, or one with ROBOT/model in it, as "
            "training several robots together writes"
        )
    return found


def _place(folder: str | Path) -> Path:
    given = str(folder)
    return pretrained_folder(given.removeprefix(PREFIX)) if given.startswith(PREFIX) else Path(folder)


def _check_shared(models: Mapping[str, WorldModel], folder: Path) -> None:
    (first, leader), *others = models.items()
    tensors = dict(leader.named_parameters())
    for robot, model in others:
        own = dict(model.named_parameters())
        different = [
            name for name in shared_names(leader) if name not in own or not torch.equal(own[name], tensors[name])
        ]
        if different:
            raise CheckpointError(
                f"{folder}: the models of {first} and {robot} do not share their weights: {len(different)} tensors "
                f"differ, the first is {different[0]!r}. Give a folder of robots that were trained together."
            )


def _replace(model: WorldModel, name: str, parameter: torch.nn.Parameter, robot: str) -> None:
    """Put another model's parameter in the place of a model's own."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        found = getattr(module, leaf)
    except AttributeError:
        found = None
    if found is None or found.shape != parameter.shape:
        raise ValueError(
            f"the model of {robot} cannot share {name!r}: it has {'none' if found is None else tuple(found.shape)}, "
            f"its family {tuple(parameter.shape)}. Members need one configuration, of one image size."
        )
    setattr(module, leaf, parameter)


def copy_shared(source: WorldModel, targets: Iterable[WorldModel]) -> None:
    """Give models the values of another one's shared parameters; they stay tensors of their own.

    Raises:
        ValueError: If a parameter is missing, or of another size.
    """
    given = dict(source.named_parameters())
    for target in targets:
        if target.stride != source.stride:
            raise ValueError(
                f"a step of what is taken over is {source.stride} frames of data, of the new model {target.stride}; "
                f"set model.temporal_stride={source.stride}"
            )
        own = dict(target.named_parameters())
        for name in shared_names(target):
            if name not in given or given[name].shape != own[name].shape:
                got = tuple(given[name].shape) if name in given else "none"
                raise ValueError(
                    f"cannot start from this model: {name!r} is {got} there, {tuple(own[name].shape)} here. Train with "
                    "the same model configuration (its config.json holds it)."
                )
            own[name].data.copy_(given[name].data)


__all__ = ["OWN", "Family", "copy_shared", "is_own", "own_backgrounds", "shared_names"]
