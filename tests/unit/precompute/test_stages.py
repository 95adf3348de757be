"""The chunk and precompute stages on tiny random models of five architectures."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.shards.codec import read_distributions, read_token_nll
from fusionx.contract.shards.manifest import build_manifest, read_manifest, write_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage
from fusionx.precompute.logits.source_model import load_model

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
    skipped_doc_ids = {"empty": [3], "lone surrogate": [5]}
    assert manifest.stats == {
        "documents": 7,
        "skipped": {"empty": 1, "lone surrogate": 1},
        "skipped_doc_ids": skipped_doc_ids,
    }
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
def test_parts_hold_the_same_whatever_the_batch(world: Path, architecture: str) -> None:
    entries = run(logits_stage(world, architecture))
    again = run(logits_stage(world, architecture, "again"))
    assert entries == again, "two runs differ in their bytes"
    single = run(logits_stage(world, architecture, "single", batch_tokens=1))
    for entry, alone in zip(entries, single, strict=True):
        found, provenance = read_part(str(world / "logits" / architecture / entry.name), "logits")
        other, _ = read_part(str(world / "single" / architecture / alone.name), "logits")
        assert provenance.config["k"] == K
        left, right = read_distributions(found), read_distributions(other)
        assert np.allclose(left.padded(K)[1], right.padded(K)[1], atol=2e-2)
        assert np.allclose(read_token_nll(found, left), read_token_nll(other, right), atol=1e-2)
        assert entry.stats["nll"] == pytest.approx(alone.stats["nll"], rel=1e-5)


def fake_stage(root: Path, output: str, delay: float = 0.0, **options: Any) -> LogitsStage:
    model = ModelConfig(id="fake", path=str(root / "llama"), kind="fake", delay=delay)
    return replace(logits_stage(root, "llama", output, **options), model=model)


@pytest.mark.parametrize("kind", ["llama", "fake"])
def test_units_made_at_once_are_those_made_one_by_one(world: Path, kind: str) -> None:
    def stage(output: str) -> LogitsStage:
        options: dict[str, Any] = {"threads": 2, "batch_tokens": 100}
        return fake_stage(world, output, **options) if kind == "fake" else logits_stage(world, kind, output, **options)

    alone, together = stage(f"alone-{kind}"), stage(f"together-{kind}")
    assert together.resources.concurrency == 3
    worker = together.worker()
    torch.set_num_threads(1)  # as a thread that another stage has set up
    with ThreadPoolExecutor(3) as threads:
        entries = list(threads.map(worker, [*together.units()] * 4))
    assert entries == run(alone) * 4


def test_a_fake_source_needs_only_a_tokenizer_and_its_delay_is_no_content(world: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "llama" / file, tmp_path)
    model = ModelConfig(id="fake", path=str(tmp_path), kind="fake")
    stage = replace(logits_stage(world, "llama"), model=model, output=str(tmp_path / "out"))
    stage.check(10_000)
    entries = run(stage)
    slow = replace(stage, model=model.model_copy(update={"delay": 0.02}), output=str(tmp_path / "slow"))
    started = time.monotonic()
    assert run(slow) == entries
    assert time.monotonic() - started > 0.02 * len(entries)
    unit = next(iter(stage.units()))
    assert slow.differences(stage.provenance(unit), unit) == []
    assert stage.provenance(unit).identity["weights"] == "fake"


def test_mass_and_rounding_decide_what_is_kept_and_are_content(world: Path) -> None:
    plain = run(logits_stage(world, "llama", "plain"))
    stage = logits_stage(world, "llama", "lossy", mass=0.1, mantissa_bits=4)
    for entry, whole in zip(run(stage), plain, strict=True):
        table, _ = read_part(str(world / "lossy" / "llama" / entry.name), "logits")
        full, _ = read_part(str(world / "plain" / "llama" / entry.name), "logits")
        kept, all_of_it = read_distributions(table), read_distributions(full)
        assert len(kept.ids) < len(all_of_it.ids)
        assert 0 < entry.stats["rounding_kl"] < 1e-2 * entry.tokens
        assert "rounding_kl" not in whole.stats
    unit = next(iter(stage.units()))
    found = logits_stage(world, "llama").differences(stage.provenance(unit), unit)
    assert [line.split(":")[0] for line in found] == ["config.mantissa_bits", "config.mass"]


@pytest.mark.parametrize(
    ("model", "k", "block", "said"),
    [
        ("llama", 301, 48, "k is larger than a vocabulary"),
        ("llama", 5, 129, "context is shorter than the block"),
        ("gpt_bigcode", 5, 129, "context is shorter than the block"),
        ("nobody", 5, 48, "(?s)no such folder.*nobody|no such model folder.*nobody"),
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
    weights["lm_head.weight"] = weights["lm_head.weight"].sign() * 3e38  # finite, unlike what they give
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stage = replace(logits_stage(world, "llama"), model=ModelConfig(id="sick", path=str(folder)), output=str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)'sick' gives no valid distribution.*remedy"):
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
