"""Read a store once, episode by episode, and put every check to it.

An error is what stops training or teaches something false: data that cannot be read, values that are not finite, a
camera that is blank or hangs for a whole episode, actions that never change, actions that come after their effect.
Everything that may be meant is a warning.
"""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.validation import columns, frames, rows
from embodied_wm.data.validation.alignment import Sample, align, find_misaligned
from embodied_wm.data.validation.findings import Alignment, Finding, ValidationReport, in_order
from embodied_wm.types import FeatureSpec

READ_BYTES = 64 * 2**20
SAMPLE_EPISODES = 500
"""Episodes, spread evenly, from which the usual steps are taken."""
ALIGNMENT_ROWS = 20_000
ACTION = "action"
STATE = "observation.state"


def validate_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> ValidationReport:
    """Check a store for what harms training.

    Args:
        path: An episode store.
        progress: Called with rows done and rows in all.

    Raises:
        StoreError: The path is no store, or holds no episode. (Damaged data in it is a finding.)
    """
    started_s = time.monotonic()
    store = EpisodeStore.open(path)
    if not store.num_episodes:
        raise StoreError(f"{path} holds no episode, so there is nothing to check. Collect or import some.")
    checks = _Checks(store)
    done = 0
    for first, stop in _blocks(store):
        for episode, features in checks.read(first, stop):
            checks.look_at(episode, features)
        done += int(store.episode_lengths[first:stop].sum())
        if progress is not None:
            progress(done, store.num_frames)
    findings, alignments = checks.conclude()
    return ValidationReport(
        path=store.path,
        fingerprint=store.fingerprint(),
        num_episodes=store.num_episodes,
        num_rows=store.num_frames,
        findings=in_order(findings),
        alignments=alignments,
        seconds=time.monotonic() - started_s,
    )


def _row_bytes(store: EpisodeStore) -> int:
    return sum(int(np.prod(spec.shape, dtype=int)) * np.dtype(spec.dtype).itemsize for spec in store.features.values())


def _blocks(store: EpisodeStore) -> Iterator[tuple[int, int]]:
    """Yield [first, stop) of neighbouring episodes that are READ_BYTES or less together, or one that is longer."""
    sizes = np.cumsum(store.episode_lengths) * _row_bytes(store)
    first = 0
    while first < store.num_episodes:
        before = sizes[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(sizes, before + READ_BYTES, side="right")))
        yield first, stop
        first = stop


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def _is_number(spec: FeatureSpec) -> bool:
    return np.dtype(spec.dtype).kind == "f"


