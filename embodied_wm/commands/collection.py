"""Collects episodes of a MuJoCo task into a store, and continues a store that holds fewer than asked for."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from itertools import batched, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.interrupts import held_back
from embodied_wm.progress import Track

if TYPE_CHECKING:
    from embodied_wm.data.store import EpisodeStore

GROUP_EPISODES = 20
"""Episodes of one commit; the most work that stopping loses."""


def collect_store(out: Path, config: Mapping[str, Any], console: Console) -> None:
    """Collect until the store at `out` holds the number of episodes asked for.

    Args:
        out: Folder of the store.
        config: The values of configs/collect.yaml.
        console: Where to print.

    Raises:
        StoreError: `out` is something else than a store, or damaged.
        UsageError: The store was collected otherwise.
    """
    from embodied_wm.types import Episode
    from sim.collect import collect
    from sim.tasks import varied_name

    task, number, variation = config["task"], config["episodes"], list(config.get("variation", ()))
    name = varied_name(task["name"], variation)
    source = {
        "kind": "collect",
        "task": name,
        "seed": config["seed"],
        "policy": config["policy"],
        "image_size": task["image_size"],
        "camera": task["camera"],
        "rows": config["rows"],
    }
    for option, value, least in (
        ("episodes", number, 1),
        ("rows", config["rows"], 2),
        ("workers", config["workers"], 1),
        ("task.image_size", task["image_size"], 1),
    ):
        if value < least:
            raise UsageError(f"{option}={value}: expected at least {least}")
    with ExitStack() as stack:
        store = stack.enter_context(closing(_open(out, source))) if is_used(out) else None
        done = store.num_episodes if store else 0
        if done >= number:
            console.print(f"{out} holds {done} episodes already; nothing to do", soft_wrap=True)
            return
        if done:
            console.print(f"continuing {out}, which holds {done} episodes", soft_wrap=True)
        _check_rendering(name, task["image_size"], task["camera"])
        episodes = collect(
            name,
            num_episodes=number - done,
            seed=config["seed"],
            image_size=task["image_size"],
            policy=config["policy"],
            camera=task["camera"],
            num_workers=config["workers"],
            num_rows=config["rows"],
            first_episode=done,
        )
        with held_back():  # worker processes start here, and so never see Ctrl-C themselves
            first = next(episodes)
        # Made only now: what cannot be collected leaves no empty store.
        store = store or stack.enter_context(closing(_create(out, source)))
        with Track(f"collect {name}", number, unit="episodes", start=done, console=console) as track:
            for group in batched(chain([first], episodes), GROUP_EPISODES):
                store.append([Episode(features=episode["features"], info=episode["info"]) for episode in group])
                track.advance(len(group))
        console.print(f"{out}: {store.num_episodes} episodes, {store.num_frames} rows", soft_wrap=True)


def _check_rendering(task: str, image_size: int, camera: str | None) -> None:
    """Fail here, in plain words, where a worker process could only die."""
    from sim.tasks import get_task

    get_task(task).renderer(image_size, image_size * len((camera or "").split("+")), camera).close()


def is_used(path: Path) -> bool:
    """Tell whether something is at a path, other than an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _open(out: Path, source: Mapping[str, Any]) -> "EpisodeStore":
    from embodied_wm.data.store import EpisodeStore

    store = EpisodeStore.open(out, mode="a")
    stored = store.metadata.get("source", {})
    other = {key: stored.get(key) for key, value in source.items() if stored.get(key) != value}
    if other:
        store.close()
        there = ", ".join(f"{key}={value}" for key, value in other.items())
        here = ", ".join(f"{key}={source[key]}" for key in other)
        raise UsageError(f"{out} was collected with {there}, not {here}; choose another out= or the same values")
    return store


def _create(out: Path, source: Mapping[str, Any]) -> "EpisodeStore":
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.types import FeatureSpec
    from sim.collect import features
    from sim.tasks import get_task

    task = get_task(source["task"])
    described = features(task, source["image_size"], source["camera"])
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in described.items()
    }
    return EpisodeStore.create(
        out, features=specs, fps=task.fps, metadata={"source": dict(source), "robot": task.robot}
    )
