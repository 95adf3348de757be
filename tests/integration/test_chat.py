"""A run over conversations: three models with three chat templates, from corpus to report, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_models import ENDS, TURNS, conversation, save_chat_model

import fusionx
from fusionx.contract.shards.rows import read_shards
from fusionx.contract.tokens.chat import load_chat_encoder, messages_of

MODELS = {"target": ("chatml", "llama"), "two": ("llama2", "gpt_neox"), "turns": ("gemma", "llama")}


def conversations(start: int, count: int) -> list[dict[str, Any]]:
    """Of one, two or three turns; in ShareGPT's words, those of the domain `code` with longer answers."""
    made = []
    for number in range(start, start + count):
        turns = [(f"{question} {number}", f"{answer} {number}") for question, answer in TURNS[: number % 3 + 1]]
        words = {"user": "human", "assistant": "gpt"}
        told = [{"from": words[m["role"]], "value": m["content"]} for m in conversation(turns)]
        made.append({"conversations": told, "domain": "code" if number % 2 else "prose"})
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    for seed, (name, (family, architecture)) in enumerate(MODELS.items()):
        save_chat_model(root / name, family, architecture, seed)
    (root / "corpus").mkdir()
    for split, start, count in (("train", 0, 12), ("validation", 100, 4), ("test", 200, 4)):
        lines = "".join(json.dumps(row) + "\n" for row in conversations(start, count))
        (root / "corpus" / f"{split}.jsonl").write_text(lines)
    return root


def settings(root: Path) -> dict[str, Any]:
    return {
        "target": root / "target",
        "sources": [str(root / name) for name in MODELS if name != "target"],
        "corpus": {"path": str(root / "corpus"), "domain": "domain", "format": "chat"},
        "chunk": {"block_size": 250, "part_bytes": 1500},
        "precompute": {"k": 8, "batch_tokens": 512},
        "train": {
            "methods": ["ct", "fusionx"],
            "optimizer": {"learning_rate": 0.001, "batch_size": 4, "epochs": 1},
            "run": {"validate_every": 4, "device": "cpu"},
        },
        "eval": {"bootstrap": 100, "threads": 1, "sources": True},
        "executor": {"kind": "inline"},
    }


@pytest.fixture(scope="module")
def fused(models: Path, tmp_path_factory: pytest.TempPathFactory) -> fusionx.RunResult:
    return fusionx.fuse(**settings(models), output=tmp_path_factory.mktemp("runs") / "chat")


def test_a_run_learns_from_answers_alone(fused: fusionx.RunResult, models: Path) -> None:
    layout = fused.layout
    chunks = list(read_shards(layout.chunks))
    assert {len(messages_of(row["text"])) for row in chunks} == {2, 4, 6}
    answers = {(row["doc_id"], row["chunk"]): messages_of(row["text"])[-1]["content"].encode() for row in chunks}
    for name, (family, _) in MODELS.items():
        encoder = load_chat_encoder(name, str(models / name))
        assert ENDS[family] == encoder.tokenizer.convert_ids_to_tokens(encoder.end_id)
        for row in read_shards(layout.logits(name), "train"):
            spelled = encoder.table.joined(row["input_ids"][1:].tolist())
            assert spelled.lstrip() == answers[row["doc_id"], row["chunk"]]
            assert row["ends"][0] == 0
            assert row["ends"][-1] == len(answers[row["doc_id"], row["chunk"]])
    assert [row["method"] for row in fused.table()] == ["target", "ct", "fusionx"]
    assert all(row["validation_bits_per_byte"] > 0 for row in fused.table())


def test_sources_and_their_shards_are_scored_on_the_same_answers(fused: fusionx.RunResult) -> None:
    """A model's bits per byte from running it, and those that its own shards keep."""
    layout = fused.layout
    scores = json.loads(Path(layout.evaluation("models", "target")).read_text())["domains"]
    for domain, found in scores.items():
        size = sum(
            len(messages_of(row["text"])[-1]["content"].encode())
            for row in read_shards(layout.chunks, "test")
            if row["domain"] == domain
        )
        assert found["bytes"] == size


def test_what_a_model_lacks_is_named_before_any_work(models: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(models / "two", tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    wrong = settings(models) | {"sources": [str(bare)]}
    with pytest.raises(fusionx.ConfigError, match="The model 'bare' has no chat template"):
        fusionx.fuse(**wrong, output=tmp_path / "out")
    assert not (tmp_path / "out" / "chunks").exists()

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "validation", "test"):
        row = {"messages": conversation(TURNS[:1], system="Be brief.")}
        (corpus / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    config = settings(models) | {
        "corpus": {"path": str(corpus), "format": "chat"},
        "name": "x",
        "output": str(tmp_path),
    }
    config["target"] = {"id": "target", "path": str(models / "target")}
    config["sources"] = [{"id": "turns", "path": str(models / "turns")}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with (
        fusionx.open_pipeline(tmp_path / "run.yaml") as pipeline,
        pytest.raises(fusionx.FusionXError, match="'turns' cannot write messages of the role 'system'"),
    ):
        pipeline.chunk()
    with fusionx.open_pipeline(tmp_path / "run.yaml", ["corpus.system=merge"]) as pipeline:
        pipeline.chunk()
    (row,) = read_shards(str(tmp_path / "chunks"), "train")
    assert messages_of(row["text"])[0] == {"role": "user", "content": f"Be brief.\n\n{TURNS[0][0]}"}
