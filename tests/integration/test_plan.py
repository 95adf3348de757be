"""`fusionx plan`: what it says of the tiny world is what the road then makes; `fusionx bench` says what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionx.benchmarks import BENCHMARKS
from fusionx.benchmarks.measuring import run
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.cli.main import main
from fusionx.contract.shards.manifest import read_manifest


def test_a_sample_of_everything_is_the_run_itself(world: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    planned = json.loads(world.here(output, "plan --json --documents 100000").stdout)
    assert not output.exists(), "a plan writes nothing"
    for stage in ("chunk", "precompute", "align"):
        world.run(output, stage)
    assert planned["exact"]
    assert planned["documents"] == planned["sample_documents"]
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    chunks = read_manifest(str(output / "chunks"), "chunks", "chunk")
    assert stages["chunk"]["chunks"] == chunks.totals["rows"]
    for name in ("target", "coder"):
        made = read_manifest(str(output / "logits" / name), "logits", "precompute")
        found = stages[f"precompute/{name}"]
        assert (found["chunks"], found["tokens"]) == (made.totals["rows"], made.totals["tokens"])
        assert found["bytes"] == pytest.approx(made.totals["bytes"], rel=0.05)
        assert found["hours"] * 3600 * found["workers"] == pytest.approx(found["tokens"] / found["tokens_per_s"])
    assert {"align/tokens", "align/walk/target", "align/mined/coder"} <= stages.keys()
    assert planned["total"]["bytes"] == sum(stage["bytes"] for stage in planned["stages"])


def test_a_small_sample_is_scaled_to_the_corpus(world: Any, tmp_path: Path) -> None:
    whole = json.loads(world.here(tmp_path, "plan --json --documents 100000").stdout)
    part = json.loads(world.here(tmp_path, "plan --json --documents 12").stdout)
    assert part["sample_documents"] < whole["sample_documents"]
    assert part["text_bytes"] == whole["text_bytes"]
    tokens = {stage["stage"]: stage["tokens"] for stage in whole["stages"]}
    for stage in part["stages"]:
        assert stage["tokens"] == pytest.approx(tokens[stage["stage"]], rel=0.35)


def test_the_table_can_be_read(world: Any, tmp_path: Path) -> None:
    lines = world.here(tmp_path, "plan --documents 12").stdout.splitlines()
    assert "documents" in lines[0]
    assert lines[-1].startswith("total")
    assert any(line.startswith("precompute/coder") for line in lines)


def test_a_missing_corpus_is_bad_usage(world: Any, tmp_path: Path) -> None:
    done = world.here(tmp_path, "plan", f"corpus.path={tmp_path}/nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_bench_prints_one_object_per_line_and_keeps_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure("codec", "k10", "bytes_per_token", 20.0, "bytes", "plain Arrow", 0.2, n=3)
    monkeypatch.setattr(run, "import_module", lambda _: type("Bench", (), {"figures": staticmethod(lambda: [figure])}))
    done = CliRunner().invoke(main, ["bench", "codec", "--json", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == figure.to_json()
    machine, kept = map(json.loads, (tmp_path / "codec.jsonl").read_text().splitlines())
    assert kept == figure.to_json()
    assert "torch" in machine["machine"]


def test_every_benchmark_is_a_module_with_figures() -> None:
    from importlib import import_module

    for name in BENCHMARKS:
        assert callable(import_module(f"fusionx.benchmarks.{name}").figures)
