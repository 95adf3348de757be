"""The marks of finished pieces: written last, next to a piece, with what it was made from and hashes of its files.

A piece counts as made when its mark names the same digest of inputs and every file still has the hash it had.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fusionx.contract.files.storage import write_bytes


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes (first 16 hex digits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def mark_path(piece: Path) -> Path:
    """Where the mark of a piece stands: beside it, so that the piece itself stays an ordinary folder."""
    return piece.with_name(f"{piece.name}.made.json")


def write_mark(piece: Path, digest: str, files: list[Path], notes: dict[str, Any] | None = None) -> None:
    """Marks a piece as made from inputs of this digest; `files` are named relative to the mark."""
    base = piece.parent
    hashes = {file.relative_to(base).as_posix(): file_hash(file) for file in sorted(files)}
    content = json.dumps({"digest": digest, "files": hashes, "notes": notes or {}}, indent=1)
    write_bytes(mark_path(piece), content.encode())


def read_mark(piece: Path) -> dict[str, Any] | None:
    """The mark of a piece, or None where there is none or it cannot be read."""
    try:
        mark = json.loads(mark_path(piece).read_text())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"digest", "files", "notes"} <= set(mark) else None


def is_done(piece: Path, digest: str) -> bool:
    """Whether the piece was made from inputs of this digest and is still what it was when its mark was written."""
    mark = read_mark(piece)
    if mark is None or mark["digest"] != digest:
        return False
    files = {piece.parent / name: expected for name, expected in mark["files"].items()}
    return all(file.is_file() and file_hash(file) == expected for file, expected in files.items())
