"""The Hugging Face folder of a GGUF file: made once per machine, proven, and kept under the file's hash.

It lies in the cache (`contract.files.cache`), `gguf/<sha256>`. Weights are stored as exactly as the file has them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.contract.files.cache import cache_folder, remembered
from fusionx.contract.files.lock import folder_lock
from fusionx.contract.files.sealed import check_files, hashes_of, write_sealed
from fusionx.contract.files.storage import explained
from fusionx.contract.models.gguf_header import GgufHeader, read_header
from fusionx.contract.models.gguf_model import read_model

FACTS = "gguf.json"
_RULES_VERSION = 2
"""Raised when the rules change what comes out of the same file."""
_KEY_HEX = 32
_REMEDY = "nothing: it is made anew of the GGUF file"
_BYTES_PER_VALUE = 4


def gguf_folder(file: Path) -> Path:
    """The folder that transformers loads for a GGUF file; made on first use, by one process at a time.

    Raises:
        ConfigError: a package of the extra `real` is missing.
        DataError: the file is damaged, holds what is not read, or was not read as it states itself; or the folder
            cannot be written.
    """
    folder = _cache() / gguf_sha256(file)[:_KEY_HEX]
    if not _is_whole(folder):
        header = read_header(file)  # before anybody waits for anything
        with folder_lock(_cache(), wait=math.inf):
            if not _is_whole(folder):
                _say(f"{header.path.name}: reading it once, into {folder}")
                _refuse_full_disk(header)
                try:
                    with atomic_folder(folder) as output:
                        write_folder(file, output)
                finally:
                    recover(folder)  # gigabytes of what could not be finished
    return folder


def write_folder(file: Path, output: Path) -> None:
    """Writes a GGUF file into the folder `output`: weights, config, tokenizer, licence and `gguf.json`, proven.

    Raises:
        ConfigError, DataError: as `gguf_folder`.
    """
    header = read_header(file)
    model = read_model(header)
    model.save(output)
    (output / "README.md").write_text(_card(header), encoding="utf-8")
    facts = {
        "file": file.name,
        "sha256": gguf_sha256(file),
        "rules": _RULES_VERSION,
        "stored_as": header.kinds,
        "made_with": {name: version(name) for name in ("transformers", "gguf")},
        "files": hashes_of(output.iterdir(), output),
    }
    write_sealed(output / FACTS, facts)


def dequantised_from(folder: str | Path) -> str | None:
    """`model.gguf (Q4_K 62%, ...)` where the folder was made of a quantised GGUF file, else None."""
    facts = remembered(Path(folder) / FACTS)
    if facts is None or not set(facts["stored_as"]) - {"F32", "F16", "BF16"}:
        return None
    return f"{facts['file']} ({said_kinds(facts['stored_as'])})"


def said_kinds(kinds: dict[str, int]) -> str:
    """`Q5_0 62%, Q8_0 22%, ...`: shares of the values, those of one percent and more."""
    total = sum(kinds.values())
    return ", ".join(f"{kind} {count / total:.0%}" for kind, count in kinds.items() if count >= total / 100)


def gguf_sha256(file: Path) -> str:
    """SHA-256 of the file, hexadecimal. Taken anew only where the file's size or time of change is another."""
    file = file.resolve()
    with explained(file, "read"):
        now = file.stat()
    known = _cache() / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:_KEY_HEX]}.json"
    key = [str(file), now.st_size, now.st_mtime_ns, now.st_ino]
    noted = remembered(known) or {}
    if noted.get("of") == key:
        return str(noted["sha256"])
    with explained(file, "read"), file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    write_sealed(known, {"of": key, "sha256": found})
    return found


def _cache() -> Path:
    return cache_folder("gguf")


def _is_whole(folder: Path) -> bool:
    """Whether the folder was made by these rules and is what it was; damage to it is said."""
    facts = remembered(folder / FACTS)
    if facts is None or facts["rules"] != _RULES_VERSION:
        return False
    try:
        check_files(facts["files"], folder, _REMEDY)
    except DamageError as error:
        _say(f"{folder} is made anew. {error}")
        return False
    return True


def _refuse_full_disk(header: GgufHeader) -> None:
    free, needed = shutil.disk_usage(_cache()).free, _BYTES_PER_VALUE * header.parameters
    if free < needed:
        raise DataError(
            "There is no room for the unpacked weights of a GGUF file.",
            file=_cache(),
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB: {header.parameters:,} values of {_BYTES_PER_VALUE} bytes",
            remedy="set HF_ASSETS_CACHE to a folder on a larger disk",
        )


def _card(header: GgufHeader) -> str:
    lines = [f"{name}: {json.dumps(value)}" for name, value in header.licence.items()]
    name = header.metadata.get("general.name") or header.path.stem
    front_matter = "\n".join(["---", *lines, "---", ""]) if lines else ""
    return f"{front_matter}\n# {name}\n\nMade of {header.path.name}, stored as {said_kinds(header.kinds)}.\n"


def _say(text: str) -> None:
    print(f"[gguf] {text}", file=sys.stderr, flush=True)
