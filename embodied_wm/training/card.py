"""What a model's card says of its training: on what, in which stages, how long, with what losses at the end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embodied_wm.world_model import WorldModel

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

OPTIONAL = ("temporal_distance", "goal_policy")
"""Parts, and their stages, that a model may have or not."""
DATA = ("store", "fingerprint", "source", "episodes", "labelled_episodes", "held_out_episodes", "rows")
"""What a card says of the episodes that a model was trained on."""


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
        "source": store.metadata.get("source"),
        "seed": trainer.seed,
        "episodes": len(trainer.train_episodes),
        "labelled_episodes": len(trainer.labelled),
        "held_out_episodes": len(trainer.held_out),
        "rows": int(store.episode_lengths[trainer.train_episodes].sum()),
        "steps": {name: getattr(trainer.config, name).num_steps for name in metrics},
        "seconds": trainer.seconds,
        "metrics": metrics,
    }
    before = {} if start_from is None else start_from.card
    if set(metrics) <= set(OPTIONAL):  # the rest knows what it was trained on
        found |= {key: before[key] for key in DATA if key in before}
    found["adopted"] = [name for name in adopted if name not in metrics and name in before.get("steps", {})]
    for key in ("steps", "seconds", "metrics"):
        found[key] = {name: before[key][name] for name in found["adopted"] if name in before[key]} | found[key]
    return found


__all__ = ["OPTIONAL", "training_card"]
