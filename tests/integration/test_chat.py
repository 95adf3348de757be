"""A run over conversations: three models with three chat templates, from corpus to report, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
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


def test_stored_are_the_answers_positions_as_a_plain_forward_pass_has_them(
    fused: fusionx.RunResult, models: Path
) -> None:
    """Every answer by itself, rendered by transformers, against parts in which a conversation's answers ran as one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    layout = fused.layout
    texts = {(row["doc_id"], row["chunk"]): row["text"] for row in read_shards(layout.chunks, "train")}
    for name in MODELS:
        tokenizer = AutoTokenizer.from_pretrained(models / name)
        model = AutoModelForCausalLM.from_pretrained(models / name).eval()
        rows = list(read_shards(layout.logits(name), "train"))
        assert {row["chunk"] for row in rows} == {0, 1, 2}
        for row in rows:
            messages = messages_of(texts[row["doc_id"], row["chunk"]])
            ids = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
            stored = row["input_ids"].tolist()
            first = max(at for at in range(len(ids)) if ids[at : at + len(stored)] == stored)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first : first + len(stored)]
            expected = logits.double().log_softmax(-1)
            found = torch.from_numpy(row["logprobs"]).double()
            torch.testing.assert_close(found, expected.topk(8).values, rtol=2**-11, atol=1e-4)
            nll = -expected[:-1].gather(1, torch.tensor(stored[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.from_numpy(row["token_nll"][:-1]).double(), nll, rtol=2**-11, atol=1e-4)


def test_a_step_has_the_gradient_of_a_dense_mask(fused: fusionx.RunResult, models: Path) -> None:
    """Conversations as transformers renders them whole, and labels wherever an offset is in an answer or its end."""
    from transformers import AutoModelForCausalLM

    from fusionx.train.data.collate import collate_blocks
    from fusionx.train.data.shard_stream import ShardSet
    from fusionx.train.model.target import Target, TextInputs

    layout = fused.layout
    chat = load_chat_encoder("target", str(models / "target"))
    aligned = {name: layout.aligned("target", "walk", name) for name in sorted(MODELS)}
    shards = ShardSet(layout.tokens("target"), aligned, "train", end_id=chat.end_id)
    order = shards.order(seed=0)
    assert order.blocks_per_epoch == 12, "a conversation is one row, whatever its answers"
    blocks = [[shards.sample(*place) for place in order.block(index)] for index in range(12)]
    assert {len(block) for block in blocks} == {1, 2, 3}
    batch = collate_blocks(blocks, 0)
    assert batch.candidates is not None
    model = AutoModelForCausalLM.from_pretrained(models / "target")
    scales = (torch.tensor(1.0), torch.tensor(0.0))
    losses = Target(model)(TextInputs(batch.input_ids, None), batch.positions, batch.labels, 64, scales)
    losses.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    texts = {(row["doc_id"], row["chunk"]): row["text"] for row in read_shards(layout.chunks, "train")}
    total = 0.0
    for block in blocks:
        messages = messages_of(texts[block[-1].key])
        rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = chat.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        starts = [rendered.index(f"assistant\n{answer}<|im_end|>") + len("assistant\n") for answer in answers]
        spans = [
            (start, start + len(answer) + len("<|im_end|>")) for start, answer in zip(starts, answers, strict=True)
        ]
        taught = [any(a < end and start < b for a, b in spans) for start, end in encoded["offset_mapping"]]
        ids = torch.tensor([encoded["input_ids"]])
        labels = torch.where(torch.tensor([taught]), ids, -100)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
        loss.backward()
        total += float(loss.detach())
    assert float(losses.lm) == pytest.approx(total, rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)
    said = batch.candidates.aligned[batch.labels != chat.end_id]
    assert said.float().mean() > 0.9, "and at nearly all of an answer's positions every candidate is heard"
    packed = shards.order(seed=0, pack=250)
    assert packed.blocks_per_epoch < 12
    rows = sorted(place for index in range(packed.blocks_per_epoch) for place in packed.block(index))
    assert rows == sorted(place for index in range(12) for place in order.block(index))
    together = collate_blocks([[shards.sample(*place) for place in packed.block(0)]], 0, document_mask=True)
    assert together.position_ids is not None
    assert int((together.position_ids == 0).sum()) == len({key[0] for key in together.keys})
