"""`fusionx generate`: the sources write more text, each where it knows best, and a run over all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fusionx.contract.config import load_config
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.shards.manifest import build_manifest, read_manifest, write_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.pipelines import generated_corpus
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.generated_corpus import best_sources, write_corpus
from fusionx.pipelines.layout import Layout

KNOWN = {
    "coder": {"code": 1.0, "prose": 3.0},
    "writer": {"code": 2.0, "prose": 1.0},
    "target": {"code": 3.0, "prose": 3.0},
}
"""Nats per byte; the target is best in everything that is not named."""
SETS = (
    "generate.times=3",
    "generate.new_tokens=24",
    "generate.prompt_tokens=2",
)  # random models soon write what is no text


def say_who_knows(layout: Layout, known: dict[str, dict[str, float]]) -> None:
    """Writes these figures into the aligned manifests of a finished run."""
    for name in ("target", "coder", "writer"):
        folder = layout.aligned("target", "walk", name)
        manifest = read_manifest(folder, "aligned", "align")
        for part in manifest.parts:
            for domain, sums in part.stats.get("fidelity", {}).items():
                sums["own_nll"] = known[name].get(domain, 0.5 if name == "target" else 9.0) * sums["own_bytes"]
        write_manifest(folder, build_manifest("aligned", manifest.config, manifest.identity, manifest.parts))


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name in ("chunks", "logits", "aligned"):
        shutil.copytree(finished / name, folder / name)
    say_who_knows(Layout(str(folder)), KNOWN)
    return folder


def corpus_of(output: Path, split: str) -> list[dict[str, str]]:
    files = sorted((output / "generated" / "corpus" / split).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_sources_go_on_from_the_corpus_where_they_know_best(world: Any, output: Path) -> None:
    assert "coder" in world.run(output, "generate", *SETS)
    chunks = read_manifest(str(output / "chunks"), "chunks", "chunk")
    texts: dict[str, list[str]] = {}
    for part in chunks.parts_of("train"):
        table, _ = read_part(str(output / "chunks" / part.name), "chunks", ["domain", "text"])
        for row in table.to_pylist():
            texts.setdefault(row["domain"], []).append(row["text"])
    rows = corpus_of(output, "train")
    assert {(row["origin"], row["domain"]) for row in rows if row["origin"] != "corpus"} == {
        ("coder", "code"),
        ("writer", "prose"),
    }
    for name, domain in (("coder", "code"), ("writer", "prose")):
        made = [row["text"] for row in rows if row["origin"] == name]
        assert 0 < len(made) <= 3 * len(texts[domain])
        assert all(any(text[:2] in known for known in texts[domain]) for text in made)
    written = [row["text"] for row in rows]
    assert len(set(written)) == len(written), "nothing stands there twice"


def test_the_corpus_keeps_what_it_had_and_its_held_out_text(world: Any, output: Path) -> None:
    world.run(output, "generate", *SETS)
    for split in ("train", "validation", "test"):
        own = pq.read_table(world.root / "corpus" / f"{split}.parquet").to_pylist()
        kept = [{"text": row["text"], "domain": row["domain"]} for row in corpus_of(output, split)][: len(own)]
        assert kept == own
        assert split == "train" or len(corpus_of(output, split)) == len(own)


def test_it_goes_on_where_it_was_and_writes_the_same_again(world: Any, output: Path, part_hashes: Any) -> None:
    world.run(output, "generate", *SETS)
    first = part_hashes(output / "generated")
    gone = next((output / "generated" / "coder").glob("part-*.parquet"))
    gone.unlink()
    assert "1 parts made, 7 kept" in world.run(output, "generate", *SETS)
    assert part_hashes(output / "generated") == first


def test_a_run_over_the_larger_corpus(world: Any, output: Path, tmp_path: Path) -> None:
    world.run(output, "generate", *SETS)
    larger = tmp_path / "larger"
    how = f"corpus={{path: {output}/generated/corpus, domain: domain}}"
    for stage in ("chunk", "precompute", "align", "train"):
        world.run(larger, stage, how, "train.methods=[fusionx]", "train.optimizer.epochs=1")
    before, after = (read_manifest(str(of / "chunks"), "chunks", "chunk") for of in (output, larger))
    assert sum(part.rows for part in after.parts_of("train")) > sum(part.rows for part in before.parts_of("train"))
    assert (larger / "train" / "fusionx" / "lr-0.001" / "seed-0" / "result.json").is_file()


def test_who_has_nothing_to_say_is_refused(world: Any, output: Path) -> None:
    config, layout = load_config(FusionConfig, world.config, [f"output={output}"]), Layout(str(output))
    assert best_sources(config, layout) == {"coder": ("code",), "writer": ("prose",)}
    say_who_knows(layout, {"target": {}, "coder": {}, "writer": {}})
    with pytest.raises(DataError, match="No source knows a domain better"):
        best_sources(config, layout)
    chat = config.model_copy(update={"corpus": config.corpus.model_copy(update={"format": "chat"})})
    with pytest.raises(ConfigError, match="not from conversations"):
        best_sources(chat, layout)
    with pytest.raises(ConfigError, match="cannot be written to an object store"):
        best_sources(config, Layout("memory://run"))


def test_a_call_that_fails_half_way_leaves_the_corpus_that_was_there(
    world: Any, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(output, "generate", *SETS)
    before = corpus_of(output, "train")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generated_corpus, "write_bytes", full)
    with pytest.raises(DataError, match="cannot be written"):
        write_corpus(load_config(FusionConfig, world.config, [f"output={output}"]), Layout(str(output)), [])
    assert corpus_of(output, "train") == before
