"""The marks of finished pieces: sealed files, written last, next to a piece, with what it was made from.

A piece counts as made when its mark names the same digest of inputs and every file still has the hash it had.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import check_files, hashes_of, read_sealed, write_sealed

_REMEDY = "run the same command again: what is damaged is made anew"


def mark_path(piece: Path) -> Path:
    """Where the mark of a piece stands: beside it, so that the piece itself stays an ordinary folder."""
    return piece.with_name(f"{piece.name}.made.json")


def write_mark(piece: Path, digest: str, files: list[Path], notes: dict[str, Any] | None = None) -> None:
    """Marks a piece as made from inputs of this digest; `files` are named relative to the mark."""
    write_sealed(mark_path(piece), {"digest": digest, "files": hashes_of(files, piece.parent), "notes": notes or {}})


def read_mark(piece: Path) -> dict[str, Any] | None:
    """The mark of a piece, or None where there is none or it is damaged, which is said."""
    path = mark_path(piece)
    if not path.is_file():
        return None
    try:
        return read_sealed(path, _REMEDY)
    except DamageError as error:
        print(f"{piece} is made anew. {error}", file=sys.stderr, flush=True)
        return None


def is_done(piece: Path, digest: str) -> bool:
    """Whether the piece was made from inputs of this digest and is still what it was; damage to it is said."""
    mark = read_mark(piece)
    if mark is None or mark["digest"] != digest:
        return False
    try:
        check_files(mark["files"], piece.parent, _REMEDY)
    except DamageError as error:
        print(f"{piece} is made anew. {error}", file=sys.stderr, flush=True)
        return False
    return True
