"""Files of a corpus: which belong to a split, and the rows of Parquet, JSONL and text behind any path.

They are read with pyarrow alone, so that a machine without `datasets` can run every stage, and as streams: what is
held in memory is a row group of Parquet, some megabytes of JSONL, or one text.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import exists, failure, join, list_tree, open_file, plain
from fusionx.precompute.config import SPLITS, CorpusConfig, Split
from fusionx.precompute.corpus.conversations import conversation_columns
from fusionx.precompute.corpus.rows import RowSource, fields_of, no_column, rows_of

_PARQUET = (".parquet",)
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".text", ".md")
_READ = (*_PARQUET, *_JSON_LINES, *_TEXT)
_COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4", ".xz": "xz"}
"""Of JSON lines and of text."""
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside the rows."""
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""As `datasets` reads the names of files and folders."""
_READ_BYTES = 4 << 20
"""Asked of a file at once; an object store answers each read with one request."""
_LINE_BUFFER = 128 << 10
_MOST_BYTES = 1 << 30
"""Of one document, unpacked: a megabyte of zeros may be a gigabyte once it is read."""


def check_corpus(config: CorpusConfig) -> None:
    """Fails early when the files of a corpus are not there; reads none of them.

    Raises:
        ConfigError: `corpus.path` names no file or folder.
    """
    if config.path is not None and not exists(config.path):
        raise ConfigError(
            "The corpus does not exist.",
            field="corpus.path",
            found=config.path,
            expected="a folder or file of Parquet, JSONL or text",
            remedy="for the demo's corpus run `fusionx demo-inputs configs/inputs/demo.yaml`",
        )


def files_of(config: CorpusConfig, split: Split) -> list[RowSource]:
    """The files of a split; without any split's name in them, all files are training text."""
    check_corpus(config)
    root = plain(str(config.path))
    files, _ = _sorted_out(root)
    splits = {_split_of_name(name) for name in files}
    if split == "train" and splits == {None}:
        chosen = files
    else:
        chosen = {name: size for name, size in files.items() if _split_of_name(name) == split}
    return [_open_source(join(root, name) if name else root, size, config) for name, size in chosen.items()]


def unread_files(config: CorpusConfig) -> dict[str, list[str]]:
    """The files of a corpus that are in none of its splits: reason -> names below `corpus.path`."""
    if config.path is None:
        return {}
    files, unread = _sorted_out(plain(str(config.path)))
    found = {name: _split_of_name(name) for name in files}
    if any(found.values()):
        unread["no split's name, beside files that have one"] = [name for name, split in found.items() if split is None]
        for split in SPLITS:
            if split not in config.splits:
                unread[f"of the split {split}, which corpus.splits leaves out"] = [
                    n for n in files if found[n] == split
                ]
    return {reason: names for reason, names in unread.items() if names}


def _sorted_out(root: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Bytes by name of what can be read below `root`, and reason -> names of the rest.

    Texts beside tables (a README) describe them and are no documents.
    """
    files = {name: size for name, size in list_tree(root).items() if not _is_hidden(name)}
    endings = {name: _ending(name or root)[0] for name in files}
    unread = {f"not {', '.join(_READ)}": [name for name in files if endings[name] not in _READ]}
    tables = {name: size for name, size in files.items() if endings[name] in _PARQUET + _JSON_LINES}
    texts = {name: size for name, size in files.items() if endings[name] in _TEXT}
    if tables:
        return tables, unread | {"text beside tables": list(texts)}
    if texts:
        return texts, unread
    raise DataError("The corpus holds no file that can be read.", file=root, expected=", ".join(_READ))


def _ending(path: str) -> tuple[str, str | None]:
    """A file's format by the end of its name, in any case, and the compression of text and JSON lines."""
    name = path.lower()
    compression = next((kind for end, kind in _COMPRESSION.items() if name.endswith(end)), None)
    found = posixpath.splitext(posixpath.splitext(name)[0] if compression else name)[1]
    return ("" if compression and found in _PARQUET else found), compression


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in _DESCRIPTIONS or any(part.startswith(".") for part in parts)


def _split_of_name(name: str) -> str | None:
    """The split a file belongs to by Hugging Face's convention: its name or a folder's name starts with the split's."""
    for part in reversed(name.lower().split("/")):
        for split, words in _SPLIT_WORDS.items():
            if any(re.match(rf"{word}([-._ 0-9]|$)", part) for word in words):
                return split
    return None


def _open_source(path: str, size: int, config: CorpusConfig) -> RowSource:
    ending = _ending(path)[0]
    if ending in _TEXT and config.format == "chat":
        raise ConfigError(
            "A text file holds no conversations.",
            file=path,
            field="corpus.format",
            found="chat",
            expected="Parquet or JSON lines with a column of messages",
        )
    kind = _ParquetFile if ending in _PARQUET else _TextFile if ending in _TEXT else _JsonLines
    return kind(path, size, config)


class _File(RowSource):
    def __init__(self, path: str, size: int, config: CorpusConfig) -> None:
        self._path = path
        self._config = config
        self.bytes = size

    def _open(self) -> Any:
        """The file, if it still is what was listed: a reply cut off in its headers reads as an empty file."""
        stream = open_file(self._path)
        if stream.size() != self.bytes:
            raise DataError(
                "A corpus file is not as long as it was listed.",
                file=self._path,
                found=f"{stream.size()} bytes",
                expected=f"{self.bytes} bytes",
                remedy="leave the corpus unchanged during a run, then run the same command again",
            )
        return stream

    def _unpacked(self, stream: Any) -> Any:
        """The file's content as a binary stream: of all frames or members, and a truncated one is an error."""
        import pyarrow as pa

        stored, compression = io.BufferedReader(stream, _READ_BYTES), _ending(self._path)[1]
        self._stored = stored
        if compression is None or not self.bytes:
            return stored
        if compression == "xz":
            return io.BufferedReader(lzma.LZMAFile(stored), _LINE_BUFFER)
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stored, "r"), compression), _LINE_BUFFER)

    def _broken(self, place: str, error: Exception) -> DataError:
        problem = "A corpus file cannot be read to its end."
        return failure(problem, f"{self._path}{place}", error, otherwise="its bytes are damaged: fetch the file again")


