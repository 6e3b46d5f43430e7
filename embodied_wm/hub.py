"""Models of the Hugging Face Hub: only a description, safetensors and a card are fetched, and nothing is unpickled."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from embodied_wm import checkpoint, model_card
from embodied_wm.checkpoint import CheckpointError, model_folder
from embodied_wm.pretrained import PREFIX, pretrained_folder

if TYPE_CHECKING:
    from embodied_wm.world_model import WorldModel

FILES = ("config.json", "model.safetensors", "README.md")


def fetch(place: str | Path, **options: Any) -> Path:
    """Return the folder of a model: a model folder, the one in a run folder, one that ships, or a copy from the Hub.

    Args:
        place: A folder of this machine, `pretrained:TASK`, or OWNER/NAME on the Hub.
        options: For `huggingface_hub.snapshot_download`: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        CheckpointError: If there is no such folder and no such model, or it cannot be fetched.
    """
    if str(place).startswith(PREFIX):
        return pretrained_folder(str(place).removeprefix(PREFIX))
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


class HubModel(ModelHubMixin, library_name=model_card.LIBRARY, pipeline_tag=model_card.TASK, tags=[*model_card.TAGS]):
    """The part of a world model that loads from, and pushes to, the Hugging Face Hub, by `huggingface_hub`'s mixin.

    What the mixin would do less carefully (it removes config.json before it writes) is done as the model's own `save`
    and `load` do it.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save as `save` does, but to be given to others: folders of this machine are left out of the card.

        Args:
            save_directory: Folder.
            config: For the mixin's sake; a world model always saves its own configuration.
            repo_id: Name on the Hub; the folder's where None.
            push_to_hub: Upload it, too.
            model_card_kwargs: Further metadata of the card, such as {"license": "mit"}.
            push_to_hub_kwargs: For `push_to_hub`: private, token, branch, commit_message, ...

        Returns:
            The commit's URL where it was uploaded.
        """
        if config not in (None, cast("WorldModel", self).config):
            raise ValueError("got a configuration other than the model's own; a saved model must fit its weights")
        folder, model = Path(save_directory), cast("WorldModel", self)
        shared = model_card.without_places(model.card)
        checkpoint.save_model(folder, model.state_dict(), config=model.config, embodiment=model.embodiment, card=shared)
        model_card.write_readme(folder, model_card_kwargs)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: str = "cpu",
    ) -> Self:
        """Load a model from a folder, the run folder that holds one, this package, or the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder, `pretrained:TASK`, or OWNER/NAME on the Hub.
            force_download: Fetch it anew though it is in the cache.
            token: For the Hub; None takes the one that `hf auth login` has kept.
            cache_dir: Where it is kept; None is the Hub's own cache.
            local_files_only: Only look into the cache.
            revision: Branch, tag or commit on the Hub.
            device: Where the model runs.

        Raises:
            CheckpointError: If there is no such model, or it is not one of ours.
        """
        options = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        return cast("type[WorldModel]", cls).load(fetch(pretrained_model_name_or_path, **options), device=device)  # type: ignore[return-value]

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card; keyword arguments are further metadata, such as license="mit"."""
        model = cast("WorldModel", self)
        described = checkpoint.description(model.config, model.embodiment, model.card)
        return model_card.model_card(described, model_card.part_sizes(model.state_dict()), kwargs)
