"""Conversations in every layout, from files, and what is no conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.tokens.chat import messages_of
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.documents import read_corpus

ASKED = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": " Who?\n"}, {"role": "assistant", "content": "Me."}]},
    "parts": {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in ASKED]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me. "}]},
    "written": {"conversations": json.dumps(ASKED)},
    "alpaca": {"instruction": "Who?", "input": "", "output": "Me."},
    "bare alpaca": {"instruction": "Who?", "output": "Me."},
}


def messages(folder: Path, row: dict[str, Any], parquet: bool = False, **corpus: Any) -> list[dict[str, str]]:
    if parquet:
        pq.write_table(pa.Table.from_pylist([row]), folder / "train.parquet")
    else:
        (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    (document,) = read_corpus(CorpusConfig(path=str(folder), format="chat", splits=["train"], **corpus))
    return messages_of(document.text)


@pytest.mark.parametrize("parquet", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised(tmp_path: Path, layout: str, parquet: bool) -> None:
    assert messages(tmp_path, LAYOUTS[layout], parquet) == ASKED


def test_an_input_stands_below_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert messages(tmp_path, row)[0] == {"role": "user", "content": "Add.\n\n1, 2"}


def test_the_column_may_be_named(tmp_path: Path) -> None:
    row = {"messages": [], "chat": {"turns": ASKED}}
    assert messages(tmp_path, row, messages="chat.turns") == ASKED
    with pytest.raises(ConfigError, match="no such column"):
        messages(tmp_path, row, messages="talks")


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("keep", [{"role": "system", "content": "Be brief."}, *ASKED]),
        ("merge", [{"role": "user", "content": "Be brief.\n\nWho?"}, ASKED[1]]),
        ("drop", ASKED),
    ],
)
def test_system_messages_are_treated_as_asked(tmp_path: Path, system: str, expected: Any) -> None:
    row = {"messages": [{"role": "developer", "content": "Be brief."}, *ASKED]}
    assert messages(tmp_path, row, system=system) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "cannot be read"),
        ({"messages": ["Who?"]}, "cannot be read"),
        ({"messages": "Who?"}, "cannot be read"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "cannot be read"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "cannot be read"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        messages(tmp_path, row)
    assert caught.value.details["file"].endswith("train.jsonl:1")


@pytest.mark.parametrize("parquet", [True, False])
def test_a_corpus_without_conversations_is_refused(tmp_path: Path, parquet: bool) -> None:
    with pytest.raises(ConfigError, match="no conversations") as caught:
        messages(tmp_path, {"text": "Who?"}, parquet)
    assert "text" in caught.value.details["found"]


def test_text_files_hold_none(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("Who?")
    with pytest.raises(ConfigError, match="text file"):
        list(read_corpus(CorpusConfig(path=str(tmp_path), format="chat")))


def test_settings_of_chats_are_of_chats_only() -> None:
    with pytest.raises(ValueError, match="set format to chat"):
        CorpusConfig(path="x", system="merge")
