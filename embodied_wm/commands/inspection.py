"""Shows what an episode store or a checkpoint holds."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from embodied_wm.commands.errors import UsageError

if TYPE_CHECKING:
    from embodied_wm.data.store import EpisodeStore

MANY_COLUMNS = 16
"""Wider features are summed up in one row."""


def inspect(path: str | Path, *, statistics: bool, out: Path | None, num_episodes: int, console: Console) -> None:
    """Print what is at a path or URL, and write the page of a store to `out` with frames of `num_episodes`, if asked.

    Raises:
        UsageError: Nothing is there, or nothing that we know.
        StoreError: A store that cannot be read.
    """
    if isinstance(path, Path) and (path / "model").is_dir():
        path = path / "model"
    is_checkpoint = isinstance(path, Path) and _is_checkpoint(path)
    if out is not None and out.suffix != ".html":
        raise UsageError(f"out={out}: expected a name that ends in .html")
    if num_episodes < 1:
        raise UsageError(f"episodes={num_episodes}: expected at least 1")
    if is_checkpoint:
        if out is not None:
            raise UsageError(f"out={out}: a page is made of stores, and {path} is a checkpoint")
        _inspect_checkpoint(Path(path), console)
    else:
        _inspect_store(path, statistics, console)
        if out is not None:
            _write_page(path, out, num_episodes, console)


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a checkpoint is at a path, or else a store.

    Raises:
        UsageError: It is neither.
    """
    if not path.exists():
        raise UsageError(f"path={path}: no such file or folder")
    if (path / "meta" / "info.json").is_file():
        raise UsageError(
            f"{path} is a LeRobot dataset; make a store of it: embodied-wm import source={path} out=STORE.zarr"
        )
    if any(path.rglob("*.safetensors")):
        return True
    if (path / "zarr.json").is_file():
        return False
    raise UsageError(
        f"{path} is neither an episode store (it has no zarr.json) nor a checkpoint (it has no *.safetensors)"
    )


def _inspect_store(path: str | Path, statistics: bool, console: Console) -> None:
    from embodied_wm.data.store import EpisodeStore

    store = EpisodeStore.open(path)
    lengths = store.episode_lengths
    facts = {
        "episodes": f"{store.num_episodes:,}",
        "rows": f"{store.num_frames:,} at {store.fps:g} per second"
        + (f" ({store.num_frames / store.fps / 60:.1f} minutes)" if store.num_frames else ""),
        "rows of an episode": f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}" if len(lengths) else "",
        "size": _bytes(store.num_bytes()),
        "fingerprint": store.fingerprint(),
    }
    console.print(Text(f"episode store {path}", style="bold"), soft_wrap=True)
    _facts(facts | {key: _compact(value) for key, value in store.metadata.items()}, console)
    table = _table("feature", "dtype", "row shape", "names", "units")
    for name, spec in store.features.items():
        table.add_row(name, spec.dtype, str(spec.shape), _some(spec.names), _some(dict.fromkeys(spec.units)))
    console.print(table)
    if statistics and store.num_episodes:
        console.print(_statistics(store, console))


def _write_page(path: str | Path, out: Path, num_episodes: int, console: Console) -> None:
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.evaluation.contact_sheet import write_contact_sheet

    write_contact_sheet(EpisodeStore.open(path), out, num_episodes=num_episodes)
    console.print(f"wrote [cyan]{out}[/]", soft_wrap=True)


def _statistics(store: "EpisodeStore", console: Console) -> Table:
    from embodied_wm.data.normalize import compute_statistics

    numeric = [
        name
        for name, spec in store.features.items()
        if not spec.is_image and len(spec.shape) <= 1 and spec.dtype[:3] in ("flo", "int")
    ]
    table = _table("feature", "mean", "std", "minimum", "maximum", numbers=True)
    with console.status("reading statistics"):
        for name in numeric:
            found = compute_statistics(store, name, range(store.num_episodes))
            spec = store.features[name]
            values = [array.reshape(-1) for array in (found.mean, found.std, found.minimum, found.maximum)]
            width = math.prod(spec.shape)
            if width > MANY_COLUMNS:
                summed = (values[0].mean(), values[1].mean(), values[2].min(), values[3].max())
                table.add_row(f"{name} ({width} columns together)", *(f"{value:.3g}" for value in summed))
            else:
                for column in range(width):
                    label = spec.names[column] if len(spec.names) == width else str(column)
                    title = f"{name}  {label}" if width > 1 else name
                    table.add_row(title, *(f"{array[column]:.3g}" for array in values))
    return table


def _inspect_checkpoint(path: Path, console: Console) -> None:
    console.print(Text(f"checkpoint {path}", style="bold"), soft_wrap=True)
    if (path / "README.md").is_file():
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
        console.print(Markdown(re.sub(r"\A---\n.*?\n---\n|<!--.*?-->", "", text, flags=re.DOTALL)))
    for file in sorted(path.rglob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is no JSON file: {error}; the checkpoint is damaged") from error
        console.print(Text(str(file.relative_to(path)), style="cyan"))
        _facts(_flat(content), console)
    table = _table("part", "tensors", "numbers", "size")
    for file in sorted(path.rglob("*.safetensors")):
        for part, (tensors, numbers, size) in _parts(file).items():
            table.add_row(f"{file.relative_to(path)}  {part}", str(tensors), f"{numbers:,}", _bytes(size))
    console.print(table)


def _parts(file: Path) -> dict[str, tuple[int, int, int]]:
    """Return part of the model to its number of tensors, numbers and bytes, from the file's header alone."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), 100_000_000)))
    except ValueError as error:
        raise UsageError(f"{file} is no safetensors file: {error}; the checkpoint is damaged") from error
    result: dict[str, tuple[int, int, int]] = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        part = name.split(".")[0]
        tensors, numbers, size = result.get(part, (0, 0, 0))
        start, stop = tensor["data_offsets"]
        result[part] = (tensors + 1, numbers + math.prod(tensor["shape"]), size + stop - start)
    return result


def _flat(content: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(content, Mapping):
        result: dict[str, str] = {}
        for key, value in content.items():
            result |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return result
    return {prefix: _compact(content)}


def _compact(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]} ... ({len(text):,} characters)"


def _facts(facts: Mapping[str, str], console: Console) -> None:
    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        grid.add_row(Text(f"  {key}", style="dim"), Text(value))
    console.print(grid)
    console.print()


def _table(*columns: str, numbers: bool = False) -> Table:
    """Return an empty table; with numbers, which are never parted, in all columns but the first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(
            column,
            style="" if place else "cyan",
            overflow="fold",
            no_wrap=not place or numbers,
            justify="right" if place and numbers else "left",
        )
    return table


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)})" if len(listed) > 8 else "")


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
