"""Make new stores of stores: merge, split, filter.

Sources are only read. A result is written beside its place and moved there when it is complete, so it is there as a
whole or not at all. Episodes are copied unchanged, and a fingerprint names content only, so merging the parts of a
split, in order, gives the fingerprint of what was split.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.data.arrays import is_local
from embodied_wm.data.aside import written_aside
from embodied_wm.data.asked import asked_numbers, whole_number
from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.types import Episode, FeatureSpec

COPY_BYTES = 64 * 2**20
"""Rows that are in memory at a time, but at least one episode."""
SUCCESS = "next.success"
OF_AN_IMPORT = ("import", "complete")
"""Metadata of an import that a result does not inherit: with it, the import would take the result for its own."""

type Address = str | Path
type Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Say which episodes to keep; what is None asks for nothing.

    Attributes:
        episodes: Episodes to keep.
        delete_episodes: Episodes to leave out.
        min_rows: Least rows of an episode.
        max_rows: Most rows of an episode.
        success: Whether the episode succeeded: by "success" of its info, or by the last row of `next.success`.
        info: Values that the episode's info must have: key to a value, or to a list of which it must be one.
    """

    episodes: Sequence[int] | int | None = None
    delete_episodes: Sequence[int] | int | None = None
    min_rows: int | None = None
    max_rows: int | None = None
    success: bool | None = None
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Take ranges, arrays and NumPy's numbers, and refuse values of another kind.

        That episodes are there is checked against the store.

        Raises:
            StoreError: A value is of another kind.
        """
        for name in ("episodes", "delete_episodes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, asked_numbers(getattr(self, name), name, StoreError))
        for name, rows in (("min_rows", self.min_rows), ("max_rows", self.max_rows)):
            if rows is not None and whole_number(rows) is None:
                raise StoreError(f"{name}={rows}: expected a whole number of rows, such as 10.")
            object.__setattr__(self, name, whole_number(rows))
        if self.success is not None and not isinstance(self.success, bool):
            raise StoreError(f"success={self.success}: expected true or false.")
        if not isinstance(self.info, Mapping):
            raise StoreError(f"info={self.info}: expected keys and their values, such as {{task:push,seed:[0,1]}}.")


def merge_stores(sources: Sequence[Address], out: Address, *, progress: Progress | None = None) -> EpisodeStore:
    """Write the episodes of stores of equal features, one store after the other, into a new store; open it to read.

    Metadata that all sources agree on is kept, but for what an import notes of itself; all of it is kept under
    "source".

    Raises:
        StoreError: No source, sources that differ in features or fps, or `out` exists or cannot be written.
    """
    stores = [EpisodeStore.open(source) for source in sources]
    if not stores:
        raise StoreError("Merging needs at least one store, got none.")
    for store in stores[1:]:
        _check_alike(stores[0], store)
    first = _inherited(stores[0])
    shared = {key: value for key, value in first.items() if all(s.metadata.get(key) == value for s in stores)}
    chosen = [(store, np.arange(store.num_episodes)) for store in stores]
    with _built_aside(out, sources) as aside:
        _write(aside, chosen, shared | _source("merge", stores), _counted(progress, chosen))
    return EpisodeStore.open(out)


def split_store(
    source: Address,
    out: Address,
    splits: Mapping[str, float | Sequence[int]],
    *,
    progress: Progress | None = None,
) -> dict[str, EpisodeStore]:
    """Write parts of a store as out/<part>.zarr, and open them to read.

    Args:
        source: The store.
        out: Folder that is made.
        splits: Part to a fraction of the episodes, taken in order, or to a list of episodes. Fractions add up to 1 at
            most; what they leave, and episodes that no list names, are in no part.
        progress: Called with rows done and rows in all.

    Raises:
        StoreError: A part without episodes, an episode in two parts or not in the store, fractions mixed with lists or
            adding up to more than 1, or `out` exists or cannot be written.
    """
    store = EpisodeStore.open(source)
    parts = assign_parts(store.num_episodes, splits)
    advance = _counted(progress, [(store, episodes) for episodes in parts.values()])
    with _built_aside(out, [source]) as aside:
        aside.mkdir()
        for name, episodes in parts.items():
            metadata = _inherited(store) | _source("split", [store], part=name)
            _write(aside / f"{name}.zarr", [(store, episodes)], metadata, advance)
    return {name: EpisodeStore.open(Path(out, f"{name}.zarr")) for name in parts}


def filter_store(
    source: Address, out: Address, conditions: Conditions, *, progress: Progress | None = None
) -> EpisodeStore:
    """Write the episodes of a store that meet all conditions into a new one, and open it to read.

    Raises:
        StoreError: No episode meets them, or one of them cannot be asked of this store, or `out` exists or cannot be
            written.
    """
    store = EpisodeStore.open(source)
    kept = select_episodes(store, conditions)
    if not len(kept):
        raise StoreError(f"{source}: none of its {store.num_episodes} episodes meets the conditions.")
    asked = {key: value for key, value in asdict(conditions).items() if value not in (None, {})}
    metadata = _inherited(store) | _source("filter", [store], conditions=asked)
    with _built_aside(out, [source]) as aside:
        _write(aside, [(store, kept)], metadata, _counted(progress, [(store, kept)]))
    return EpisodeStore.open(out)


def assign_parts(num_episodes: int, splits: Mapping[str, float | Sequence[int]]) -> dict[str, np.ndarray]:
    """Return part to its episodes [n]; see `split_store`."""
    if not splits or not isinstance(splits, Mapping):
        raise StoreError(
            f"splits={splits}: expected parts, such as {{train:0.8,val:0.2}} or {{a:[0,1],b:[2]}}. In a shell put the "
            "whole option in quotes: 'splits={...}'; without them the shell takes braces apart."
        )
    for name in splits:
        if not re.fullmatch("[A-Za-z0-9_-]+", str(name)):
            raise StoreError(f"A part's name becomes a file's name: letters, digits, '_' and '-', got {name!r}.")
    fractions = [share for share in splits.values() if isinstance(share, int | float)]
    if fractions and len(fractions) < len(splits):
        raise StoreError(f"Give a fraction for every part or a list of episodes for every part, got {dict(splits)}.")
    if fractions:
        if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise StoreError(f"Fractions are above 0 and add up to 1 at most, got {fractions}.")
        bounds = np.round(np.cumsum([0, *fractions]) * num_episodes).astype(int)
        parts = {name: np.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(splits)}
    else:
        parts = {name: _checked(share, num_episodes, f"part {name!r}") for name, share in splits.items()}  # type: ignore[arg-type]
        listed, counts = np.unique(np.concatenate(list(parts.values())), return_counts=True)
        if (counts > 1).any():
            raise StoreError(f"Episode {listed[counts > 1][0]} is in two parts; every episode belongs to one at most.")
    empty = [name for name, episodes in parts.items() if not len(episodes)]
    if empty:
        raise StoreError(f"Part {empty[0]!r} would hold none of the {num_episodes} episodes; give it a larger share.")
    return parts


def select_episodes(store: EpisodeStore, conditions: Conditions) -> np.ndarray:
    """Return the episodes [n] that meet all conditions, in order.

    Raises:
        StoreError: An episode that is not there, a key that no episode's info has, or success where nothing tells it.
    """
    number, lengths = store.num_episodes, store.episode_lengths
    kept = np.ones(number, dtype=bool)
    if conditions.episodes is not None:
        kept[:] = False
        kept[_checked(conditions.episodes, number, "episodes")] = True
    if conditions.delete_episodes is not None:
        kept[_checked(conditions.delete_episodes, number, "delete_episodes")] = False
    if conditions.min_rows is not None:
        kept &= lengths >= conditions.min_rows
    if conditions.max_rows is not None:
        kept &= lengths <= conditions.max_rows
    if conditions.info or conditions.success is not None:
        infos = {episode: store.episode_info(episode) for episode in np.flatnonzero(kept).tolist()}
        _check_info_keys(store, conditions.info, infos)
        for episode, info in infos.items():
            kept[episode] = _meets(info, conditions.info) and (
                conditions.success is None or _succeeded(store, episode, info) == conditions.success
            )
    return np.flatnonzero(kept)


def _meets(info: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        info.get(key) in value if isinstance(value, list | tuple) else info.get(key) == value
        for key, value in wanted.items()
    )


def _check_info_keys(store: EpisodeStore, wanted: Mapping[str, Any], infos: Mapping[int, Mapping[str, Any]]) -> None:
    known = {key for info in infos.values() for key in info}
    unknown = [key for key in wanted if infos and key not in known]
    if unknown:
        raise StoreError(f"{store.path}: no episode's info has {unknown[0]!r}; they have {sorted(known)}.")


def _succeeded(store: EpisodeStore, episode: int, info: Mapping[str, Any]) -> bool:
    if isinstance(info.get("success"), bool):
        return info["success"]
    if SUCCESS not in store.features:
        raise StoreError(
            f"{store.path}: nothing says whether episode {episode} succeeded: its info has no 'success', and the store "
            f"no feature {SUCCESS!r}. Leave the condition on success out."
        )
    stop = int(store.episode_ends[episode])
    return bool(np.all(store.read(SUCCESS, stop - 1, stop)))


def _checked(episodes: Sequence[int] | int, number: int, what: str) -> np.ndarray:
    numbers = asked_numbers(episodes, what, StoreError)
    outside = [episode for episode in numbers if not 0 <= episode < number]
    if outside:
        raise StoreError(f"{what}: there is no episode {outside[0]}; the store holds {number}, counted from 0.")
    return np.unique(np.asarray(numbers, dtype=np.int64))


def _check_alike(one: EpisodeStore, other: EpisodeStore) -> None:
    if one.fps != other.fps:
        raise StoreError(
            f"{one.path} has {one.fps:g} rows per second, {other.path} {other.fps:g}; only equal ones merge."
        )
    for name in sorted(set(one.features) | set(other.features)):
        described = [_describe(store.features.get(name)) for store in (one, other)]
        if described[0] != described[1]:
            raise StoreError(
                f"Only stores of equal features merge, but {name!r} is {described[0]} in {one.path} and "
                f"{described[1]} in {other.path}. Import or collect them alike, or train on both as a mixture."
            )


def _describe(spec: FeatureSpec | None) -> str:
    if spec is None:
        return "absent"
    details = f", names {list(spec.names)}" * bool(spec.names) + f", units {list(spec.units)}" * bool(spec.units)
    return f"{spec.dtype} of shape {spec.shape}{details}"


def _inherited(store: EpisodeStore) -> dict[str, Any]:
    return {key: value for key, value in store.metadata.items() if key not in OF_AN_IMPORT}


def _source(operation: str, stores: Sequence[EpisodeStore], **details: Any) -> dict[str, Any]:
    """Return where a new store comes from; as its "source" is another, no collecting or importing continues it."""
    of = [
        {"name": Path(store.path).name, "fingerprint": store.fingerprint(), "metadata": dict(store.metadata)}
        for store in stores
    ]
    return {"source": {"kind": operation, "of": of, **details}}


def _built_aside(out: Address, sources: Sequence[Address]) -> AbstractContextManager[Path]:
    """Return `written_aside(out)`, after a check that `out` is local and in none of the sources."""
    if not is_local(str(out)):
        raise StoreError(f"{out}: expected a local folder, for only there a result can appear in one step.")
    place = Path(out)
    if any(is_local(str(source)) and Path(source).resolve() in place.resolve().parents for source in sources):
        raise StoreError(f"{out} lies inside a store that is read. Choose a path outside of it.")
    return written_aside(place)


def _write(
    path: Path,
    chosen: Sequence[tuple[EpisodeStore, np.ndarray]],
    metadata: Mapping[str, Any],
    advance: Callable[[int], None],
) -> None:
    first = chosen[0][0]
    with EpisodeStore.create(path, features=first.features, fps=first.fps, metadata=metadata) as made:
        for store, episodes in chosen:
            for group in _groups(store, episodes):
                copied = _read(store, group)
                made.append(copied)
                advance(sum(episode.num_rows for episode in copied))


def _groups(store: EpisodeStore, episodes: np.ndarray) -> list[np.ndarray]:
    """Part episodes into groups of about COPY_BYTES."""
    row_bytes = sum(
        int(np.prod(spec.shape, dtype=int)) * np.dtype(spec.dtype).itemsize for spec in store.features.values()
    )
    filled = np.cumsum(store.episode_lengths[episodes]) * row_bytes // COPY_BYTES
    return np.split(episodes, np.flatnonzero(np.diff(filled)) + 1) if len(episodes) else []


def _read(store: EpisodeStore, episodes: np.ndarray) -> list[Episode]:
    """Read episodes; neighbours with one read per feature."""
    ends = np.concatenate([[0], store.episode_ends])
    found = []
    for run in np.split(episodes, np.flatnonzero(np.diff(episodes) != 1) + 1):
        first, stop = int(ends[run[0]]), int(ends[run[-1] + 1])
        block = {name: store.read(name, first, stop) for name in store.features}
        for episode in run.tolist():
            start, end = int(ends[episode]) - first, int(ends[episode + 1]) - first
            rows = {name: values[start:end] for name, values in block.items()}
            found.append(Episode(features=rows, info=store.episode_info(episode)))
    return found


def _counted(progress: Progress | None, chosen: Sequence[tuple[EpisodeStore, np.ndarray]]) -> Callable[[int], None]:
    total = sum(int(store.episode_lengths[episodes].sum()) for store, episodes in chosen)
    done = 0

    def advance(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        if progress is not None:
            progress(done, total)

    return advance
