"""Answers of conversations, aligned across chat templates, the models' own or the config's.

With equal tokenizers a source says the same at the target's places, whatever their templates write around the answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import CHATML, PLAIN, TURNS, chat_tokenizer, conversation

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import AlignConfig, AlignMethod
from fusionx.align.tokens_stage import TokensStage
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.rows import read_shards
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage


def run(stage: Any) -> str:
    units, worker = list(stage.units()), stage.worker()
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    write_manifest(stage.output, build_manifest(stage.kind, provenance.config, provenance.identity, entries))
    return str(stage.output)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks, the models' logits and the target's tokens; the models are stand-ins, with tokenizers alone."""
    root = tmp_path_factory.mktemp("templates")
    rows = [conversation(TURNS), conversation(TURNS[1:], system="Be brief."), conversation([("Who?", "x")])]
    (root / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (root / "plain.jinja").write_text(PLAIN)
    given = {"target": CHATML, "same": str(root / "plain.jinja"), "other": None}
    for name, family in (("target", "chatml"), ("same", "chatml"), ("other", "llama2")):
        tokenizer = chat_tokenizer(family)
        if given[name] is not None:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(root / name)
    models = [
        ModelConfig(id=name, path=str(root / name), kind="fake", chat_template=template)
        for name, template in given.items()
    ]
    corpus = CorpusConfig(path=str(root / "train.jsonl"), format="chat", splits=["train"])
    chunks = run(ChunkStage(corpus, ChunkConfig(block_size=300), models, str(root / "chunks")))
    for model in models:
        run(LogitsStage(model, PrecomputeConfig(k=12, device="cpu"), chunks, str(root / "logits" / model.id)))
    target = (str(root / "target"), None, ["train"], chunks, str(root / "tokens"))
    run(TokensStage("target", *target, chat_template=CHATML))
    return root


def aligned(root: Path, source: str, method: AlignMethod = "walk") -> list[dict[str, Any]]:
    places = (str(root / "logits" / source), str(root / "logits" / "target"), str(root / "tokens"))
    models = (source, str(root / source), None, "target", str(root / "target"), None)
    stage = AlignedStage(*models, method, AlignConfig(), *places, str(root / method / source))
    stage.check()
    run(stage)
    return list(read_shards(stage.output))


def entries(row: dict[str, Any], place: int) -> dict[int, float]:
    pairs = zip(row["ids"][place].tolist(), row["logprobs"][place].tolist(), strict=True)
    return {token: logprob for token, logprob in pairs if token >= 0}


def test_equal_tokenizers_under_different_templates_are_the_identity(root: Path) -> None:
    rows = aligned(root, "same")
    own, tokens = (list(read_shards(str(root / folder))) for folder in ("logits/same", "tokens"))
    assert len(rows) == len(own) == 6
    for row, said, target in zip(rows, own, tokens, strict=True):
        np.testing.assert_array_equal(said["input_ids"][1:], target["input_ids"][1:])
        for place, label in enumerate(target["input_ids"][1:].tolist()):
            given, expected = entries(row, place), entries(said, place)
            expected.setdefault(label, -float(said["token_nll"][place]))
            assert len(given) == 12
            assert {*given} <= {*expected}
            assert all(given[token] == pytest.approx(expected[token], abs=2e-2) for token in given)
            assert row["status"][place] == 1
        assert row["status"][-1] == 0
        assert row["nll_bytes"] == target["ends"][-1]
        assert row["nll"] == pytest.approx(float(said["token_nll"][:-1].sum()), rel=1e-4)


def test_templates_of_another_model_change_the_context_alone(root: Path) -> None:
    """The stand-ins see two tokens back, so the first place alone depends on what stands before an answer."""
    one, other = (list(read_shards(str(root / "logits" / name))) for name in ("target", "same"))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left["ids"][2:], right["ids"][2:])


@pytest.mark.parametrize("method", ["walk", "mined", "exact"])
def test_answers_under_another_tokenizer_are_aligned_from_end_to_end(root: Path, method: AlignMethod) -> None:
    rows, tokens = aligned(root, "other", method), list(read_shards(str(root / "tokens")))
    chunks = list(read_shards(str(root / "chunks")))
    for row, target, chunk in zip(rows, tokens, chunks, strict=True):
        answer = json.loads(chunk["text"])[-1]["content"].encode()
        assert row["text_hash"] == target["text_hash"] == chunk["text_hash"]
        assert row["nll_bytes"] == target["ends"][-1] == len(answer)
        assert len(row["status"]) == len(target["input_ids"])
        assert row["status"][0] == 1, "the answer begins at the same place for both"
        if method == "walk":
            assert (row["status"][:-1] > 0).all()
