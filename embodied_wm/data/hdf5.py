"""Import of HDF5 files in the layout of robomimic, which LIBERO, MimicGen and robosuite write too.

A file holds `data/demo_N/{actions, states, rewards, dones, obs/KEY, next_obs/KEY}`, one row per step: obs[t] is what
was seen when actions[t] was chosen, and actions[t] leads to obs[t + 1], so rows are taken as they stand; rewards[t] and
dones[t] are what that action led to, hence `next.reward` and `next.done`.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from embodied_wm.data.asked import asked_cameras, asked_numbers, asked_size
from embodied_wm.data.frames import resize_frames
from embodied_wm.data.imports import Finding, Group, ImportPlan, ImportReport, Progress, import_episodes
from embodied_wm.ranges import is_number
from embodied_wm.types import Episode, FeatureSpec

if TYPE_CHECKING:
    import h5py

IMAGES = "observation.images."
NAMES = {"actions": "action", "rewards": "next.reward", "dones": "next.done", "states": "sim.states"}
MAX_DEPTH = 4
# A file may claim any size without holding it; one feature of one demonstration must fit into memory.
MAX_BYTES = 4 * 2**30
FRAMES_AT_A_TIME = 64
GROUP_BYTES = 32 * 2**20
ENDS_BYTES = 2**20


class Hdf5Error(ValueError):
    """Report an HDF5 file that cannot be imported, with what to do about it."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Hold what is to be imported: demonstrations by number, and feature to its path within one and its stored form.

    `known` are the paths of the arrays that are taken, and of those that `notes` name.
    """

    demos: Mapping[int, "h5py.Group"]
    paths: Mapping[str, str]
    features: Mapping[str, FeatureSpec]
    known: frozenset[str]
    notes: tuple[str, ...]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name in self.features if name.startswith(IMAGES))


def import_hdf5(
    source: Path,
    out: Path,
    *,
    fps: float | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] = (64, 64),
    episodes: Sequence[int] | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> ImportReport:
    """Import a robomimic HDF5 file into an episode store at `out`.

    An import that was interrupted is continued, and a finished one is left as it is.

    `actions` becomes `action`, `obs/KEY` becomes `observation.KEY` or, for colour images, `observation.images.KEY`,
    `states` becomes `sim.states`; every other numeric array with a row per step keeps its name, but `next_obs`, which
    is `obs` one step later, is not taken. Values and dtypes stay as they are, images are resized to `image_size`
    (height, width). Links are not followed. What more than half of the demonstrations have becomes a feature; one that
    lacks it is left out, and what fewer have is left out of those.

    Args:
        source: The file.
        out: The store to make.
        fps: Steps per second; the file's own control frequency when None.
        cameras: Cameras to take, such as "observation.images.agentview_image"; all when None.
        image_size: Height and width of the stored frames.
        episodes: Numbers N of the demonstrations `demo_N` to take; all when None.
        progress: Called with rows done and rows in all.
        strict: Raise where otherwise something would be left out.

    Raises:
        Hdf5Error: h5py is not installed, the file cannot be read or is of another layout, a camera or demonstration
            does not exist, the frame rate is unknown, or `strict` is set and something had to be left out.
        StoreError: `out` exists and is something else, the settings differ from those it was begun with, it is being
            imported to, or cannot be written.
    """
    source = Path(source)
    size = asked_size(image_size, Hdf5Error)
    names = None if cameras is None else sorted(set(asked_cameras(cameras, Hdf5Error)))
    numbers = None if episodes is None else sorted(set(asked_numbers(episodes, "episodes", Hdf5Error)))
    if fps is not None and not _is_rate(fps):
        raise Hdf5Error(f"fps={fps}: expected how many steps a second has, a number above 0.")
    with _open(source) as file:
        settings = {
            "source": _identity(source),
            "fps": fps,
            "cameras": names,
            "image_size": list(size),
            "episodes": numbers,
        }
        return import_episodes(
            Path(out),
            settings,
            lambda: _import_plan(file, source, fps, _make_plan(file, source, names, size, numbers)),
            error=Hdf5Error,
            progress=progress,
            strict=strict,
        )


def _import_plan(file: "h5py.File", source: Path, fps: float | None, plan: _Plan) -> ImportPlan:
    environment = _json_attribute(file["data"], "env_args")
    lengths = {number: _readable_length(demo) for number, demo in plan.demos.items()}
    return ImportPlan(
        source=str(source),
        unit="demo_",
        lengths=lengths,
        features=plan.features,
        fps=_frame_rate(source, environment, fps),
        metadata=_metadata(source, environment),
        notes=plan.notes,
        read=lambda after: _groups(plan, {number: rows for number, rows in lengths.items() if number > after}, file),
    )


def _identity(source: Path) -> str:
    """Return 16 hex digits that name a file, from its size and both its ends, where HDF5 keeps its directories."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        with source.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in (0, max(0, size - ENDS_BYTES)):
                file.seek(start)
                digest.update(file.read(ENDS_BYTES))
    except OSError as error:
        raise Hdf5Error(f"{source} cannot be read: {error}.") from error
    digest.update(str(size).encode())
    return digest.hexdigest()


