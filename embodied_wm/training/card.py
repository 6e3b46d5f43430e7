"""What a model's card says of its training: on what, in which stages, how long, with what losses at the end."""

from typing import TYPE_CHECKING, Any

from embodied_wm.world_model import WorldModel

if TYPE_CHECKING:
    from embodied_wm.training.train import Trainer

ADOPTED = ("tokenizer", "latent_actions")
"""Parts that are taken over from another model where their stages are left out."""


def training_card(trainer: "Trainer", start_from: WorldModel | None) -> dict[str, Any]:
    """Return the card of a model that was just trained; of parts that were taken over it says what their card said."""
    store, seconds = trainer.store, trainer.seconds
    found: dict[str, Any] = {
        "store": store.address,
        "fingerprint": store.fingerprint(),
        "source": store.metadata.get("source"),
        "seed": trainer.seed,
        "episodes": len(trainer.train_episodes),
        "labelled_episodes": len(trainer.labelled),
        "held_out_episodes": len(trainer.held_out),
        "rows": int(store.episode_lengths[trainer.train_episodes].sum()),
        "steps": {name: getattr(trainer.config, name).num_steps for name in seconds},
        "seconds": seconds,
        "metrics": trainer.metrics,
    }
    if start_from is not None:
        adopted = [name for name in ADOPTED if name not in seconds]
        for key in ("steps", "seconds", "metrics"):
            before = start_from.card.get(key, {})
            found[key] = {name: before[name] for name in adopted if name in before} | found[key]
    return found
