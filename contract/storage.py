"""Files behind any path that pyarrow or fsspec knows: local, `file://`, `s3://`, `gs://`.

Only what the contract needs: read, list, and writes that become visible whole or not at all.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow.fs as pafs

from contract.errors import DataError


def filesystem(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem behind `path` and the path inside it."""
    text = str(path)
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(text)
    try:
        fs, inner = pafs.FileSystem.from_uri(text)
    except (ValueError, OSError):
        import fsspec  # only for schemes that pyarrow itself does not know

        handler, inner = fsspec.core.url_to_fs(text)
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
    return fs, inner


def join(base: str | Path, *parts: str) -> str:
    """`base/part/...`, for local paths and URIs alike."""
    return "/".join([str(base).rstrip("/"), *parts])


def exists(path: str | Path) -> bool:
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pafs.FileType.NotFound


def list_files(folder: str | Path) -> list[str]:
    """Names of the plain files directly in `folder`, sorted; empty when there is no such folder."""
    fs, inner = filesystem(folder)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)


def read_bytes(path: str | Path) -> bytes:
    """The whole file.

    Raises:
        DataError: there is no such file.
    """
    fs, inner = filesystem(path)
    try:
        with fs.open_input_stream(inner) as stream:
            return stream.read()
    except FileNotFoundError:
        raise DataError("A file is missing.", file=path, remedy="run the stage that writes it") from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` so that readers see the old file or the new one, never a part of it.

    Locally: temporary name, fsync, rename. An object store shows an upload only once it is complete.
    """
    fs, inner = filesystem(path)
    if not isinstance(fs, pafs.LocalFileSystem):
        with fs.open_output_stream(inner) as stream:
            stream.write(data)
        return
    target = Path(inner)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: str | Path) -> None:
    """Deletes temporary files that a killed writer left in a local `folder`."""
    fs, inner = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem) and os.path.isdir(inner):
        for leftover in Path(inner).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
