"""Checkpoints: safetensors for tensors, JSON for everything else; nothing is ever unpickled.

A model folder holds `model.safetensors`, `config.json` (format, version, configuration, embodiment, card) and, for
people, `README.md`, which is made from the rest (see `model_card`). Files are written beside their final name and
renamed, so a kill leaves the old file or the new one.
"""

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from embodied_wm.near_names import nearest

FORMAT = "embodied_wm.world_model"
VERSION = 2
PARTS = ("config", "embodiment", "card")


class CheckpointError(ValueError):
    """Say why a folder cannot be loaded as a model, or a file of it cannot be written."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON by rename.

    Raises:
        CheckpointError: If it cannot be written; what was there before is intact.
    """
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename.

    Raises:
        CheckpointError: If it cannot be written; what was there before is intact.
    """
    _by_rename(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors by rename.

    Raises:
        CheckpointError: If they cannot be written; what was there before is intact.
    """
    content = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
    _by_rename(path, lambda part: part.write_bytes(content))  # save_file would hide it from other users


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: If it is no whole safetensors file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged, or no safetensors file ({error}); take another checkpoint. Nothing is unpickled."
        ) from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that depend on every name and number."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_rename(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = "; what it held before is intact" if path.exists() else ""
        raise CheckpointError(
            f"{path} could not be written: {error}{kept}. Free space, or choose another disk."
        ) from error


def save_model(
    folder: Path, tensors: Mapping[str, Tensor], *, config: Any, embodiment: Any, card: Mapping[str, Any]
) -> None:
    """Write a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", description(config, embodiment, card))


def description(config: Any, embodiment: Any, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json holds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "embodiment": dataclasses.asdict(embodiment),
        "card": dict(card),
    }


def model_folder(path: Path) -> Path:
    """Return the model folder of a run folder, also that of its only robot, or the path itself where there is none."""
    found = [path / "model"] if (path / "model").is_dir() else list(robot_models(path / "robots").values())
    return found[0] if len(found) == 1 else path


def robot_models(folder: Path) -> dict[str, Path]:
    """Return robot to model folder of those that `embodied_wm.family` wrote into a folder, by name."""
    return {path.parent.parent.name: path.parent for path in sorted(folder.glob("*/model/config.json"))}


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check config.json.

    Raises:
        CheckpointError: If it is missing, not ours, or of another version.
    """
    path = folder / "config.json"
    if not folder.exists():
        raise CheckpointError(f"no such folder: {folder}. Give the model folder that `embodied-wm train` wrote.")
    if not path.is_file():
        if robots := robot_models(folder / "robots"):
            raise CheckpointError(
                f"{folder} holds the models of several robots; give that of one: {', '.join(map(str, robots.values()))}"
            )
        if (folder / "stages").is_dir() and not (folder / "model").exists():
            raise CheckpointError(
                f"{folder}: this training is not finished, so there is no model yet. Go on with "
                f"`embodied-wm train run_dir={folder} resume=true`."
            )
        raise CheckpointError(
            f"{folder} is not a model folder: it has no config.json. Give the folder that `embodied-wm train` wrote, "
            f"such as runs/train/<date>/model."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); the checkpoint is damaged, take another") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: format is {found!r}, expected {FORMAT!r}; this checkpoint is not one of ours")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {content.get('version')!r}, this release reads version {VERSION}; "
            f"load it with the release that wrote it, or train again"
        )
    missing = [key for key in PARTS if not isinstance(content.get(key), dict)]
    if missing:
        raise CheckpointError(
            f"{path}: {missing[0]!r} is {content.get(missing[0], 'missing')!r}; expected objects: {', '.join(PARTS)}. "
            f"The checkpoint is damaged, take another"
        )
    return content


def load_tensors(folder: Path, model: nn.Module) -> None:
    """Load model.safetensors into a module built from the same description.

    Raises:
        CheckpointError: If the file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has a config.json but no model.safetensors; the checkpoint is incomplete")
    tensors = read_tensors(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise CheckpointError(
            f"{path} does not fit its config.json: {len(different)} tensors differ, the first is {name!r}: got "
            f"{found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        )
    model.load_state_dict(tensors)


def from_json[T](kind: type[T], content: Any) -> T:
    """Rebuild a nested dataclass from what `dataclasses.asdict` and JSON made of it.

    Raises:
        CheckpointError: If a key is unknown or missing, or a value does not fit.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(content, dict):
        raise CheckpointError(f"{kind.__name__} is {content!r}; expected an object with the fields: {', '.join(hints)}")
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise CheckpointError(f"{kind.__name__} has no field {unknown[0]!r}{nearest(unknown[0], hints)}")
    values = {}
    for name, value in content.items():
        try:
            values[name] = _rebuild(hints[name], value)
        except CheckpointError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{kind.__name__}.{name} is {value!r}; expected {hints[name]} ({error})") from error
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{kind.__name__} cannot be made of {content!r}: {error}") from error


def _rebuild(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("a list is needed")
        inner = [args[0]] * len(value) if args[-1:] == (...,) else args
        return tuple(_rebuild(each, item) for each, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _rebuild(args[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType) and value is not None:
        return _rebuild(next(arg for arg in args if arg is not type(None)), value)
    accepted = {int: int, float: int | float, bool: bool, str: str}
    if hint in accepted and (not isinstance(value, accepted[hint]) or (isinstance(value, bool) and hint is not bool)):
        raise TypeError(f"expected {accepted[hint]}")
    return value
