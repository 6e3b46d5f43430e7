"""Checkpoints: safetensors for tensors, JSON for everything else; nothing is ever unpickled.

A model folder holds `model.safetensors` and `config.json` (format, version, configuration, embodiment, card). Files are written
beside their final name and renamed, so a kill leaves the old file or the new one.
"""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = "embodied_wm.world_model"
VERSION = 1
T = TypeVar("T")


class CheckpointError(ValueError):
    """Say why a folder cannot be loaded as a model."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON by rename."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(part, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors by rename."""
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, part)
    os.replace(part, path)


def save_model(folder: Path, tensors: Mapping[str, Tensor], *, config: Any, embodiment: Any, card: Mapping[str, Any]) -> None:
    """Write a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "config": dataclasses.asdict(config),
            "embodiment": dataclasses.asdict(embodiment),
            "card": dict(card),
        },
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check config.json.

    Raises:
        CheckpointError: If it is missing, not ours, or of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
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
    return content


def load_tensors(folder: Path, model: nn.Module) -> None:
    """Load model.safetensors into a module built from the same description.

    Raises:
        CheckpointError: If the file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has a config.json but no model.safetensors; the checkpoint is incomplete")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); take another checkpoint") from error
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


def from_json(kind: type[T], content: Any) -> T:
    """Rebuild a nested dataclass from what `dataclasses.asdict` and JSON made of it.

    Raises:
        CheckpointError: If a key is unknown.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise CheckpointError(f"{kind.__name__} has no field {unknown[0]!r}; its fields are: {', '.join(hints)}")
    return kind(**{name: _rebuild(hints[name], value) for name, value in content.items()})


def _rebuild(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = [args[0]] * len(value) if args[-1:] == (...,) else args
        return tuple(_rebuild(each, item) for each, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _rebuild(args[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType) and value is not None:
        return _rebuild(next(arg for arg in args if arg is not type(None)), value)
    return value
