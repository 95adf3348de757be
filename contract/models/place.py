"""Where a config's `path` leads: the one place that makes a folder or hub id of it that transformers loads.

A folder and a hub id stand for themselves. A GGUF file, a folder that holds one, and `hf://owner/repo/file.gguf` stand
for the folder that `contract.models.gguf_folder` makes of the file, once per machine. Whoever loads anything of a model
asks here first, on the machine that loads it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fusionx.contract.errors import ConfigError
from fusionx.contract.models.gguf_folder import gguf_folder
from fusionx.contract.models.hub import check_hub_id

_HUB = "hf://"
_SUFFIX = ".gguf"


def loadable(path: str | Path, revision: str | None = None) -> str:
    """The folder or hub id that `from_pretrained` takes for `path`.

    Raises:
        ConfigError: there is no such folder or GGUF file, nor can it be had from the hub.
        DataError: the GGUF file is damaged, or holds what cannot be read.
    """
    file = gguf_file(str(path), revision)
    if file is not None:
        return str(gguf_folder(file))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    check_hub_id(str(path), revision)
    return str(path)


def gguf_file(path: str, revision: str | None = None) -> Path | None:
    """The GGUF file that `path` means, fetched into the hub's cache if it is there; None where it means none.

    Raises:
        ConfigError: there is no such file, or a folder holds several and nothing else.
    """
    if path.startswith(_HUB):
        return _fetched(path, revision)
    place = Path(path).expanduser()
    if place.is_dir():
        return _only_file(place)
    if place.suffix.lower() != _SUFFIX:
        return None
    if not place.is_file():
        raise ConfigError(
            "There is no such GGUF file.",
            file=path,
            remedy=f"check the path; a file on the hub is written {_HUB}OWNER/REPO/FILE{_SUFFIX}",
        )
    return place


def _only_file(folder: Path) -> Path | None:
    """The folder's one GGUF file, unless the folder is a model for transformers itself."""
    if (folder / "config.json").is_file():
        return None
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == _SUFFIX)
    if len(files) > 1:
        raise ConfigError(
            "The folder holds several GGUF files.",
            file=folder,
            found=", ".join(file.name for file in files[:8]),
            expected="one",
            remedy="name the file itself; parts of one model (-00001-of-...) are joined with llama-gguf-split --merge",
        )
    return files[0] if files else None


@lru_cache(maxsize=64)
def _fetched(path: str, revision: str | None) -> Path:
    owner, _, rest = path.removeprefix(_HUB).partition("/")
    repo, _, file = rest.partition("/")
    repo, _, own_revision = repo.partition("@")
    if not (owner and repo and file.lower().endswith(_SUFFIX)) or (
        own_revision and revision not in (None, own_revision)
    ):
        raise ConfigError(
            "This names no GGUF file on the hub.",
            field="path",
            found=path if revision is None else f"{path}, revision {revision}",
            expected=f"{_HUB}OWNER/REPO/FILE{_SUFFIX}, or {_HUB}OWNER/REPO@REVISION/FILE{_SUFFIX}",
            remedy="a model with safetensors weights is named OWNER/REPO, without hf://",
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file, revision=own_revision or revision))
    except Exception as error:  # no such repository, file or revision, gated, no network: the hub's errors are many
        raise ConfigError(
            "A GGUF file cannot be had from the hub.",
            file=path,
            found=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}",
            remedy="check the name, the revision and `hf auth login`; without a network, give a local file",
        ) from None
