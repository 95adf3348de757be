"""Whatever the program reads back carries a hash that is checked before use.

A sealed file is JSON with a `checksum` over all of its content. It may list files beside it (`files`: name -> SHA-256):
so one sealed file, written last, vouches for a folder or a piece, and `verified` checks it all. Who writes something to
be read again calls `write_sealed`, who reads it `read_sealed` or `verified`; both refuse what changed by its name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DamageError
from fusionx.contract.files.storage import explained, read_bytes, write_bytes

CHECKSUM = "checksum"
FILES = "files"
FOLDER_SEAL = "sealed.json"
"""The seal of a model folder that this project wrote. The card is none of its files: the report adds to it later."""
_UNSEALED = ("README.md", FOLDER_SEAL)
_SETTLED_NS = 2_000_000_000
"""A file whose last change is more recent may change again without another time of change."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON gives it back, and its checksum."""
    plain = json.loads(json.dumps(content))
    return {**plain, CHECKSUM: digest_of(plain)}


def unsealed(found: Any, path: object, remedy: str) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        DamageError: it is something else, or carries another checksum or none.
    """
    if not isinstance(found, dict) or CHECKSUM not in found:
        raise DamageError(
            "A file carries no checksum: it is damaged, or another version wrote it.", file=path, remedy=remedy
        )
    content = {name: value for name, value in found.items() if name != CHECKSUM}
    expected = digest_of(content)
    if found[CHECKSUM] != expected:
        raise DamageError(
            "A file is damaged or was edited: its content does not have its checksum.",
            file=path,
            found=expected,
            expected=found[CHECKSUM],
            remedy=remedy,
        )
    return content


def write_sealed(path: str | Path, content: Mapping[str, Any], *, finite: bool = False) -> None:
    """Writes the content with its checksum, whole or not at all.

    Args:
        finite: NaN and infinities, which are no JSON to other readers, are refused.

    Raises:
        DataError: it cannot be written.
        ValueError: a number is not finite, and all have to be.
    """
    write_bytes(path, sealed_bytes(content, finite=finite))


def sealed_bytes(content: Mapping[str, Any], *, finite: bool = False) -> bytes:
    """What `write_sealed` writes."""
    return (json.dumps(sealed(content), indent=1, allow_nan=not finite) + "\n").encode()


def read_sealed(path: str | Path, remedy: str) -> dict[str, Any]:
    """The content of a sealed file.

    Raises:
        DataError: there is no such file, or it cannot be read; DamageError: it is not what was written.
    """
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DamageError("A file is damaged: it is no JSON.", file=path, found=str(error), remedy=remedy) from None
    return unsealed(found, path, remedy)


def verified(path: str | Path, remedy: str) -> dict[str, Any]:
    """The content of a sealed file, all of whose `files` are what they were.

    Raises:
        DataError: as `read_sealed`; DamageError: a file is missing or changed.
    """
    content = read_sealed(path, remedy)
    check_files(content[FILES], Path(path).parent, remedy)
    return content


def hashes_of(files: Iterable[Path], base: Path) -> dict[str, str]:
    """What a seal in `base` lists: name relative to `base` -> hash."""
    return {file.relative_to(base).as_posix(): file_hash(file) for file in sorted(files)}


def check_files(listed: Mapping[str, str], base: Path, remedy: str) -> None:
    """
    Raises:
        DamageError: a listed file is missing, or its bytes differ. DataError: it cannot be read.
    """
    for name, expected in listed.items():
        file = base / name
        found = file_hash(file) if file.is_file() else "no such file"
        if found != expected:
            raise DamageError(
                "A file is damaged: it is not what was written.",
                file=file,
                field="sha256",
                found=found,
                expected=expected,
                remedy=remedy,
            )


def seal_folder(folder: Path) -> None:
    """Vouches for the files of a model folder, in the folder itself; for whoever writes one, as the last step."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in _UNSEALED]
    write_sealed(folder / FOLDER_SEAL, {FILES: hashes_of(files, folder)})


def check_folder(folder: Path) -> None:
    """Of a model folder that this project wrote; one from elsewhere carries no seal.

    Raises:
        DamageError: a file of it is missing or changed.
    """
    seal = folder / FOLDER_SEAL
    if seal.is_file():
        remedy = f"make it again (a training: `fusionx train --overwrite`), or delete {seal.name} if you changed it"
        verified(seal, remedy)


def file_hash(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file's bytes; of one that stayed as it is, taken once per process.

    Raises:
        DataError: it cannot be read.
    """
    with explained(path, "read"):
        now = path.stat()
        key = (str(path.absolute()), now.st_size, now.st_mtime_ns, now.st_ino)
        if time.time_ns() - now.st_mtime_ns < _SETTLED_NS:
            return _hash(*key)
        return _remembered_hash(*key)


def _hash(path: str, *_: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


_remembered_hash = lru_cache(maxsize=4096)(_hash)
