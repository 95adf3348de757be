"""What a large tokenizer's table says, kept on this machine under the hash of the files that it was read from.

Reading a vocabulary of 262,000 tokens takes seconds, and most commands want no more of it than what its ids stand for.
Whoever encodes wants its backend, too, which is kept beside the table: by itself it is read in a second or two, without
transformers and torch, whose import takes longer than that.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DataError
from fusionx.contract.files.cache import cache_folder, remembered
from fusionx.contract.files.sealed import FILES, check_files, file_hash, write_sealed
from fusionx.contract.files.storage import write_bytes
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import Backend

_SMALL = 1 << 14
"""A vocabulary below this is read in a fraction of a second."""
_READERS = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "mistral-common")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"}
_LARGEST_FILE = 1 << 28
"""Bytes. No tokenizer's file is larger, and a folder that holds such a file for whatever reason is not hashed."""
_HOLE = -1


@dataclass(frozen=True)
class KeptBackend:
    """The backend of a fast tokenizer in a file of this machine."""

    file: Path
    hash: str
    bos_token_id: int | None

    def load(self) -> Backend | None:
        """None where it is not there as it was kept, as on another machine."""
        from tokenizers import Tokenizer

        try:
            check_files({self.file.name: self.hash}, self.file.parent, "nothing: the tokenizer is read instead")
        except DataError:
            return None
        return Backend(Tokenizer.from_file(str(self.file)), self.bos_token_id)


class Known(NamedTuple):
    """As `contract.tokens.encoder.Encoder` has them."""

    table: TokenTable
    add_bos: bool
    head_size: int | None
    backend: KeptBackend | None = None


def cache_file(place: str, revision: str | None) -> Path | None:
    """Where the table of a model's folder, or of a hub id at a commit, is kept.

    Its name changes with every file beside the weights, the libraries that read them, and this reading itself. None
    where nothing says for sure what a library would read.
    """
    folder = _folder(place, revision)
    if folder is None:
        return None
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in _WEIGHTS)
        if any(file.stat().st_size > _LARGEST_FILE for file in files):
            return None
        hashes = {file.name: file_hash(file) for file in files}
    except (OSError, DataError):  # whoever reads the tokenizer says what is wrong
        return None
    return cache_folder("tokens") / f"{digest_of([hashes, _readers()])}.json"


def kept(file: Path) -> Known | None:
    """What is kept there, if anything is; the whole of it has a checksum."""
    try:
        found = remembered(file)
    except DataError:
        return None
    if found is None:
        return None
    lengths = np.frombuffer(base64.b64decode(found["lengths"]), np.int32)
    joined = base64.b64decode(found["bytes"])
    ends = accumulate(np.maximum(lengths, 0).tolist(), initial=0)
    pieces = (joined[start:end] for start, end in pairwise(ends))
    table = TokenTable(
        [None if length == _HOLE else piece for length, piece in zip(lengths.tolist(), pieces, strict=True)],
        {int(token): role for token, role in found["special_role"].items()},
        frozenset(found["byte_fallback"]),
        found["fingerprint"],
        frozenset(found["word_ends"]),
        found["components"],
    )
    backend = [KeptBackend(file.parent / name, hash, found["bos"]) for name, hash in found[FILES].items()]
    return Known(table, found["add_bos"], found["head_size"], *backend)


def keep(file: Path, known: Known, tokenizer: Any = None) -> None:
    """Keeps it, unless it is small or the place cannot be written: what is not kept is read again.

    `tokenizer`: whose backend is kept with it.
    """
    table = known.table
    if table.size < _SMALL:
        return
    lengths = [_HOLE if piece is None else len(piece) for piece in table.token_bytes]
    try:
        write_sealed(
            file,
            {
                FILES: _keep_backend(file.with_suffix(".tokenizer.json"), tokenizer),
                "bos": getattr(tokenizer, "bos_token_id", None),
                "bytes": base64.b64encode(b"".join(table.filled_bytes)).decode(),
                "lengths": base64.b64encode(np.array(lengths, np.int32).tobytes()).decode(),
                "special_role": table.special_role,
                "byte_fallback": sorted(table.byte_fallback),
                "word_ends": sorted(table.word_ends),
                "fingerprint": table.fingerprint,
                "components": table.components,
                "add_bos": known.add_bos,
                "head_size": known.head_size,
            },
        )
    except DataError:
        return


def _keep_backend(file: Path, tokenizer: Any) -> dict[str, str]:
    """Name and hash of what was kept; nothing of a slow tokenizer, nor where its state does not make it again."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    state = backend.to_str()
    if Tokenizer.from_str(state).to_str() != state:
        return {}
    write_bytes(file, state.encode())
    return {file.name: file_hash(file)}


def _folder(place: str, revision: str | None) -> Path | None:
    """A hub id stands for one and the same folder only at a commit; a branch or tag may have moved."""
    if Path(place).is_dir():
        return Path(place)
    if revision is None or len(revision) != 40:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place, "tokenizer_config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=1)
def _readers() -> list[Any]:
    """The installed libraries, and the modules of this folder: another version may read the same files otherwise."""
    versions = []
    for name in _READERS:
        try:
            versions.append(version(name))
        except PackageNotFoundError:
            versions.append("")
    return [*versions, *(file_hash(module) for module in sorted(Path(__file__).parent.glob("*.py")))]
