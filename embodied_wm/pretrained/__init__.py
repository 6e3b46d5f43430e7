"""Trained models that come with the package, one folder for each MuJoCo task; `scripts/make_pretrained.py` makes them.

`checkpoint=pretrained` takes the one of the command's task, `pretrained:TASK` names one, on the command line as in
`WorldModel.from_pretrained("pretrained:push")`. Weights are kept in half precision and computed with in single
precision; the figures in each folder's README.md were measured with just these weights.
"""

from pathlib import Path

from embodied_wm.checkpoint import CheckpointError

PREFIX = "pretrained:"
FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Return the tasks that a model ships for."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def pretrained_folder(name: str) -> Path:
    """Return the folder of a shipped model.

    Raises:
        CheckpointError: If there is none of that name; the message lists those there are.
    """
    if name not in pretrained_names():
        raise CheckpointError(
            f"no model ships for {name!r}; there are: {', '.join(pretrained_names()) or 'none'}. "
            f"Train one: embodied-wm collect task={name} out={name}.zarr, then embodied-wm train data.path={name}.zarr"
        )
    return FOLDER / name


__all__ = ["FOLDER", "PREFIX", "pretrained_folder", "pretrained_names"]
