"""Processes for tests of the store: one that appends for ever, to be killed, and one that meets a full disk."""

import resource
import sys

import numpy as np

from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode


def numbered_episode(number: int, rows: int | None = None) -> Episode:
    """Return an episode whose content follows from its number."""
    rng = np.random.default_rng(number)
    rows = rows or 3 + number % 5
    return Episode(
        features={
            "observation.images.top": rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
            "action": rng.normal(size=(rows, 2)).astype(np.float32),
            "next.success": np.zeros(rows, dtype=bool),
        },
        info={"number": number},
    )


def append_for_ever(store: EpisodeStore) -> None:
    """Append two episodes at a time, saying after each commit how many there are."""
    while True:
        first = store.num_episodes
        store.append([numbered_episode(first), numbered_episode(first + 1)])
        print(store.num_episodes, flush=True)


def append_to_a_full_disk(store: EpisodeStore) -> None:
    """Fail to append where files cannot grow, say the error, and append where they can."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        store.append([numbered_episode(2, rows=100)])
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.append([numbered_episode(2)])


if __name__ == "__main__":
    with EpisodeStore.open(sys.argv[1], mode="a") as opened:
        if sys.argv[2:] == ["full disk"]:
            append_to_a_full_disk(opened)
        else:
            append_for_ever(opened)
