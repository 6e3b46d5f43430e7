"""What a model's card says of its training: on what, in which stages, how long, with what losses at the end."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embodied_wm.world_model import WorldModel

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

OPTIONAL = ("temporal_distance", "goal_policy")
"""Parts, and their stages, that a model may have or not."""
STEPS_OF = {"real_actions": "predictor"}
"""Stages that take another one's settings."""
DATA = (
    "store",
    "fingerprint",
    "source",
    "episodes",
    "labelled_episodes",
    "labelled_seed",
    "held_out_episodes",
    "rows",
)
"""What a card says of the episodes that a model was trained on."""
NESTED = ("of", "metadata", "source")
"""Keys of where a store comes from whose values say that of the stores it was made of."""
MOST_LETTERS, MOST_ITEMS = 200, 16
"""Longest text, and longest list, that a card takes over of where a store comes from."""


def training_card(trainer: "Trainer", start_from: WorldModel | None, adopted: Sequence[str]) -> dict[str, Any]:
    """Return the card of a model that was just trained.

    Args:
        trainer: What trained it.
        start_from: The model that other weights were taken over from, if any.
        adopted: Stages of which these are; what that model's card says of them stands in this one, too, and their names
            under "adopted".
    """
    store, metrics = trainer.store, trainer.metrics
    found: dict[str, Any] = {
        "store": store.address,
        "fingerprint": store.fingerprint(),
        "source": short_source(store.metadata.get("source")),
        "seed": trainer.seed,
        "episodes": len(trainer.train_episodes),
        "labelled_episodes": len(trainer.labelled),
        "labelled_seed": trainer.seed,
        "held_out_episodes": len(trainer.held_out),
        "rows": int(store.episode_lengths[trainer.train_episodes].sum()),
        "steps": {name: getattr(trainer.config, STEPS_OF.get(name, name)).num_steps for name in metrics},
        "seconds": trainer.seconds,
        "metrics": metrics,
    }
    before = {} if start_from is None else start_from.card
    if set(metrics) <= set(OPTIONAL):  # the rest knows what it was trained on
        found["labelled_seed"] = before.get("seed", trainer.seed)
        found |= {key: before[key] for key in DATA if key in before}
    found["adopted"] = [name for name in adopted if name not in metrics and name in before.get("steps", {})]
    for key in ("steps", "seconds", "metrics"):
        found[key] = {name: before[key][name] for name in found["adopted"] if name in before[key]} | found[key]
    return found


def short_source(source: Any) -> Any:
    """Return where a store comes from without what only its import needs: short values, and those of its parts.

    A LeRobot dataset's own metadata, which an imported store keeps, are tens of kilobytes.
    """
    if isinstance(source, Mapping):
        return {key: short_source(value) for key, value in source.items() if key in NESTED or _is_short(value)}
    if isinstance(source, list):
        return [short_source(each) for each in source]
    return source


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_ITEMS and all(not isinstance(each, list) and _is_short(each) for each in value)
    return not isinstance(value, Mapping) and len(str(value)) <= MOST_LETTERS


__all__ = ["OPTIONAL", "short_source", "training_card"]
