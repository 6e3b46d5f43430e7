"""Merges, splits and filters stores for the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from embodied_wm.commands.errors import UsageError
from embodied_wm.near_names import nearest
from embodied_wm.progress import track_reports

if TYPE_CHECKING:
    from embodied_wm.data.store import EpisodeStore

OPTIONS: Mapping[str, Sequence[str]] = {
    "merge": (),
    "split": ("splits",),
    "filter": ("episodes", "delete_episodes", "min_rows", "max_rows", "success", "info"),
}
"""Operation to the options that belong to it alone."""


def edit_stores(config: Mapping[str, Any], console: Console) -> None:
    """Carry out one operation on stores.

    Args:
        config: The values of configs/edit.yaml, the sources as paths or URLs.
        console: Where to print.

    Raises:
        UsageError: An unknown operation, options of another one, or a wrong number of sources.
        StoreError: What the operation itself refuses.
    """
    from embodied_wm.data import edit

    operation, sources, out = config["operation"], config["sources"], Path(config["out"]).expanduser()
    _check(operation, sources, config)
    with track_reports(operation, unit="rows", console=console) as advance:
        if operation == "merge":
            made = {out: edit.merge_stores(sources, out, progress=advance)}
        elif operation == "split":
            parts = edit.split_store(sources[0], out, config["splits"], progress=advance)
            made = {out / f"{name}.zarr": store for name, store in parts.items()}
        else:
            asked = {key: config[key] for key in OPTIONS["filter"] if config[key] is not None}
            made = {out: edit.filter_store(sources[0], out, edit.Conditions(**asked), progress=advance)}
    for path, store in made.items():
        _show(path, store, console)


def _check(operation: str, sources: Sequence[str | Path], config: Mapping[str, Any]) -> None:
    if operation not in OPTIONS:
        raise UsageError(f"operation={operation}: there is no such operation{nearest(operation, OPTIONS)}")
    if not sources:
        raise UsageError("give sources=[...], the stores to read, such as sources=[a.zarr,b.zarr]")
    if operation != "merge" and len(sources) != 1:
        raise UsageError(f"operation={operation} takes one store, got {len(sources)}; merge them first")
    for other, keys in OPTIONS.items():
        for key in keys:
            if other != operation and config[key] is not None:
                raise UsageError(f"{key}=... belongs to operation={other}, not to {operation}")
    if operation == "split" and config["splits"] is None:
        raise UsageError("operation=split needs splits=..., such as splits={train:0.8,val:0.2}")
    if operation == "filter" and all(config[key] is None for key in OPTIONS["filter"]):
        raise UsageError(f"operation=filter needs a condition: {', '.join(OPTIONS['filter'])}")


def _show(path: Path, store: "EpisodeStore", console: Console) -> None:
    console.print(
        f"{path}: {store.num_episodes:,} episodes, {store.num_frames:,} rows, fingerprint {store.fingerprint()}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
