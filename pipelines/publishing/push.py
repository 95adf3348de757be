"""Sends a run's results to the hub, through the hub's own library: what is there already is not sent again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.models.hub import is_offline
from fusionx.contract.shards.dataset_card import CARD
from fusionx.pipelines.publishing.uploads import Upload

_RESUME = "run the same command again: what has arrived is not sent twice"


def push(uploads: Sequence[Upload], public: bool = False) -> list[str]:
    """Makes the repositories where they are not there, and sends the files; returns their addresses.

    Raises:
        ConfigError: there is no login token or no network, the token may not write there, or a repository that is
            there is public although `public` was not asked for.
        DataError: the hub failed, or the connection did.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if get_token() is None:
        raise ConfigError(
            "There is no login token for the hub.",
            found="neither HF_TOKEN nor a stored login",
            remedy="run `hf auth login` with a token that may write, or set HF_TOKEN",
        )
    if is_offline():
        raise ConfigError(
            "The hub cannot be reached.",
            found=constants.ENDPOINT,
            expected="an answer",
            remedy="look after the network (and HF_HUB_OFFLINE, HF_ENDPOINT); --dry-run needs none",
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(endpoint=constants.ENDPOINT, library_name="fusionx")
    for upload in uploads:  # all of them, before the first byte is sent
        with _explained(upload):
            api.create_repo(upload.repo_id, repo_type=upload.kind, private=not public, exist_ok=True)
            _refuse_public(upload, public, bool(api.repo_info(upload.repo_id, repo_type=upload.kind).private))
    addresses = []
    for upload in uploads:
        with _explained(upload):
            for folder in upload.folders:
                api.upload_folder(
                    repo_id=upload.repo_id,
                    repo_type=upload.kind,
                    folder_path=folder.path,
                    path_in_repo=folder.place or None,
                    allow_patterns=folder.names,
                    delete_patterns=folder.leftovers,
                    commit_message=upload.message,
                )
            if upload.card:  # last: whoever finds it finds all that it lists
                api.upload_file(
                    path_or_fileobj=upload.card.encode(),
                    path_in_repo=CARD,
                    repo_id=upload.repo_id,
                    repo_type=upload.kind,
                    commit_message=upload.message,
                )
        addresses.append(_address(upload))
    return addresses


def _refuse_public(upload: Upload, public: bool, is_private: bool) -> None:
    if not public and not is_private:
        raise ConfigError(
            "The repository is there already, and everybody can read it.",
            field="REPO_ID",
            found=_address(upload),
            expected="a private one, or --public",
            remedy="add --public if that is meant, or name another repository",
        )


def _address(upload: Upload) -> str:
    from huggingface_hub import constants

    return "/".join([constants.ENDPOINT, *(["datasets"] if upload.kind == "dataset" else []), upload.repo_id])


@contextmanager
def _explained(upload: Upload) -> Iterator[None]:
    try:
        yield
    except FusionXError:
        raise
    except Exception as error:  # the hub's errors, its HTTP client's, a proxy's: of many libraries
        raise _told(upload, error) from None


def _told(upload: Upload, error: Exception) -> FusionXError:
    place, status = _address(upload), getattr(getattr(error, "response", None), "status_code", None)
    cause = " ".join(str(error).split()) or type(error).__name__
    found = f"{type(error).__name__}: {cause:.300}"
    if status == 401:
        remedy = "run `hf auth login` with a token that may write, or set HF_TOKEN"
        return ConfigError("The hub does not accept the login token.", file=place, found=found, remedy=remedy)
    if status in (402, 403, 404):
        remedy = "name an owner whom the token may write for (`hf auth whoami`), and give it the right to write"
        return ConfigError("The login token may not write to this repository.", file=place, found=found, remedy=remedy)
    return DataError("The hub did not take an upload.", file=place, found=found, remedy=_RESUME)
