"""`fusionx plan`: what it says of the tiny world is what the road then makes; `fusionx bench` says what it knows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionx.benchmarks import BENCHMARKS
from fusionx.benchmarks.measuring import run
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.cli.main import main
from fusionx.contract.config import load_config
from fusionx.contract.shards.manifest import read_manifest
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.planning import measure
from fusionx.pipelines.planning.measure import make_plan
from fusionx.pipelines.preflight.doctor import Need


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
        assert made.totals["bytes"] <= found["bytes"] <= 1.1 * made.totals["bytes"], "smaller parts have more footers"
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
    rows = [line.split()[0] for line in lines[3:] if line and not line.startswith(("*", "memory:"))]
    assert rows[:2] == ["stage", "chunk"]
    assert {"precompute/coder", "align/walk/coder", "train/ct", "train/fusionx", "eval"} <= set(rows)
    assert rows[-1] == "total"


def test_trainings_and_evaluations_are_planned_too(world: Any, tmp_path: Path) -> None:
    stages = {stage["stage"]: stage for stage in json.loads(world.here(tmp_path, "plan --json").stdout)["stages"]}
    config = load_config(FusionConfig, world.config, [f"output={tmp_path}"])
    tokens = stages["align/tokens"]["tokens_of"]
    for name in config.train.methods:
        trained = stages[f"train/{name}"]
        assert trained["scaled_from"] == ""
        assert trained["tokens"] == len(config.train.seeds) * round(config.train.optimizer.epochs * tokens["train"])
        assert trained["tokens_per_s"] > 0
        assert trained["memory"] > 0
    assert stages["eval"]["tokens"] > 0
    assert stages["eval"]["hours"] > 0


def test_a_source_too_slow_for_the_time_is_scaled_by_its_size(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(FusionConfig, world.config, [f"output={tmp_path}"])
    whole = {stage.stage: stage for stage in make_plan(config, 100, 60).stages}
    described = measure.described_models(config)
    large = described["coder"].parameters * 1000
    larger = described | {"coder": replace(described["coder"], parameters=large)}
    monkeypatch.setattr(measure, "described_models", lambda _: larger)
    monkeypatch.setattr(Need, "of", classmethod(lambda *_: Need(0, {}, 0)))
    made = {stage.stage: stage for stage in make_plan(config, 100, 2).stages}
    scaled = made["precompute/coder"]
    assert "by size from" in scaled.scaled_from
    assert scaled.tokens == whole["precompute/coder"].tokens, "tokens are counted, not guessed"
    name = scaled.scaled_from.split()[-1]
    assert scaled.tokens_per_s == pytest.approx(
        made[f"precompute/{name}"].tokens_per_s * described[name].parameters / large
    )
    assert "without coder" in made["train/fusionx"].scaled_from, "stepped over the candidates that there are"


def test_a_dry_run_names_every_step_and_makes_nothing(world: Any, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    printed = world.here(output, "run --dry-run")
    assert printed.returncode == 0, printed.stderr
    assert not output.exists()
    lines = {line.split()[0]: line for line in printed.stdout.splitlines()}
    aligned = [f"align/{method}/{name}" for method in ("walk", "mined") for name in ("target", "coder", "writer")]
    candidates = [f"precompute/{name}" for name in ("target", "coder", "writer")]
    assert [*lines] == ["chunk", *candidates, "align/tokens", *aligned, "train", "eval"]
    assert re.search(r" [1-9]\d* to make +fusionx chunk ", lines["chunk"])
    assert "what the steps before it give" in lines["precompute/coder"]
    assert lines["align/mined/coder"].endswith(f"fusionx align {world.config} --set output={output} --source coder")
    methods = load_config(FusionConfig, world.config, []).train.methods
    assert f" {len(methods)} to make" in lines["train"], "known without the data"
    done = world.here(finished, "run --dry-run").stdout
    assert done.count("nothing, ") == len(lines), done
    wrong = world.here(output, "run --dry-run", "precompute.k=400")
    assert (wrong.returncode, "k is larger than a vocabulary" in wrong.stderr) == (2, True)


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
