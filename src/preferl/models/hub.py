"""Models of the Hub: whether one can be had at all, asked once and at once; and where its files lie.

The libraries try again and again, for minutes and with a line for each try, and then say that something could
not be loaded.
"""

import functools
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from preferl.runs.errors import UsageError

CONFIG = "config.json"
SECONDS = 10.0  # for the Hub to answer


@functools.cache
def check_hub(name: str) -> None:
    """Refuses a name that is nothing on this disk and that the Hub does not give. What was downloaded before
    is not asked for.

    Raises:
        UsageError: the Hub cannot be reached, has no such model, or gives it only to those who asked for it.
    """
    if Path(name).exists():
        return
    offline = constants.is_offline_mode()
    try:
        if isinstance(try_to_load_from_cache(name, CONFIG), str):
            return
        if not offline:
            get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=SECONDS)
    except HFValidationError as error:
        raise UsageError(
            f"'{name}' is no directory here, and no name of a model of the Hub (owner/name); check the "
            f"spelling, or run the stage that writes it"
        ) from error
    except EntryNotFoundError:
        return  # adapters have no such file, and may have another
    except GatedRepoError as error:
        raise UsageError(
            f"'{name}' is a gated model: ask for access at {constants.ENDPOINT}/{name}, then log in with `hf "
            f"auth login` (or set HF_TOKEN) and give the command again"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"'{name}' is neither a directory here nor a model of the Hub ({constants.ENDPOINT}); check the "
            f"spelling, or log in with `hf auth login` if it is a private one"
        ) from error
    except Exception as error:  # of whichever library the Hub's client asks with
        raise UsageError(
            f"'{name}' is no directory here, and the Hub ({constants.ENDPOINT}) cannot be reached "
            f"({type(error).__name__}: {error}); give a directory written by save_pretrained, or download "
            f"the model where there is a network (`hf download {name} --local-dir DIR`) and give DIR"
        ) from error
    if offline:
        refuse_uncached(name)


def refuse_uncached(name: str) -> None:
    """Refuses a name of which nothing was downloaded before, where the Hub must not be asked.

    Raises:
        UsageError: it is one.
    """
    if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).exists():
        return
    raise UsageError(
        f"'{name}' is no directory here and was not downloaded before, and the Hub is not asked since "
        f"HF_HUB_OFFLINE is set; unset it, or give a directory written by save_pretrained"
    )


def weight_files(source: str) -> list[Path]:
    """The safetensors files of a model's directory or Hub name, which are downloaded if need be, as whoever
    loads the model would; none where it has none, or where it cannot be had.
    """
    if Path(source).exists():  # a single file is of another format
        return sorted(Path(source).glob("*.safetensors"))
    single = _cached(source, SAFE_WEIGHTS_NAME)
    if single is not None:
        return [Path(single)]
    index = _cached(source, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    try:
        return [Path(file) for file in get_checkpoint_shard_files(source, index)[0]]
    except OSError:  # whoever loads it says what is wrong
        return []


def _cached(source: str, name: str) -> str | None:
    found: str | None = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found
