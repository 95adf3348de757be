"""Rows of a corpus, wherever they come from: what gives them, and the text and the domain that are in each."""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.chat import conversation_text
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.conversations import conversation_columns, conversation_of


class RowSource(ABC):
    """One file, or one split of a hub data set. `share` of its `bytes` have been given out; None: nobody can tell."""

    bytes: int = 1
    share: float | None = 0.0

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, str]]: ...


def fields_of(row: dict[str, Any], config: CorpusConfig, place: str) -> tuple[str, str]:
    """Text and domain of one row; a conversation is its messages as `conversation_text` writes them."""
    text = _conversation(row, config, place) if config.format == "chat" else _text(row, config, place)
    if config.domain is None:
        return text, "all"
    domain = _value(row, config.domain, place)
    # A name is printed and stored, so its bytes that are no UTF-8 are replaced.
    return text, "unknown" if domain is None else str(domain).encode("utf-8", "replace").decode()


def _conversation(row: dict[str, Any], config: CorpusConfig, place: str) -> str:
    columns = conversation_columns(list(row), config, place)
    fields = {name: _value(row, name, place) for name in columns}
    # Some data sets keep a list of messages as text.
    parsed = {
        name: _parse_object(value) if len(fields) == 1 and isinstance(value, str) else value
        for name, value in fields.items()
    }
    return conversation_text(conversation_of(parsed, config, place))


def _text(row: dict[str, Any], config: CorpusConfig, place: str) -> str:
    """A missing text is an empty one."""
    text = _value(row, config.text, place)
    if text is None:
        text = ""
    elif not isinstance(text, str):
        raise ConfigError(
            "The corpus's text is no text.",
            file=place,
            field="corpus.text",
            found=f"{config.text}: {text!r:.60}",
            expected="a column of strings",
            remedy=f"name the column that holds the text; there are {', '.join(row)}",
        )
    return text


def _value(row: dict[str, Any], name: str, place: str) -> Any:
    """A field may be nested (`meta.pile_set_name`), also in a column that holds objects as text."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = _parse_object(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or key not in value:
            raise no_column(name, list(row), place)
        value = value[key]
    return value


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a record batch. Bytes that are no UTF-8 become lone surrogates, so that such texts can be counted."""
    columns = [_values(batch.column(name)) for name in batch.schema.names]
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if pa.types.is_struct(column.type):
            fields = [column.type.field(number).name for number in range(column.type.num_fields)]
            parts = zip(*(_values(part) for part in column.flatten()), strict=True)
            return [dict(zip(fields, part, strict=True)) for part in parts]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if data is None else data.decode("utf-8", "surrogateescape") for data in raw]


def _parse_object(text: str) -> Any:
    """An object written as JSON, or as Python writes one, as some copies of The Pile have it; None if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def no_column(name: str, found: list[str], place: str) -> ConfigError:
    return ConfigError(
        "The corpus has no such column.",
        file=place,
        field="corpus.text / corpus.domain",
        found=", ".join(found),
        expected=name,
        remedy="set corpus.text and corpus.domain to columns that are there (nested ones as a.b)",
    )
