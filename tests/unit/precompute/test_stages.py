"""The chunk and precompute stages on tiny random models of five architectures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.encoder import load_encoder
from contract.errors import ConfigError, DataError
from contract.manifest import build_manifest, read_manifest, write_manifest
from contract.shard import Ragged, read_part
from precompute.chunk_stage import ChunkStage
from precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from precompute.logits_stage import LogitsStage, batches_by_length
from precompute.model import load_model

K, BLOCK = 5, 48
DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog. " * 40,
    "naïve café, 你好世界 " * 12,
    "x",
    "",
    "a\0b\0" + "no space" * 30,
    "lone \ud800 surrogate",
    "def f():\n    return 1\n\n" * 9,
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_model: Any, architectures: tuple[str, ...]) -> Path:
    root = tmp_path_factory.mktemp("world")
    for number, architecture in enumerate(architectures):
        make_model(root / architecture, architecture, 300 + 20 * number, seed=number, bos=number == 0, padding=number)
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    (root / "corpus.jsonl").write_text("\n".join(lines))
    stage = chunk_stage(root, ["llama", "gpt_neo"])
    run(stage)
    return root


def chunk_stage(root: Path, models: list[str], **options: Any) -> ChunkStage:
    corpus = CorpusConfig(path=str(root / "corpus.jsonl"))
    chosen = [ModelConfig(id=name, path=str(root / name)) for name in models]
    config = ChunkConfig(block_size=BLOCK, part_bytes=1000, **options)
    return ChunkStage(corpus, config, chosen, str(root / "chunks"))


def run(stage: Any) -> list[Any]:
    """All parts and the manifest, without a runner."""
    units = list(stage.units())
    worker = stage.worker()
    entries = [worker(unit) for unit in units]
    provenance = stage.provenance(units[0])
    write_manifest(stage.output, build_manifest(stage.kind, provenance.config, provenance.identity, entries))
    return entries


def logits_stage(root: Path, model: str, output: str = "logits", **options: Any) -> LogitsStage:
    config = PrecomputeConfig(**{"k": K, "batch_tokens": 256, **options})
    source = ModelConfig(id=model, path=str(root / model))
    return LogitsStage(source, config, str(root / "chunks"), str(root / output / model))


def test_chunks_join_to_their_documents_and_bad_documents_are_counted(world: Path) -> None:
    manifest = read_manifest(str(world / "chunks"), "chunks", "chunk")
    assert manifest.stats == {"documents": 7, "skipped": {"empty": 1, "lone surrogate": 1}}
    assert len(manifest.parts) >= 2
    joined: dict[int, str] = {}
    encoders = [load_encoder(str(world / name)) for name in ("llama", "gpt_neo")]
    for part in manifest.parts:
        table, _ = read_part(str(world / "chunks" / part.name), "chunks")
        for row in table.to_pylist():
            joined[row["doc_id"]] = joined.get(row["doc_id"], "") + row["text"]
            assert all(len(encoder.encode([row["text"]])[0].ids) <= BLOCK for encoder in encoders)
    assert joined == {i: text for i, text in enumerate(DOCUMENTS) if i not in (3, 5)}


def test_chunks_stay_valid_when_a_source_joins_or_leaves_but_not_when_its_tokenizer_changed(world: Path) -> None:
    unit = next(iter(chunk_stage(world, ["llama"]).units()))
    _, found = read_part(str(world / "chunks" / "part-00000.parquet"), "chunks")
    for models in (["llama"], ["llama", "gpt_neo", "gpt_neox"], ["gpt_neox"]):
        assert chunk_stage(world, models).differences(found, unit) == []
    changed = replace(found, identity={**found.identity, "tokenizer.llama": "other"})
    assert "tokenizer.llama" in chunk_stage(world, ["llama"]).differences(changed, unit)[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt_neo", "gpt_bigcode", "starcoder2"])
def test_parts_hold_what_the_model_says_whatever_the_batch(world: Path, architecture: str) -> None:
    entries = run(logits_stage(world, architecture))
    again = run(logits_stage(world, architecture, "again"))
    assert entries == again, "two runs differ in their bytes"
    single = run(logits_stage(world, architecture, "single", batch_tokens=1))
    encoder = load_encoder(str(world / architecture))
    model = load_model(ModelConfig(id="m", path=str(world / architecture)), torch.device("cpu"))
    for entry, alone in zip(entries, single, strict=True):
        chunks, _ = read_part(str(world / "chunks" / entry.name), "chunks")
        table, provenance = read_part(str(world / "logits" / architecture / entry.name), "logits")
        other, _ = read_part(str(world / "single" / architecture / alone.name), "logits")
        assert provenance.config["k"] == K
        logprobs, nll = (Ragged.from_column(table.column(name)) for name in ("top_logprobs", "token_nll"))
        others = [Ragged.from_column(other.column(name)) for name in ("top_logprobs", "token_nll")]
        assert np.allclose(logprobs.values, others[0].values, atol=2e-2)
        assert np.allclose(nll.values, others[1].values, atol=1e-3)
        ids = Ragged.from_column(table.column("top_ids"))
        assert ids.values.max() < encoder.vocab_size, "a padded place of the head came out"
        for row, text in enumerate(chunks.column("text").to_pylist()):
            tokens = torch.from_numpy(encoder.encode([text])[0].ids.astype(np.int64))[None]
            with torch.inference_mode():
                exact = torch.log_softmax(model(input_ids=tokens).logits[0].double(), dim=-1)
            naive = -exact[:-1].gather(1, tokens[0, 1:, None])[:, 0]
            assert np.allclose(nll.row(row), naive.numpy(), atol=1e-3)
            top = exact[:, : encoder.vocab_size].topk(K).values.numpy()
            assert np.allclose(logprobs.row(row).reshape(-1, K).astype(np.float64), top, atol=2e-2)


def test_batches_hold_every_row_once_within_their_budget() -> None:
    lengths = [5, 0, 9, 1, 5, 30, 2]
    batches = list(batches_by_length(lengths, 20))
    assert sorted(row for batch in batches for row in batch) == [0, 2, 3, 4, 5, 6]
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 20 for batch in batches)


@pytest.mark.parametrize(
    ("model", "k", "block", "said"),
    [
        ("llama", 301, 48, "k is larger than a vocabulary"),
        ("llama", 5, 129, "context is shorter than the block"),
        ("gpt_bigcode", 5, 129, "context is shorter than the block"),
        ("nobody", 5, 48, "'nobody' cannot be loaded"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_are_loaded(
    world: Path, model: str, k: int, block: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        logits_stage(world, model, k=k).check(block)


def test_a_model_without_safetensors_is_refused(world: Path, tmp_path: Path, make_model: Any) -> None:
    folder = make_model(tmp_path / "pickled", "llama", 300)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(ModelConfig(id="pickled", path=str(folder)), torch.device("cpu"))


def test_nan_in_a_sources_logits_names_the_source(world: Path, tmp_path: Path, make_model: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "sick", "llama", 300)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stage = replace(logits_stage(world, "llama"), model=ModelConfig(id="sick", path=str(folder)), output=str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)'sick' gives no valid distribution.*remedy"):
        stage.worker()(next(iter(stage.units())))


def test_a_source_that_joined_later_with_longer_chunks_is_refused(world: Path, tmp_path: Path, make_model: Any) -> None:
    folder = make_model(tmp_path / "bytes", "llama", 257)  # no merges at all: one token per byte
    stage = replace(logits_stage(world, "llama"), model=ModelConfig(id="late", path=str(folder)), output=str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)tokenizer of 'late'.*chunk --overwrite"):
        stage.worker()(next(iter(stage.units())))


def test_chunks_that_changed_under_their_manifest_are_refused(world: Path, tmp_path: Path) -> None:
    stage = logits_stage(world, "llama")
    unit = replace(next(iter(stage.units())), hashes={"chunks": "0" * 64})
    with pytest.raises(DataError, match="SHA-256"):
        stage.worker()(unit)


def test_other_settings_and_other_weights_are_differences(world: Path) -> None:
    stage = logits_stage(world, "llama")
    unit = next(iter(stage.units()))
    found = stage.provenance(unit)
    assert stage.differences(found, unit) == []
    assert logits_stage(world, "llama", workers=9, device="cpu").differences(found, unit) == []
    assert "config.k" in logits_stage(world, "llama", k=6).differences(found, unit)[0]
    other = logits_stage(world, "gpt_neo").differences(found, unit)
    assert {line.split(":")[0] for line in other} == {"identity.fingerprint", "identity.source", "identity.weights"}
