"""Rows of a corpus, wherever they come from: what gives them, and the text and the domain that are in each."""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.precompute.config import CorpusConfig


class RowSource(ABC):
    """One file, or one split of a hub data set. `share` of its `bytes` have been given out; None: nobody can tell."""

    bytes: int = 1
    share: float | None = 0.0

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, str]]: ...


def fields_of(row: dict[str, Any], config: CorpusConfig, place: str) -> tuple[str, str]:
    """Text and domain of one row."""
    if config.text not in row:
        raise no_column(config.text, list(row), place)
    text = row[config.text]
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
    return text, "all" if config.domain is None else _domain(row, config.domain, place)


def _domain(row: dict[str, Any], name: str, place: str) -> str:
    """A domain may be nested (`meta.pile_set_name`), also in a column that holds objects as text."""
    if name in row:
        value = row[name]
    else:
        value = row
        for key in name.split("."):
            value = _parse_object(value) if isinstance(value, str) else value
            if not isinstance(value, dict) or key not in value:
                raise no_column(name, list(row), place)
            value = value[key]
    return "unknown" if value is None else str(value)


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
