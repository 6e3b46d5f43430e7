"""What the `train` verb trains: the model of one robot, or of several that share most of their weights."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from embodied_wm import checkpoint
from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.run import Run, flat_options
from embodied_wm.data.cameras import camera_names
from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.family import Family, model_folders
from embodied_wm.ranges import is_number
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import STAGES, train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig

ALONE = {"weights": "", "labelled": "trainer.labelled_fraction", "cameras": "trainer.camera"}
"""List of `together` to the option that says the same of the only store, if any does."""


def train_robots(
    places: Sequence[str | Path],
    config: Mapping[str, Any],
    run: Run,
    *,
    start_from: Path | None,
    same_data: Callable[[EpisodeStore, Run, str], None],
) -> WorldModel:
    """Train one robot's model as ever, or several together; return the first robot's.

    Args:
        places: The stores; that of `data.path` first.
        config: The values of configs/train.yaml.
        run: The run.
        start_from: Folder of the family to go on from.
        same_data: Checks, under a name, that a resumed run goes on with the same data.

    Raises:
        UsageError: If the lists of `together` do not fit the stores, or say nothing of robots, or two stores have one
            name.
    """
    stages = tuple(config["stages"]) or STAGES
    stores = [EpisodeStore.open(place) for place in places]
    shared = {"seed": config["seed"], "stages": stages, "console": run.console}
    if len(stores) == 1 and start_from is None:
        for key, instead in ALONE.items():
            if config["together"][key]:
                then = f"set {instead}" if instead else "leave it out"
                raise UsageError(
                    f"together.{key} is for several robots, and {places[0]} is one: {then}, or give stores"
                )
        if run.leads:
            same_data(stores[0], run, "data")
        return train_world_model(stores[0], config["model"], config["trainer"], run.folder, **shared)
    robots = name_robots(places, stores, config["together"], camera=config["trainer"].camera)
    if run.leads:
        for name, robot in robots.items():
            same_data(robot.store, run, f"data_{name}")
    before = None if start_from is None else Family.load(start_from)
    family = train_together(robots, config["model"], config["trainer"], run.folder, start_from=before, **shared)
    for name in family:
        run.console.print(f"model of {name}: [cyan]{run.folder / 'robots' / name / 'model'}[/]", soft_wrap=True)
    return next(iter(family.models.values()))


def model_options(start_from: Path) -> dict[str, str]:
    """Return the options, as text, of the models that a training goes on from: all of `model`, and several cameras.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    described = checkpoint.read_description(next(iter(model_folders(start_from).values())))
    values = flat_options(asdict(checkpoint.from_json(WorldModelConfig, described["config"])), "model.")
    # This group has every option; each gets the value that it has there.
    options = {"model": "nano_keypoints"} | {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }
    camera = checkpoint.from_json(Embodiment, described["embodiment"]).camera
    return options | ({"trainer.camera": camera} if len(camera_names(camera)) > 1 else {})


_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "weights": (lambda value: is_number(value) and 0 < value < math.inf, "numbers above 0"),
    "labelled": (
        lambda value: value is None or (is_number(value) and 0 <= value <= 1),
        "parts from 0 (video alone) to 1 (all labels)",
    ),
    "cameras": (lambda value: isinstance(value, str), "names, such as observation.images.top"),
}
"""List of `together` to what each of its entries must be."""


def name_robots(
    places: Sequence[str | Path],
    stores: Sequence[EpisodeStore],
    together: Mapping[str, Sequence[Any]],
    *,
    camera: str = "",
) -> dict[str, RobotStore]:
    """Return name to robot, from the lists of `together` in the order of the stores; a store's name is its robot's.

    Where no cameras are given for each, all robots have `camera`; empty is a store's only one.
    """
    names = [PurePosixPath(str(place)).stem for place in places]
    if len(set(names)) < len(names):
        raise UsageError(f"robots are named as their stores, got {', '.join(names)}; give each store another name")
    for key in ("weights", "labelled", "cameras"):
        if len(together[key]) not in (0, len(names)):
            raise UsageError(
                f"together.{key} has {len(together[key])} entries for {len(names)} stores: {', '.join(names)}; give "
                "one for each, that of data.path first, or none"
            )
        check, expected = _ENTRIES[key]
        if not all(map(check, together[key])):
            raise UsageError(f"together.{key}={list(together[key])}: expected {expected}, one for each store")
    count = range(len(names))
    return {
        names[place]: RobotStore(
            store=stores[place],
            camera=[*together["cameras"], *(camera for _ in count)][place],
            weight=[*together["weights"], *(1.0 for _ in count)][place],
            labelled_fraction=[*together["labelled"], *(None for _ in count)][place],
        )
        for place in count
    }
