"""`fusionx examples`: the configs and job files of the repository, for whoever installed the package without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fusionx

PACKAGE = Path(fusionx.__file__).parent
FOLDERS = ("configs", "pipelines/cluster")
"""Below the package and below the user's folder alike: the names that the documents give them."""


def write_shipped_files(folder: Path) -> Iterator[tuple[str, bool]]:
    """Copies what `folder` lacks, and changes nothing that is there.

    Yields:
        Each file's name, and whether it was written.
    """
    for source in sorted(path for name in FOLDERS for path in (PACKAGE / name).rglob("*") if path.is_file()):
        name = source.relative_to(PACKAGE)
        there = folder / name
        missing = not there.exists()
        if missing:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, there)
        yield name.as_posix(), missing