def _open(source: Path) -> "h5py.File":
    try:
        import h5py
    except ImportError as error:
        raise Hdf5Error(
            "Reading HDF5 needs the package h5py, which is not installed: pip install 'embodied-wm[hdf5]'."
        ) from error
    if not source.is_file():
        raise Hdf5Error(f"No such file: {source}.")
    try:
        return h5py.File(source, "r")
    except OSError as error:
        raise Hdf5Error(
            f"{source} cannot be read as HDF5: it is another kind of file, damaged, or not whole ({error})."
        ) from error


@contextmanager
def _damage_said(what: str) -> Iterator[None]:
    """Turn what h5py raises about a damaged file into an error of ours."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, UnicodeError) as error:
        raise Hdf5Error(f"{what}: the file is damaged, or a compression filter is missing ({error})") from error


def _make_plan(
    file: "h5py.File",
    source: Path,
    cameras: Sequence[str] | None,
    image_size: tuple[int, int],
    episodes: Sequence[int] | None,
) -> _Plan:
    with _damage_said(str(source)):
        demos = _demos(file, source)
        if episodes is not None:
            unknown = [number for number in episodes if number not in demos]
            if unknown or not episodes:
                raise Hdf5Error(
                    f"{source} has no demonstrations {unknown}; it has {len(demos)}, demo_{min(demos)} to "
                    f"demo_{max(demos)}."
                )
            demos = {number: demos[number] for number in episodes}
        surveys = [survey for demo in demos.values() if (survey := _survey(demo, image_size))]
        if not surveys:
            raise Hdf5Error(
                f"{source}: no demonstration holds actions; expected data/demo_N/actions with a row per step."
            )
        paths, features, notes = _features(surveys)
        found = [name for name in features if name.startswith(IMAGES)]
        absent = [name for name in cameras or () if name not in found]
        if absent:
            raise Hdf5Error(f"{source} has no cameras {absent}; choose among {found}.")
        left = [name for name in features if name not in found or cameras is None or name in cameras]
        return _Plan(
            demos=demos,
            paths={name: paths[name] for name in left},
            features={name: features[name] for name in left},
            known=frozenset({*paths.values(), *notes}),
            notes=tuple(notes.values()),
        )


def _demos(file: "h5py.File", source: Path) -> dict[int, "h5py.Group"]:
    members = dict(_members(file))
    data = members.get("data")
    demos = {}
    for name, member in _members(data) if data is not None and hasattr(data, "keys") else ():
        found = re.fullmatch(r"demo_(\d+)", name)
        if found and hasattr(member, "keys"):
            demos[int(found.group(1))] = member
    if not demos:
        raise Hdf5Error(
            f"{source} is not in robomimic's layout: expected groups data/demo_0, data/demo_1, ... with actions and "
            f"obs, found {sorted(members)[:8]} at the top."
        )
    return dict(sorted(demos.items()))


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group that lie in this very file."""
    import h5py

    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _arrays(group: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield path and array of every array below a group, but for the copies in `next_obs`."""
    for name, member in _members(group):
        if hasattr(member, "shape"):
            yield path + name, member
        elif depth < MAX_DEPTH and name != "next_obs" and hasattr(member, "keys"):
            yield from _arrays(member, f"{path}{name}/", depth + 1)


def _length(demo: "h5py.Group") -> int:
    """Return the number of steps of a demonstration, 0 where it has no actions."""
    actions = dict(_members(demo)).get("actions")
    return int(actions.shape[0]) if actions is not None and len(getattr(actions, "shape", ())) == 2 else 0


def _readable_length(demo: "h5py.Group") -> int:
    """Return the number of steps of a demonstration, 0 also where it is damaged."""
    try:
        with _damage_said("its length"):
            return _length(demo)
    except Hdf5Error:
        return 0


def _survey(demo: "h5py.Group", image_size: tuple[int, int]) -> dict[str, FeatureSpec | str] | None:
    """Return path to stored form, or to why it is left out; None where there are no actions, or damage."""
    try:
        with _damage_said("it cannot be read"):
            num_rows, members, found = _length(demo), dict(_members(demo)), dict[str, FeatureSpec | str]()
            for path, array in _arrays(demo):
                reason = _unusable(array, num_rows)
                shape = tuple(map(int, array.shape[1:]))
                if array.dtype == np.uint8 and len(shape) == 3:
                    shape = (*image_size, 3)
                found[path] = f"array {path!r} {reason}" if reason else FeatureSpec(dtype=array.dtype.name, shape=shape)
            found |= {name: f"{name!r} is a link" for name in map(str, demo) if name not in members}
    except Hdf5Error:
        return None
    return found if num_rows else None


def _features(
    surveys: Sequence[Mapping[str, FeatureSpec | str]],
) -> tuple[dict[str, str], dict[str, FeatureSpec], dict[str, str]]:
    """Return feature to path and to stored form, of what most have, and path to a note on the rest, if it says why."""
    paths, features, notes = {}, {}, {}
    for path in dict.fromkeys(path for survey in surveys for path in survey):
        found = [survey[path] for survey in surveys if path in survey]
        specs = Counter(entry for entry in found if isinstance(entry, FeatureSpec))
        if 2 * specs.total() <= len(surveys):
            reason = next((entry for entry in found if isinstance(entry, str)), None)
            if reason:
                notes[path] = f"{reason}: left out"
            continue
        spec = specs.most_common(1)[0][0]
        name = NAMES.get(path, path.removeprefix("obs/").replace("/", "."))
        if path.startswith("obs/"):
            name = (IMAGES if spec.is_image else "observation.") + name
        paths[name], features[name] = path, spec
    return paths, features, notes


def _unusable(array: Any, num_rows: int) -> str:
    """Return why an array cannot be taken, "" where it can."""
    shape = array.shape
    if array.dtype.kind not in "biuf":
        return f"of dtype {array.dtype} is not numeric"
    if not shape or shape[0] != num_rows or 0 in shape[1:]:
        return f"of shape {shape} does not have a value for each of {num_rows} steps"
    if array.is_virtual or array.external:
        return "lies in another file"
    if len(shape) == 4 and (array.dtype != np.uint8 or shape[3] != 3):
        return f"of {array.dtype} {shape[1:]} is no colour image"
    return ""


def _groups(plan: _Plan, lengths: Mapping[int, int], file: "h5py.File") -> Iterator[Group]:
    """Yield demonstrations, some at a time; those that cannot be taken are noted with their reason."""
    general = _task_text(_json_attribute(file["data"], "problem_info").get("language_instruction"))
    group, size = Group([], [], [], 0), 0
    for number, num_rows in lengths.items():
        taken, repaired, skipped = [*group.episodes], [*group.repaired], [*group.skipped]
        try:
            with _damage_said("it cannot be read"):
                episode, more = _episode(plan, number, plan.demos[number], general)
        except Hdf5Error as error:
            skipped.append(Finding(number, num_rows, str(error)))
        else:
            if more:
                reason = f"arrays {more}, which most demonstrations lack, were left out"
                repaired.append(Finding(number, num_rows, reason))
            taken.append(episode)
            size += sum(rows.nbytes for rows in episode.features.values())
        group = Group(taken, repaired, skipped, group.num_rows + num_rows)
        if size > GROUP_BYTES:
            yield group
            group, size = Group([], [], [], 0), 0
    if group.episodes or group.skipped:
        yield group


def _episode(plan: _Plan, number: int, demo: "h5py.Group", general: str) -> tuple[Episode, list[str]]:
    """Read one demonstration, and the paths of its arrays that most lack."""
    features = _read(plan, demo)
    told = _task_text(_json_attribute(demo, "ep_meta").get("lang")) or general
    info = {"source_episode": number, "task": told, "attributes": _attributes(demo)}
    return Episode(features=features, info=info), sorted({path for path, _ in _arrays(demo)} - plan.known)


def _read(plan: _Plan, demo: "h5py.Group") -> dict[str, np.ndarray]:
    """Read one demonstration; raise Hdf5Error with the reason if it cannot be taken."""
    num_rows, arrays = _length(demo), dict(_arrays(demo))
    if not num_rows:
        raise Hdf5Error("it holds no actions")
    features = {}
    for name, path in plan.paths.items():
        spec = plan.features[name]
        array = arrays.get(path)
        if array is None:
            raise Hdf5Error(f"{path!r} is missing")
        reason = _unusable(array, num_rows)
        if reason:
            raise Hdf5Error(f"{path!r} {reason}")
        if not spec.is_image and (array.shape[1:] != spec.shape or array.dtype.name != spec.dtype):
            raise Hdf5Error(f"{path!r} has rows of {array.dtype} {array.shape[1:]}, others {spec.dtype} {spec.shape}")
        if num_rows * np.prod(array.shape[1:], dtype=float) * array.dtype.itemsize > MAX_BYTES:
            raise Hdf5Error(f"{path!r} claims shape {array.shape}, more than {MAX_BYTES // 2**30} GiB")
        with _damage_said(f"{path!r} cannot be read"):
            features[name] = _frames(array, spec.shape[:2]) if spec.is_image else array[()].astype(spec.dtype)
        if spec.dtype[:5] == "float" and not np.isfinite(features[name]).all():
            row = int(np.argwhere(~np.isfinite(features[name]))[0][0])
            raise Hdf5Error(f"{path!r} is not finite in row {row}")
    return features


def _frames(array: Any, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    blocks = range(0, len(array), FRAMES_AT_A_TIME)
    return np.concatenate([resize_frames(array[at : at + FRAMES_AT_A_TIME], (height, width)) for at in blocks])


def _is_rate(value: Any) -> TypeGuard[float]:
    return is_number(value) and 0 < value < float("inf")


def _frame_rate(source: Path, environment: Mapping[str, Any], fps: float | None) -> float:
    told = environment.get("env_kwargs")
    rate = fps if fps is not None else told.get("control_freq") if isinstance(told, dict) else None
    if not _is_rate(rate):
        raise Hdf5Error(
            f"{source} does not say how many steps a second has (env_args.env_kwargs.control_freq is {rate!r}). Give "
            "it with fps=20, for example."
        )
    return float(rate)


def _metadata(source: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    told = environment.get("env_kwargs")
    robots = told.get("robots") if isinstance(told, dict) else None
    robot = (robots if isinstance(robots, str) else robots[0] if isinstance(robots, list) and robots else None) or (
        environment.get("env_name") or "unknown"
    )
    return {
        "source": {"format": "robomimic", "name": source.name},
        "robot": str(robot),
        "environment": dict(environment),
    }


def _json_attribute(group: Any, name: str) -> dict[str, Any]:
    """Return an attribute that holds a JSON object; {} where it is absent or holds something else."""
    try:
        value = json.loads(group.attrs[name], parse_constant=str)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError):
        return {}
    return value if isinstance(value, dict) else {}


def _attributes(demo: "h5py.Group") -> dict[str, Any]:
    """Return the attributes of a demonstration that JSON can hold, the simulator's model (`model_file`) among them."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in demo.attrs.items()}
    return {
        name: value
        for name, value in plain.items()
        if isinstance(value, bool | int | str) or (isinstance(value, float) and np.isfinite(value))
    }


def _task_text(value: Any) -> str:
    """Return a text, joined where it stands in letters or parts, as LIBERO writes it; "" where it is none."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "".join(value)
    return value.strip().strip('"') if isinstance(value, str) else ""
