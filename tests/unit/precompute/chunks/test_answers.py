"""Conversations cut into one chunk per answer: what fits, what is shortened, what is left out, and that it is said."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from chat_models import TURNS, chat_tokenizer, conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.shards.manifest import build_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.tokens.chat import ChatEncoder, conversation_text, messages_of
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table
from fusionx.precompute.chunks.answers import ANSWERS, SHORTENED, TOO_LONG, AnswerChunker
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.chunks.corpus_findings import corpus_findings
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig


@cache
def encoders(*families: str) -> list[ChatEncoder]:
    tokenizers = {family: chat_tokenizer(family) for family in families}
    return [ChatEncoder(name, Encoder.of(one, token_table(one), add_bos=False)) for name, one in tokenizers.items()]


TURN = st.tuples(st.text("ab c", max_size=30).map(str.strip), st.text("xyé z", max_size=30).map(str.strip))


@settings(max_examples=50)
@given(st.lists(TURN, min_size=1, max_size=5), st.none() | st.just("Be brief."), st.integers(20, 200))
def test_every_answer_is_cut_to_the_most_turns_that_fit_or_left_out(
    turns: list[tuple[str, str]], system: str | None, block: int
) -> None:
    """Against every suffix of the turns, tried from the longest on."""
    chats = encoders("chatml", "llama2")
    found, counted = AnswerChunker(chats, block).cut(conversation_text(conversation(turns, system)))
    expected, shortened, answers = [], 0, 0
    for last in range(len(turns)):
        if not turns[last][1]:
            continue
        answers += 1
        for first in range(last + 1):
            kept = conversation(turns[first : last + 1], system)
            if all(chat.length(kept) <= block for chat in chats):
                expected.append(kept)
                shortened += first > 0
                break
    assert list(map(messages_of, found)) == expected
    wanted = {ANSWERS: answers, SHORTENED: shortened, TOO_LONG: answers - len(expected)}
    assert counted == {name: count for name, count in wanted.items() if count}


def test_what_only_one_model_cannot_write_is_left_out_and_counted_by_its_name() -> None:
    spelled = conversation([("Who?", "me <start_of_turn>"), TURNS[1]])
    found, counted = AnswerChunker(encoders("chatml", "gemma"), 500).cut(conversation_text(spelled))
    assert not found
    assert counted == {ANSWERS: 2, "it spells a special token of 'gemma'": 2}
    assert len(AnswerChunker(encoders("chatml"), 500).cut(conversation_text(spelled))[0]) == 2
    twice = [{"role": "user", "content": "Hello?"}, *conversation(TURNS[:1])]
    found, counted = AnswerChunker(encoders("chatml", "llama2"), 500).cut(conversation_text(twice))
    assert counted["the template of 'llama2' refuses the order of its messages"] == 1


def stage_of(root: Path, rows: list[list[dict[str, str]]], *families: str, block: int = 100) -> ChunkStage:
    corpus = root / "corpus"
    corpus.mkdir()
    (corpus / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    for family in families:
        chat_tokenizer(family).save_pretrained(root / family)
    models = [ModelConfig(id=family, path=str(root / family), kind="fake") for family in families]
    config = CorpusConfig(path=str(corpus), format="chat", splits=["train"])
    return ChunkStage(config, ChunkConfig(block_size=block), models, str(root / "chunks"))


def test_parts_say_what_was_left_out(tmp_path: Path) -> None:
    rows = [conversation(TURNS), conversation([("Who?", "")]), conversation([("Who?", "x " * 200)])]
    stage = stage_of(tmp_path, rows, "chatml", "llama2", block=105)  # two turns are 83 to 92 tokens, three 121 to 134
    (unit,) = stage.units()
    entry = stage.worker()(unit)
    table, provenance = read_part(f"{stage.output}/part-00000.parquet", "chunks")
    assert provenance.config["format"] == "chat"
    assert [row["chunk"] for row in table.to_pylist()] == [0, 1, 2]
    assert entry.stats["skipped"] == {"no answer": 1}
    assert entry.stats["answers"] == {ANSWERS: 4, SHORTENED: 1, TOO_LONG: 1}
    lines = corpus_findings(build_manifest("chunks", provenance.config, {}, [entry]))
    assert lines == [
        "documents that are left out (no answer): 1 of 3, numbers 1",
        "answers whose conversation is shortened (oldest turns left out): 1 of 4",
        "answers that are left out (too long, with its question alone): 1 of 4",
    ]
    assert not stage.differences(provenance, unit)


def test_nothing_but_questions_is_an_error(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, [[{"role": "user", "content": "Who?"}]], "chatml")
    (unit,) = stage.units()
    entry = stage.worker()(unit)
    with pytest.raises(DataError, match="Nothing is left"):
        corpus_findings(build_manifest("chunks", {}, {}, [entry]))


def test_a_role_that_a_model_lacks_stops_the_stage(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, [conversation(TURNS[:1], system="Be brief.")], "chatml", "gemma")
    (unit,) = stage.units()
    with pytest.raises(ConfigError, match="The chat template of 'gemma' cannot write messages of the role 'system'"):
        stage.worker()(unit)


def test_another_template_makes_the_parts_stale(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, [conversation(TURNS)], "chatml", block=200)
    (unit,) = stage.units()
    stage.worker()(unit)
    _, provenance = read_part(f"{stage.output}/part-00000.parquet", "chunks")
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template += "\n"
    tokenizer.save_pretrained(tmp_path / "other")
    models = [ModelConfig(id="chatml", path=str(tmp_path / "other"), kind="fake")]
    other = ChunkStage(stage.corpus, stage.config, models, stage.output)
    assert any("tokenizer.chatml" in line for line in other.differences(provenance, unit))
