"""Reads the verbs' options from the comments of `configs/*.yaml`, so that help and configuration never differ."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from embodied_wm.commands.errors import UsageError
from embodied_wm.near_names import nearest

VERBS = (
    "collect",
    "import",
    "export",
    "inspect",
    "validate",
    "edit",
    "train",
    "refine",
    "imagine",
    "plan",
    "benchmark",
    "report",
    "demo",
)
MEASURES = ("imagination", "planning", "speed", "latent_actions")
POSITIONAL = {"import": "source", "export": "source", "inspect": "path", "validate": "path", "report": "source"}
"""Option that a bare argument means, so that `embodied-wm inspect reach.zarr` works."""

FURTHER = {"report": "others"}
"""Option, a list, that bare arguments after the first one mean, as in `embodied-wm report runs/a runs/b`."""


@dataclass(frozen=True, kw_only=True)
class Manual:
    """Hold the head comment of a config file.

    Attributes:
        title: First sentence, one line.
        text: The paragraph after it; "" where there is none.
        example: A command to copy; "" where there is none.
    """

    title: str
    text: str
    example: str


@cache
def source_text(name: str) -> str:
    """Return the text of configs/<name>.yaml."""
    return (files("configs") / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """Return the config groups and their sorted choices."""
    folders = sorted((f for f in files("configs").iterdir() if f.is_dir()), key=lambda f: f.name)
    found = {
        folder.name: tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))
        for folder in folders
    }
    return {name: choices for name, choices in found.items() if choices}


def config_name(verb: str, measure: str | None) -> str:
    """Return the name of the verb's config file."""
    return verb if measure is None else f"{verb}_{measure}"


def manual(name: str) -> Manual:
    """Read the head comment of configs/<name>.yaml."""
    lines = []
    for line in source_text(name).splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    example = next((line.removeprefix("Example:").strip() for line in lines if line.startswith("Example:")), "")
    paragraphs = "\n".join(line for line in lines if not line.startswith("Example:")).split("\n\n", 1)
    text = paragraphs[1] if len(paragraphs) > 1 else ""
    return Manual(title=paragraphs[0].replace("\n", " ").strip(), text=" ".join(text.split()), example=example)


def choices_of(name: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the config groups of a config and the choice of each, in order.

    Args:
        name: Config file, without its ending.
        chosen: Group to choice, where it is not the file's default.

    Raises:
        UsageError: A chosen group or choice does not exist.
    """
    result: dict[str, str] = {}
    _add_choices(name, chosen, result)
    for group, choice in chosen.items():
        if group not in result:
            raise UsageError(f"there is no group {group!r} here; the groups are {', '.join(result) or 'none'}")
        if choice not in groups()[group]:
            one = f"one {group} at a time" if "," in choice else f"no such {group}"
            raise UsageError(f"{group}={choice}: {one}{nearest(choice, groups()[group])}")
    return result


def _add_choices(name: str, chosen: Mapping[str, str], result: dict[str, str]) -> None:
    for entry in (yaml.safe_load(source_text(name)) or {}).get("defaults", []):
        if not isinstance(entry, dict):
            continue
        key, default = next(iter(entry.items()))
        group = key.removeprefix("override ").strip("/")
        result[group] = chosen.get(group, default)
        if result[group] in groups().get(group, ()):
            _add_choices(f"{group}/{result[group]}", chosen, result)


def meanings(name: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Return the comment of every dotted option of a config with these group choices, in file order."""
    result = dict(comments(source_text(name)))
    for group, choice in choices.items():
        if choice in groups().get(group, ()):
            place = f"{group}/{choice}"
            prefix = "" if "# @package _global_" in source_text(place) else f"{group}."
            result.update({prefix + key: meaning for key, meaning in _with_inherited(place)})
    return result


def _with_inherited(place: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, comment) of the choices that a choice of a group is made of, and then its own."""
    text = source_text(place)
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            choice, _, inside = entry.partition("@")  # cem@planner: the options of cem, below `planner`
            for key, meaning in _with_inherited(f"{place.partition('/')[0]}/{choice}"):
                yield f"{inside}.{key}" if inside else key, meaning
    yield from comments(text)


def comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, comment) of a YAML text; the comment stands behind the key or on the lines above it."""
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _walk(root, (), text.splitlines())


def _walk(node: yaml.MappingNode, path: Sequence[str], lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        if key.value in ("defaults", "_target_"):
            continue
        yield ".".join((*path, key.value)), _comment_at(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, (*path, key.value), lines)


def _comment_at(lines: Sequence[str], row: int) -> str:
    behind = re.search(r"(?:^|\s)#\s*(.*)$", lines[row])
    if behind:
        return behind.group(1).strip()
    above: list[str] = []
    for line in reversed(lines[:row]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)