class _Checks:
    """Keeps what the checks must know across episodes."""

    def __init__(self, store: EpisodeStore) -> None:
        self.store = store
        self.findings: list[Finding] = []
        self.specs = store.features
        self.numbers = [name for name, spec in self.specs.items() if _is_number(spec) and name != "timestamp"]
        self.cameras = [name for name, spec in self.specs.items() if spec.is_image]
        self.labels = {name: columns.column_labels(self.specs[name]) for name in self.numbers}
        self.chosen = np.unique(
            np.linspace(0, store.num_episodes - 1, min(SAMPLE_EPISODES, store.num_episodes)).round().astype(int)
        )
        self.scales = {name: self._scales(name) for name in self.numbers}
        self.typical = self._typical_motion()
        self.extremes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.hashes = np.zeros(store.num_frames, dtype=np.uint64)
        # Rows that could not be read must not look alike: each gets a name of its own.
        self.hashes[:] = np.arange(store.num_frames, dtype=np.uint64)
        self.samples: dict[str, list[Sample]] = {}
        self.sampled_rows = 0

    def _scales(self, name: str) -> columns.Scales | None:
        return columns.measure_scales(self._sampled(name))

    def _sampled(self, name: str) -> Iterator[np.ndarray]:
        ends, lengths = self.store.episode_ends, self.store.episode_lengths
        for episode in self.chosen:
            try:
                yield _flat(self.store.read(name, int(ends[episode] - lengths[episode]), int(ends[episode])))
            except StoreError:
                continue  # reported where all rows are read

    def _typical_motion(self) -> tuple[str, np.ndarray] | None:
        """Return the feature that says how the robot moves, and each column's median step where it moves."""
        for name in (STATE, ACTION):
            if name in self.numbers:
                steps = [columns.absolute_steps(values) for values in self._sampled(name)]
                whole = np.concatenate(steps) if steps else np.zeros((0, 1))
                moved = np.where((whole > 0) & np.isfinite(whole), whole, np.nan)
                some = np.isfinite(moved).any(axis=0)
                typical = np.zeros(whole.shape[1])
                typical[some] = np.nanmedian(moved[:, some], axis=0)
                return name, typical
        return None

    def read(self, first: int, stop: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield each episode of a block with the features that can be read; what cannot is a finding."""
        ends = np.concatenate([[0], self.store.episode_ends])
        block = {}
        for name in self.specs:
            try:
                block[name] = self.store.read(name, int(ends[first]), int(ends[stop]))
            except StoreError:
                block[name] = None  # find out below which episodes of the block it is
        for episode, (start, end) in enumerate(pairwise(ends[first : stop + 1].tolist()), start=first):
            features = {}
            for name, values in block.items():
                if values is not None:
                    features[name] = values[start - ends[first] : end - ends[first]]
                    continue
                try:
                    features[name] = self.store.read(name, start, end)
                except StoreError as error:
                    self._damaged(name, episode, end - start, error)
            yield episode, features

    def _damaged(self, name: str, episode: int, num_rows: int, error: StoreError) -> None:
        self.findings.append(
            Finding(
                check="damaged",
                severity="error",
                feature=name,
                episode=episode,
                num_rows=num_rows,
                message=str(error).removeprefix(f"{self.store.path}: "),
                advice="Restore the file from a copy, collect or import again, or leave the episode out.",
            )
        )

    def look_at(self, episode: int, features: dict[str, np.ndarray]) -> None:
        """Put the checks of single episodes to one, and keep what the others need."""
        found: list[Finding | None] = []
        fps, length = self.store.fps, int(self.store.episode_lengths[episode])
        moved = self._moved(features)
        for name in self.numbers:
            if name in features:
                found += self._look_at_numbers(name, _flat(features[name]), episode)
        if "timestamp" in features and self.specs["timestamp"].shape == ():
            self.findings += columns.find_timestamp_faults("timestamp", features["timestamp"], episode, fps)
        small = {name: frames.shrink(features[name]) for name in self.cameras if name in features}
        for name in self.cameras:
            if name in features:
                found.append(frames.find_blank(name, features[name], small[name], episode))
                found.append(frames.find_frozen(name, features[name], episode, moved, fps))
        if len(features) == len(self.specs):
            hashes = rows.hash_rows(features)
            stop = int(self.store.episode_ends[episode])
            self.hashes[stop - length : stop] = hashes
            found.append(rows.find_duplicated(self._compared(), hashes, episode, moved))
            self._keep_sample(episode, features, small)
        self.findings += [finding for finding in found if finding is not None]

    def _look_at_numbers(self, name: str, values: np.ndarray, episode: int) -> list[Finding | None]:
        self.extremes[name] = columns.extremes(self.extremes, name, values)
        scales = self.scales[name]
        jumps = None if scales is None else columns.find_jumps(name, values, episode, scales, self.labels[name])
        return [columns.find_not_finite(name, values, episode), jumps]

    def _moved(self, features: dict[str, np.ndarray]) -> np.ndarray | None:
        if self.typical is None or self.typical[0] not in features:
            return None
        moved = frames.motion(_flat(features[self.typical[0]]), self.typical[1])
        return np.nan_to_num(moved, posinf=0.0)

    def _compared(self) -> str:
        return ", ".join(name for name in self.specs if name not in rows.COUNTERS)

    def _keep_sample(self, episode: int, features: dict[str, np.ndarray], small: dict[str, np.ndarray]) -> None:
        """Keep small frames, actions and states of evenly spread episodes, up to a number of rows."""
        length = len(features[ACTION]) if ACTION in self.numbers else 0
        if not length or self.sampled_rows + length > ALIGNMENT_ROWS or episode not in self.chosen:
            return
        actions = _flat(features[ACTION])
        state = _flat(features[STATE]) if STATE in self.numbers else None
        if not np.isfinite(actions).all() or (state is not None and not np.isfinite(state).all()):
            return
        self.sampled_rows += length
        targets = state if state is not None and state.shape == actions.shape else None
        for name in self.cameras:
            self.samples.setdefault(name, []).append(Sample(seen=small[name], actions=actions, states=targets))
        if not self.cameras and state is not None:
            self.samples.setdefault(STATE, []).append(Sample(seen=state, actions=actions, states=targets))

    def conclude(self) -> tuple[list[Finding], list[Alignment]]:
        """Put the checks of the whole store, and return everything found."""
        for name, (low, high) in self.extremes.items():
            constant = columns.find_constant(name, low, high, self.labels[name], is_action=name == ACTION)
            if constant is not None:
                self.findings.append(constant)
        self.findings += rows.find_repeats(self._compared(), self.hashes, self.store.episode_ends)
        aligned = [align(name, samples) for name, samples in self.samples.items()]
        alignments = [alignment for alignment in aligned if alignment is not None]
        misaligned = [find_misaligned(alignment, self.store.fps) for alignment in alignments]
        self.findings += [finding for finding in misaligned if finding is not None]
        return self.findings, alignments
