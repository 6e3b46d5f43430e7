"""Datasets of the Hugging Face hub, downloaded by its own client into its own cache."""

import re
from pathlib import Path

from embodied_wm.data.lerobot.checks import LeRobotError, short
from embodied_wm.data.lerobot.settings import PARTS

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]*[\w-]")


def find_dataset(source: str | Path, revision: str | None) -> tuple[Path, str]:
    """Return the folder of a dataset, downloaded if it is an id of the hub, and the dataset's name.

    A folder that exists comes first; what looks like owner/name otherwise is an id. What is in the hub's cache already
    is not downloaded again.

    Args:
        source: Folder, or owner/name.
        revision: Branch, tag or commit of the hub; None takes the newest.

    Raises:
        LeRobotError: There is no such folder and the hub did not give the dataset, or a revision of a folder was asked
        for.
    """
    root = Path(source).expanduser()
    if root.exists() or not HUB_ID.fullmatch(str(source)):
        if revision is not None:
            raise LeRobotError(f"revision={revision} is for datasets of the hub; {root} is a folder. Leave it out.")
        return root, root.resolve().name
    return _download(str(source), revision), str(source)


def _download(name: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=[f"{part}/**" for part in PARTS]
            )
        )
    except GatedRepoError as error:
        advice = f"ask for access on its page and log in with `hf auth login` ({short(error)})"
        raise LeRobotError(f"{name} is gated: {advice}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LeRobotError(
            f"No such folder: {name}, and the hub has no dataset of that name, or only for those logged in. Check the "
            "name, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise LeRobotError(
            f"{name} has no revision {revision!r} in the hub. Choose a branch, tag or commit."
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise LeRobotError(
            f"No such folder: {name}, and the hub cannot be reached for the dataset of that name ({short(error)}). "
            "Check the path or the network; a download that was interrupted continues."
        ) from error