class _TextFile(_File):
    """A whole file is one document; its folder is its domain."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            with self._open() as stream:
                data = _bounded(self._unpacked(stream).read(_MOST_BYTES + 1), self._path)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise self._broken("", error) from None
        self.share = 1.0
        yield data.decode("utf-8", "surrogateescape"), self._path.split("/")[-2]  # line ends stay as they are


class _ParquetFile(_File):
    def __iter__(self) -> Iterator[tuple[str, str]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        config, number = self._config, 0
        try:
            # One row group at a time, so that its columns are fetched together and no more than that is held.
            with (
                self._open() as stream,
                pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True) as source,
            ):
                columns = self._columns(source.schema_arrow.names)
                count = source.metadata.num_rows
                for group in range(source.num_row_groups):
                    for batch in source.iter_batches(batch_size=512, row_groups=[group], columns=columns):
                        for row in rows_of(batch):
                            number += 1
                            self.share = number / count
                            yield fields_of(row, config, f"{self._path}, row {number}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._broken(f", after row {number}", error) from None

    def _columns(self, names: list[str]) -> list[str]:
        """The columns to read; a nested field's outermost one."""
        wanted = []
        config = self._config
        read = conversation_columns(names, config, self._path) if config.format == "chat" else [config.text]
        for field in filter(None, (*read, config.domain)):
            wanted.append(field if field in names else field.split(".")[0])
            if wanted[-1] not in names:
                raise no_column(field, names, self._path)
            if names.count(wanted[-1]) > 1:
                raise ConfigError(
                    "The corpus has two columns of one name.",
                    file=self._path,
                    field="corpus.text / corpus.domain",
                    found=", ".join(names),
                    expected=f"one column {wanted[-1]}",
                    remedy="rename one of them in the file",
                )
        return list(dict.fromkeys(wanted))


class _JsonLines(_File):
    def __iter__(self) -> Iterator[tuple[str, str]]:
        config, number = self._config, 0
        try:
            with self._open() as stream:
                unpacked = self._unpacked(stream)
                while line := unpacked.readline(_MOST_BYTES + 1):
                    number += 1
                    if not line.strip():
                        continue
                    place = f"{self._path}:{number}"
                    line = _bounded(line, place)
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    row = _parse_line(line, place)
                    self.share = self._stored.tell() / self.bytes
                    yield fields_of(row, config, place)
            self.share = 1.0
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise self._broken(f", after line {number}", error) from None


def _bounded(data: bytes, place: str) -> bytes:
    if len(data) > _MOST_BYTES:
        raise DataError(
            "A document is too large.",
            file=place,
            found=f"more than {_MOST_BYTES:,} bytes",
            expected="documents of at most that, a text file being one and a line of JSON another",
            remedy="divide it into several files or lines",
        )
    return data


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
        if not isinstance(row, dict):
            raise ValueError(f"a {type(row).__name__}")
    except (ValueError, RecursionError) as error:
        raise DataError(
            "A line is not a JSON object.",
            file=place,
            found=str(error),
            expected="one object per line (JSONL), in .json files too",
            remedy="write each document on a line of its own, or mend the line",
        ) from None
    return row
