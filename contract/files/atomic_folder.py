"""Folders that appear whole: written under a hidden name, flushed to the disk, then renamed into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fusionx.contract.files.storage import failure, flush_names


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `final` at the end; after an error nothing has changed.

    No filesystem call replaces a folder that is not empty, so the old one is renamed away for the instant between two
    renames. Who is killed in that instant finds it again through `recover`.

    Raises:
        DataError: it cannot be written (a full disk, no permission).
    """
    temporary, replaced = _hidden(final, "tmp"), _hidden(final, "old")
    try:
        recover(final)
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        if final.exists():
            os.rename(final, replaced)
        os.rename(temporary, final)
        flush_names(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise failure("A folder cannot be written.", final, error) from None


def recover(final: Path) -> None:
    """Puts back what a killed `atomic_folder` had renamed away, and deletes what it had not finished."""
    temporary, replaced = _hidden(final, "tmp"), _hidden(final, "old")
    if replaced.exists() and not final.exists():
        os.rename(replaced, final)
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)


def _hidden(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}.{suffix}")


def _flush(folder: Path) -> None:
    """On the disk before the folder's name is: a machine may lose its power."""
    for parent, _, files in os.walk(folder):
        for file in files:
            with open(Path(parent) / file, "rb") as stream:
                os.fsync(stream.fileno())
        flush_names(Path(parent))
