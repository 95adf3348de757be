"""A misread tokenizer is told from the one that a GGUF file states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import write_gguf
from tokenizer_builder import byte_level_bpe, wrapped
from tokenizers import Tokenizer

from fusionx.contract.errors import DataError
from fusionx.contract.models.gguf_header import GgufHeader, read_header
from fusionx.contract.models.tokenizer_proof import prove


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_header(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))


def changed(change: Callable[[dict[str, Any]], None]) -> Any:
    """The file's tokenizer with another state of its backend."""
    state = json.loads(byte_level_bpe().backend_tokenizer.to_str())
    change(state)
    return wrapped(Tokenizer.from_str(json.dumps(state)), bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def without_merges(state: dict[str, Any]) -> None:
    state["model"]["merges"] = []


def two_tokens_exchanged(state: dict[str, Any]) -> None:
    vocab = state["model"]["vocab"]
    vocab["the"], vocab["he"] = vocab["he"], vocab["the"]


def lower_case(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def one_more(state: dict[str, Any]) -> None:
    state["model"]["vocab"]["zzzz"] = 2 + max(state["model"]["vocab"].values())


def test_the_stated_one_passes(header: GgufHeader) -> None:
    prove(byte_level_bpe(), header)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_merges, "where the vocabulary's longest matches make"),
        (two_tokens_exchanged, "2 of 402 tokens are others"),
        (lower_case, "comes back as"),
        (one_more, "403 tokens where the file has 402"),
    ],
)
def test_a_misread_one_is_refused(header: GgufHeader, change: Callable[[dict[str, Any]], None], said: str) -> None:
    with pytest.raises(DataError, match="not read as the file states it") as error:
        prove(changed(change), header)
    assert said in error.value.details["found"]
    assert error.value.details["file"] == str(header.path)


def test_special_tokens_are_the_stated_ones(tmp_path: Path) -> None:
    stated = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eos_token_id": 5}
    header = read_header(write_gguf(tmp_path / "tiny.gguf", metadata=stated))
    with pytest.raises(DataError) as error:
        prove(byte_level_bpe(), header)
    assert "eos is 0, stated 5" in error.value.details["found"]
    assert "BOS is not added to a text, stated true" in error.value.details["found"]
