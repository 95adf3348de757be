"""Documents of a corpus, split by split: local Parquet, JSONL or text, or a hub data set through `datasets`.

Local files are read with pyarrow alone, so that a machine without `datasets` can run every stage.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from contract.errors import ConfigError, DataError
from precompute.config import SPLITS, CorpusConfig, Split

_TABLE_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_TEXT_ENDINGS = (".txt", ".md")
_SPLIT_ALIASES = {"validation": ("val", "valid", "dev")}


@dataclass(frozen=True)
class Document:
    """One document. `doc_id` counts documents over all splits in their stated order."""

    doc_id: int
    split: Split
    domain: str
    text: str


def read_corpus(config: CorpusConfig) -> Iterator[Document]:
    """Every document of every configured split, in a fixed order.

    Raises:
        ConfigError: the corpus does not exist, or a column or split that the config names is not there.
        DataError: a file cannot be read, or the corpus holds no document.
    """
    doc_id = 0
    for split, rows in _splits(config):
        for text, domain in islice(rows, config.limit.get(split)):
            where = _holdout_split(text, config) if split == "train" else split
            yield Document(doc_id, where, domain, text)
            doc_id += 1
    if doc_id == 0:
        raise DataError(
            "The corpus is empty.",
            file=config.path or config.dataset,
            field="corpus",
            found="0 documents",
            expected="at least one",
        )


def check_corpus(config: CorpusConfig) -> None:
    """Fails early when a local corpus is not there; reads nothing.

    Raises:
        ConfigError: `corpus.path` names no file or folder.
    """
    if config.path is not None and "://" not in config.path and not Path(config.path).exists():
        raise ConfigError(
            "The corpus does not exist.",
            field="corpus.path",
            found=config.path,
            expected="a folder or file of Parquet, JSONL or text",
            remedy="for the demo's corpus run `fusionx demo-inputs configs/inputs/demo.yaml`",
        )


def _splits(config: CorpusConfig) -> Iterator[tuple[Split, Iterator[tuple[str, str]]]]:
    if config.dataset is not None:
        for split in config.splits:
            yield split, _hub_rows(config, split)
        return
    check_corpus(config)
    files = _local_files(Path(str(config.path)))
    for split in config.splits:
        chosen = [file for file in files if _split_of(file, Path(str(config.path))) == split]
        if not chosen and split == "train" and not any(_split_of(file, Path(str(config.path))) for file in files):
            chosen = files  # a plain folder or file without split names is all training text
        yield split, (row for file in chosen for row in _file_rows(file, config))


def _hub_rows(config: CorpusConfig, split: Split) -> Iterator[tuple[str, str]]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "A hub data set needs the package 'datasets'.",
            field="corpus.dataset",
            found=config.dataset,
            remedy="install datasets, or give a local folder as corpus.path",
        ) from None
    try:
        rows = datasets.load_dataset(
            str(config.dataset), config.name, split=split, revision=config.revision, streaming=config.streaming
        )
    except (FileNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise ConfigError(
            "The data set cannot be loaded.",
            field="corpus.dataset",
            found=f"{config.dataset} [{split}]: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            remedy="check the id, the split names and the connection to the hub",
        ) from None
    for row in rows:
        yield _fields(row, config, str(config.dataset))


def _local_files(root: Path) -> list[Path]:
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    known = [file for file in files if file.name.endswith((*_TABLE_ENDINGS, *_TEXT_ENDINGS))]
    if not known:
        raise DataError(
            "The corpus holds no file that can be read.",
            file=root,
            expected=", ".join((*_TABLE_ENDINGS, *_TEXT_ENDINGS)),
        )
    return known


def _split_of(file: Path, root: Path) -> str | None:
    """The split a file belongs to by Hugging Face's convention: its name or a folder's name starts with the split's.

    `val`, `valid` and `dev` are read as `validation`.
    """
    parts = file.relative_to(root).parts if root.is_dir() else ()
    for part in reversed(parts):
        for split in SPLITS:
            for word in (split, *_SPLIT_ALIASES.get(split, ())):
                if part == word or part.startswith((f"{word}.", f"{word}-", f"{word}_")):
                    return split
    return None


def _file_rows(file: Path, config: CorpusConfig) -> Iterator[tuple[str, str]]:
    if file.name.endswith(_TEXT_ENDINGS):
        yield file.read_bytes().decode("utf-8", "surrogateescape"), file.parent.name  # line ends stay as they are
        return
    rows = _parquet_rows(file, config) if file.suffix == ".parquet" else _jsonl_rows(file)
    for row in rows:
        yield _fields(row, config, str(file))


def _parquet_rows(file: Path, config: CorpusConfig) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as source:
            wanted = [config.text, *([config.domain.split(".")[0]] if config.domain else [])]
            missing = [name for name in wanted if name not in source.schema_arrow.names]
            if missing:
                raise _no_column(missing[0], source.schema_arrow.names, file)
            for batch in source.iter_batches(batch_size=512, columns=wanted):
                yield from _rows_of(batch, config.text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("A corpus file is damaged.", file=file, found=str(error).splitlines()[0]) from None


def _rows_of(batch: Any, text: str) -> Iterator[dict[str, Any]]:
    """Rows of a record batch. Bytes that are no UTF-8 become lone surrogates, so that they are counted as skipped."""
    import pyarrow as pa

    column = batch.column(text)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not is_text:
        yield from batch.to_pylist()
        return
    raw = column.cast(pa.large_binary()).to_pylist()
    others = batch.select([name for name in batch.schema.names if name != text]).to_pylist()
    for row, data in zip(others, raw, strict=True):
        yield {**row, text: None if data is None else data.decode("utf-8", "surrogateescape")}


def _jsonl_rows(file: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with _open_bytes(file) as lines:
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8", "surrogateescape"))
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, no object")
                yield row
    except ValueError as error:
        raise DataError("A line is not a JSON object.", file=f"{file}:{number}", found=str(error)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            "A corpus file is damaged.", file=f"{file}, after line {number}", found=str(error) or type(error).__name__
        ) from None


def _open_bytes(file: Path) -> IO[bytes] | gzip.GzipFile:
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    if file.suffix == ".zst":
        import pyarrow as pa

        # Reads all frames of a file and refuses a truncated one.
        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    return file.open("rb")


def _fields(row: dict[str, Any], config: CorpusConfig, file: str) -> tuple[str, str]:
    """Text and domain of one row; a domain may be nested (`meta.pile_set_name`)."""
    if config.text not in row:
        raise _no_column(config.text, list(row), file)
    domain: Any = row
    for name in config.domain.split(".") if config.domain else ():
        if not isinstance(domain, dict) or name not in domain:
            raise _no_column(str(config.domain), list(row), file)
        domain = domain[name]
    text = "" if row[config.text] is None else row[config.text]
    if not isinstance(text, str):
        raise ConfigError(
            "The corpus's text is no text.", file=file, field="corpus.text", found=f"{config.text}: {text!r:.60}"
        )
    return text, str(domain) if config.domain else "all"


def _no_column(name: str, found: list[str], file: object) -> ConfigError:
    return ConfigError(
        "The corpus has no such column.",
        file=file,
        field="corpus.text / corpus.domain",
        found=", ".join(found),
        expected=name,
    )


def _holdout_split(text: str, config: CorpusConfig) -> Split:
    """Assigns a training document by its hash when validation and test are shares of the training split."""
    if not config.holdout:
        return "train"
    draw = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    for split in ("validation", "test"):
        share = config.holdout.get(split, 0.0)
        if draw < share:
            return split
        draw -= share
    return "train"
