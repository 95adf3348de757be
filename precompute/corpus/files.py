"""Files of a corpus: which belong to a split, and the rows of Parquet, JSONL and text behind any path.

They are read with pyarrow alone, so that a machine without `datasets` can run every stage, and as streams: what is
held in memory is a row group of Parquet, some megabytes of JSONL, or one text.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import exists, failure, join, list_tree, open_file, plain
from fusionx.precompute.config import SPLITS, CorpusConfig, Split
from fusionx.precompute.corpus.rows import RowSource, fields_of, no_column

_PARQUET = ".parquet"
_JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
_TEXT = (".txt", ".md")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside the rows."""
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_SPLIT_ALIASES = {"validation": ("val", "valid", "dev")}
_READ_BYTES = 4 << 20
"""Asked of a file at once; an object store answers each read with one request."""
_LINE_BUFFER = 128 << 10


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
    files = _readable_files(root)
    splits = {_split_of_name(name) for name in files}
    if split == "train" and splits == {None}:
        chosen = files
    else:
        chosen = {name: size for name, size in files.items() if _split_of_name(name) == split}
    return [_open_source(join(root, name) if name else root, size, config) for name, size in chosen.items()]


def _readable_files(root: str) -> dict[str, int]:
    """Bytes by name below `root`. Texts beside tables (a README) describe them and are no documents."""
    files = {name: size for name, size in list_tree(root).items() if not _is_hidden(name)}
    for endings in ((_PARQUET, *_JSON_LINES), _TEXT):
        found = {name: size for name, size in files.items() if (name or root).endswith(endings)}
        if found:
            return found
    raise DataError(
        "The corpus holds no file that can be read.", file=root, expected=", ".join((_PARQUET, *_JSON_LINES, *_TEXT))
    )


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in _DESCRIPTIONS or any(part.startswith(".") for part in parts)


def _split_of_name(name: str) -> str | None:
    """The split a file belongs to by Hugging Face's convention: its name or a folder's name starts with the split's.

    `val`, `valid` and `dev` are read as `validation`.
    """
    for part in reversed(name.split("/")):
        for split in SPLITS:
            for word in (split, *_SPLIT_ALIASES.get(split, ())):
                if part == word or part.startswith((f"{word}.", f"{word}-", f"{word}_")):
                    return split
    return None


def _open_source(path: str, size: int, config: CorpusConfig) -> RowSource:
    kind = _ParquetFile if path.endswith(_PARQUET) else _TextFile if path.endswith(_TEXT) else _JsonLines
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

    def _broken(self, place: str, error: Exception) -> DataError:
        problem = "A corpus file cannot be read to its end."
        return failure(problem, f"{self._path}{place}", error, otherwise="its bytes are damaged: fetch the file again")


class _TextFile(_File):
    """A whole file is one document; its folder is its domain."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            with self._open() as stream:
                data = stream.read()
        except OSError as error:
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
            with self._open() as stream, pq.ParquetFile(stream, pre_buffer=True) as source:
                columns = self._columns(source.schema_arrow.names)
                count = source.metadata.num_rows
                for group in range(source.num_row_groups):
                    for batch in source.iter_batches(batch_size=512, row_groups=[group], columns=columns):
                        for row in _rows_of(batch, config.text):
                            number += 1
                            self.share = number / count
                            yield fields_of(row, config, f"{self._path}, row {number}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._broken(f", after row {number}", error) from None

    def _columns(self, names: list[str]) -> list[str]:
        """The columns to read; a nested domain's outermost one."""
        text, domain = self._config.text, self._config.domain
        wanted = [text]
        if domain is not None:
            wanted.append(domain if domain in names else domain.split(".")[0])
        for name in wanted:
            if name not in names:
                raise no_column(name, names, self._path)
        return list(dict.fromkeys(wanted))


def _rows_of(batch: Any, text: str) -> Iterator[dict[str, Any]]:
    """Rows of a record batch. Bytes that are no UTF-8 become lone surrogates, so that they are counted as skipped."""
    import pyarrow as pa

    column = batch.column(text)
    try:
        texts = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        texts = [None if data is None else data.decode("utf-8", "surrogateescape") for data in raw]
    others = batch.select([name for name in batch.schema.names if name != text])
    for value, row in zip(texts, others.to_pylist() if others.num_columns else ({} for _ in texts), strict=True):
        row[text] = value
        yield row


class _JsonLines(_File):
    def __iter__(self) -> Iterator[tuple[str, str]]:
        config, number = self._config, 0
        try:
            with self._open() as stream:
                stored = io.BufferedReader(stream, _READ_BYTES)
                for line in self._lines(stored):
                    number += 1
                    if not line.strip():
                        continue
                    place = f"{self._path}:{number}"
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    row = _parse_line(line, place)
                    self.share = stored.tell() / self.bytes
                    yield fields_of(row, config, place)
            self.share = 1.0
        except (OSError, EOFError) as error:
            raise self._broken(f", after line {number}", error) from None

    def _lines(self, stored: io.BufferedReader) -> Iterator[bytes]:
        """The lines; of all frames or members of a compressed file, and a truncated one is an error."""
        import pyarrow as pa

        compression = _COMPRESSION.get(f".{self._path.rsplit('.', 1)[-1]}")
        if compression is None:
            yield from stored
        elif self.bytes:
            with pa.CompressedInputStream(pa.PythonFile(stored, "r"), compression) as unpacked:
                yield from io.BufferedReader(unpacked, _LINE_BUFFER)


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
        if not isinstance(row, dict):
            raise ValueError(f"a {type(row).__name__}")
    except ValueError as error:
        raise DataError(
            "A line is not a JSON object.",
            file=place,
            found=str(error),
            expected="one object per line (JSONL), in .json files too",
            remedy="write each document on a line of its own, or mend the line",
        ) from None
    return row
