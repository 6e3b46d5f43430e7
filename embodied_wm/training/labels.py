"""Which training episodes have labels that may be used, as a model's card can tell again, and how labels are read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import OUTCOMES


def labelled_members(num_episodes: int, num_labelled: int, seed: int) -> list[int]:
    """Choose, by a seed, which of the training episodes are labelled; return their places among those, in order."""
    order = np.random.default_rng(seed).permutation(num_episodes)
    return sorted(int(index) for index in order[:num_labelled])


def labelled_of_card(card: Mapping[str, Any]) -> set[int] | None:
    """Return the episodes, numbered as in its store, whose labels a model's training used; None where it used all.

    Training episodes are the first ones of a store, so their numbers are their places. A card that does not say how
    many were labelled is of a model whose labels nobody withheld.
    """
    count, num_labelled = card.get("episodes"), card.get("labelled_episodes")
    if count is None or num_labelled is None or num_labelled >= count:
        return None
    seed = card["labelled_seed"] if "labelled_seed" in card else card["seed"]
    return set(labelled_members(count, num_labelled, seed))


def read_labels(store: EpisodeStore, name: str, start: int, stop: int) -> np.ndarray:
    """Return a feature's rows of one episode, each beside the frame that shows it.

    An outcome is of a row's action, and seen in the frame after it; nothing led to the first, which keeps its own.
    """
    rows = store.read(name, start, stop)
    return np.concatenate([rows[:1], rows[:-1]]) if name in OUTCOMES else rows


__all__ = ["labelled_members", "labelled_of_card", "read_labels"]
