"""What an episode must be to enter a store, and the number that names its content."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from embodied_wm.data.layout import StoreError
from embodied_wm.types import Episode, FeatureSpec


def check_episode(episode: Episode, features: Mapping[str, FeatureSpec], position: int) -> None:
    """Check that an episode can be appended to a store with these features.

    Raises:
        StoreError: Another set of features, another dtype or row shape, rows that differ in number, or no row.
    """
    if set(episode.features) != set(features):
        missing, unknown = sorted(set(features) - set(episode.features)), sorted(set(episode.features) - set(features))
        raise StoreError(
            f"Episode {position} of the group does not match the store: missing features {missing}, unknown {unknown}."
        )
    for name, spec in features.items():
        rows = episode.features[name]
        expected = (episode.num_rows, *spec.shape)
        if rows.shape != expected or rows.dtype != np.dtype(spec.dtype):
            raise StoreError(
                f"Episode {position} of the group, feature {name!r}: expected {spec.dtype} of shape {expected}, got "
                f"{rows.dtype} of shape {rows.shape}. Every feature has one row per frame; convert with "
                f".astype({spec.dtype!r}) where that is meant."
            )
    if episode.num_rows == 0:
        raise StoreError(f"Episode {position} of the group has no rows; expected at least one.")


def digest_episode(episode: Episode) -> int:
    """Return 64 bits that name an episode's content."""
    info = json.loads(json.dumps(dict(episode.info)))  # as it is read back: keys that are numbers become texts
    digest = hashlib.blake2b(json.dumps(info, sort_keys=True).encode(), digest_size=8)
    for name in sorted(episode.features):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(episode.features[name]).data)
    return int.from_bytes(digest.digest(), "little")
