"""Models of the Hugging Face Hub: only a description, safetensors and a card are fetched, and nothing is unpickled."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from embodied_wm.checkpoint import CheckpointError, model_folder

FILES = ("config.json", "model.safetensors", "README.md")


def fetch(place: str | Path, **options: Any) -> Path:
    """Return the folder of a model: a model folder, the one in a run folder, or a copy of one on the Hub.

    Args:
        place: A folder of this machine, or OWNER/NAME on the Hub.
        options: For `huggingface_hub.snapshot_download`: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        CheckpointError: If there is no such folder and no such model, or it cannot be fetched.
    """
    path = Path(place).expanduser()
    if path.exists():
        return model_folder(path)
    looked = f"{place} is no folder here, and as the name of a model on the Hugging Face Hub"
    try:
        return Path(snapshot_download(str(place), allow_patterns=list(FILES), **options))
    except HFValidationError as error:
        raise CheckpointError(
            f"no such folder: {place}. Give the folder that `embodied-wm train` wrote, or OWNER/NAME on the Hub."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{looked} it does not exist, or is private and the token may not read it (`hf auth login`)."
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{looked} it is not in the cache and cannot be fetched: {error}. Check the network and the spelling."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{looked} it could not be fetched: {error}") from error
