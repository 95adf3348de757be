"""What `fusionx status` counts: parts, and under `eval` models, benchmark tasks, ensembles, and the models beside them;
and what alignment costs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from click.testing import CliRunner
from part_builder import table_of

import fusionx.pipelines.evaluation.evaluate_models
import fusionx.pipelines.status
from fusionx.cli.main import main
from fusionx.contract.errors import DataError
from fusionx.contract.files.sealed import write_sealed
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, write_part
from fusionx.contract.stage import Stage, Unit
from fusionx.eval.results.benchmark_scores import BenchmarkScores, ModelIdentity, TaskScore
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.tasks.harness_index import SUITES
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import open_pipeline
from fusionx.pipelines.status import HARNESS_TASKS, StageStatus, status
from fusionx.train.config import TrainJob


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FusionConfig:
    """One training of two steps each; the target is on the hub, from where nothing may be fetched."""
    config = FusionConfig.model_validate(
        {
            "name": "x",
            "output": str(tmp_path),
            "target": {"id": "target", "path": "nobody/target"},
            "sources": [{"id": "source", "path": "nobody/source"}],
            "corpus": {"path": "nowhere"},
            "eval": {"rivals": {"sibling": "elsewhere"}, "benchmarks": ["cs"]},
            "executor": {"kind": "inline"},
        }
    )
    monkeypatch.setattr(fusionx.pipelines.status, "planned_jobs", lambda config, layout: [job(config, layout)])
    monkeypatch.setattr(
        fusionx.pipelines.evaluation.evaluate_models,
        "local_folder",
        lambda model: pytest.fail("a model was looked for"),
    )
    return config


def job(config: FusionConfig, layout: Layout) -> TrainJob:
    method = config.train.methods[0]
    return TrainJob(
        method_name=method, method=config.train.method(method), seed=0, optimizer=config.train.optimizer,
        run=config.train.run, target="target", target_path="t", target_weights="w", tokens="tokens",
        aligned={model.id: model.id for model in config.models}, inputs={"tokens": "t"},
        output=layout.training(method, 1e-3, 0),
    )  # fmt: skip


def aligned(config: FusionConfig, layout: Layout, *splits: str) -> None:
    parts = [
        PartEntry(f"part-{number:05d}.parquet", split, rows=1, tokens=1, bytes=1, sha256="0", stats={})
        for number, split in enumerate(splits)
    ]
    folder = layout.aligned("target", config.align.methods[0], "target")
    write_manifest(folder, build_manifest("aligned", {}, {}, parts))


def write(path: str, weights: str) -> None:
    fields: dict[str, Any] = dict.fromkeys(("model", "config_digest", "data_digest"), "x")
    fields |= {"weights_digest": weights, "domains": {}, "overall": {}, "documents": {}}
    write_sealed(path, vars(Evaluation(**fields)))


def eval_status(config: FusionConfig) -> StageStatus:
    with open_pipeline(config, read_only=True) as pipeline:
        return list(status(pipeline))[-1]


def files(config: FusionConfig, layout: Layout, split: str) -> tuple[list[str], list[str]]:
    """Of the models, and of the ensembles and the models beside them where `split` is not `eval.split`."""
    method = config.train.methods[0]
    models = [("models", "target"), (method, "seed-0", "best"), (method, "seed-0", "last")]
    beside = [(split, "models", "target"), (split, "rivals", "sibling"), (split, method, "seed-0", "best")]
    ensembles = ("ensembles", f"{split}-{config.align.methods[0]}")
    return [layout.evaluation(*name) for name in models], [layout.evaluation(*name) for name in (ensembles, *beside)]


def test_everything_that_eval_writes_is_counted(config: FusionConfig) -> None:
    layout = Layout(config.output)
    aligned(config, layout, "train", "validation")
    found = eval_status(config)
    assert (found.name, found.done, found.missing) == ("eval", 0, 3 + 3 * 6 + 1 + 3)
    models, others = files(config, layout, "validation")
    for number, path in enumerate([*models, *others]):
        write(path, f"w{number}")
        assert eval_status(config).done == number + 1
    scores = BenchmarkScores()
    for number in range(3):
        scores.begin(f"m{number}", ModelIdentity(f"w{number}", "", ""))
        scores.tasks[f"m{number}"] = {name: score("cs") for name in SUITES["cs"].tasks[: 6 - number]}
    scores.save(layout.benchmarks)
    found = eval_status(config)
    assert (found.done, found.missing) == (7 + 6 + 5 + 4, 3)
    assert found.note == "models: 3 of 3, benchmark tasks: 15 of 18, ensembles: 1 of 1, models beside them: 3 of 3"
    assert not found.complete
    without = config.model_copy(update={"eval": config.eval.model_copy(update={"benchmarks": []})})
    assert eval_status(without).complete


def score(benchmark: str) -> TaskScore:
    return TaskScore(benchmark, "acc", 1, 1.0, None, 0, {}, "0", "p", [1.0])


def test_scores_of_other_weights_do_not_count(config: FusionConfig) -> None:
    layout = Layout(config.output)
    aligned(config, layout, "validation")
    write(files(config, layout, "validation")[0][0], "new")
    scores = BenchmarkScores()
    scores.begin("target", ModelIdentity("old", "", ""))
    scores.tasks["target"] = {name: score("cs") for name in SUITES["cs"].tasks}
    scores.save(layout.benchmarks)
    assert "benchmark tasks: 0 of 18" in eval_status(config).note


@pytest.mark.parametrize(("languages", "planned"), [([], 2), (["py", "js", "go"], 3)])
def test_languages_that_no_config_names_are_those_that_some_model_was_scored_in(
    languages: list[str], planned: int, config: FusionConfig
) -> None:
    layout = Layout(config.output)
    changes = {"benchmarks": ["me"], "code": config.eval.code.model_copy(update={"languages": languages})}
    config = config.model_copy(update={"eval": config.eval.model_copy(update=changes)})
    assert f"benchmark tasks: 0 of {3 * max(1, len(languages))}" in eval_status(config).note
    scores = BenchmarkScores()
    for number, names in enumerate([["humaneval-py", "humaneval-js"], ["humaneval-py"]]):
        write(files(config, layout, "validation")[0][number], f"w{number}")
        scores.begin(f"m{number}", ModelIdentity(f"w{number}", "", ""))
        scores.tasks[f"m{number}"] = {name: score("me") for name in names}
    scores.save(layout.benchmarks)
    assert f"benchmark tasks: 3 of {3 * planned}" in eval_status(config).note


def test_models_beside_the_ensembles_on_the_same_split_are_counted_once(config: FusionConfig) -> None:
    layout = Layout(config.output)
    aligned(config, layout, "validation", "test")
    assert config.eval.split == "test"
    found = eval_status(config)
    assert found.note == (
        "models: 0 of 3, benchmark tasks: 0 of 18, ensembles: 0 of 1, models beside them: 0 of 1, "
        "models on validation text: 0 of 2"
    )


def test_what_cannot_be_counted_is_missing_and_says_why(config: FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def untuned(config: FusionConfig, layout: Layout) -> Sequence[TrainJob]:
        raise DataError("A training has no result.", file="there")

    layout = Layout(config.output)
    found = eval_status(config)
    assert found.missing == 3 + 18 + 1 + 2
    assert "manifest" in found.why
    aligned(config, layout, "train")
    assert eval_status(config).why.startswith("Rivals are compared on a held-out split")
    monkeypatch.setattr(fusionx.pipelines.status, "planned_jobs", untuned)
    write(files(config, layout, "validation")[0][0], "w")
    found = eval_status(config)
    assert found.why == "A training has no result. there"
    assert (found.done, found.complete) == (1, False)


def judged(bits: float, own: float, aligned: int = 100) -> dict[str, Any]:
    """Statistics of a part with two domains of 100 bytes each; the second one takes half the bits."""
    nll = {"a": 100 * math.log(2) * bits, "b": 50 * math.log(2) * bits}
    fidelity = {
        domain: {
            "gold_positions": 50, "gold_bytes": 100, "gold_nll": nats, "filled_nll": nats, "gold_hits": 20,
            "blind_positions": 50, "blind_hits": 15,
            "own_bytes": 100, "own_nll": nats * own / bits,
        }
        for domain, nats in nll.items()
    }  # fmt: skip
    return {"status": {"a": {"exact_boundary": aligned, "not_aligned": 100 - aligned}}, "fidelity": fidelity}


def alignment_status(
    config: FusionConfig, monkeypatch: pytest.MonkeyPatch, by_model: dict[str, dict[str, Any]]
) -> list[StageStatus]:
    """`fusionx status` where every aligned part is there, with these statistics on the validation split."""
    monkeypatch.setattr(fusionx.pipelines.status, "_stage", lambda stage, verify: StageStatus(stage.name, done=2))
    method = config.align.methods[0]
    for model, stats in by_model.items():
        parts = [
            PartEntry(f"part-{number:05d}.parquet", split, rows=1, tokens=1, bytes=1, sha256="0", stats=of)
            for number, (split, of) in enumerate([("train", {"status": stats["status"]}), ("validation", stats)])
        ]
        folder = Layout(config.output).aligned("target", method, model)
        write_manifest(folder, build_manifest("aligned", {}, {}, parts))
    with open_pipeline(config, read_only=True) as pipeline:
        return list(status(pipeline))


def test_the_alignment_is_a_block_before_the_trainings(config: FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = alignment_status(config, monkeypatch, {"target": judged(2.4, 2.4), "source": judged(1.204, 1.2)})
    blocks = [stage.block for stage in found]
    assert list(dict.fromkeys(blocks)) == ["inputs", "alignment", "models"]
    assert blocks == sorted(blocks, key=["inputs", "alignment", "models"].index)
    of_target, of_source = (stage for stage in found if stage.block == "alignment")
    assert of_target.note == "validation: own 1.800, aligned 1.800 (+0.000) bits per byte; right 40.0 % (30.0 % blind)"
    assert of_source.note == (
        "validation: own 0.900, aligned 0.903 (+0.003) bits per byte; right 40.0 % (30.0 % blind); "
        "better than the target in 2 of 2 domains"
    )
    assert not of_target.warning + of_source.warning


def test_a_source_that_knows_less_is_warned_of(config: FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = alignment_status(config, monkeypatch, {"target": judged(2.4, 2.4), "source": judged(3, 2.5, aligned=88)})
    line = next(stage for stage in found if stage.name.endswith("/source") and stage.block == "alignment").line()
    assert "better than the target in 0 of 2 domains; 12.0 % of positions not aligned)" in line
    assert line.endswith("  WARNING: knows less than the target and cannot teach")


def test_nothing_is_compared_with_a_target_that_is_not_aligned(
    config: FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = alignment_status(config, monkeypatch, {"source": judged(3, 2.5)})
    of_target, of_source = (stage for stage in found if stage.block == "alignment")
    assert of_target.note == ""
    assert of_source.note == "validation: own 1.875, aligned 2.250 (+0.375) bits per byte; right 40.0 % (30.0 % blind)"
    assert not of_source.warning


@dataclass
class FewParts:
    """A stage of `TOTAL` parts of logits under one config, as status sees a stage."""

    output: str
    k: int = 8
    name = "precompute/source"
    kind = "logits"

    def units(self) -> list[Unit]:
        return [Unit(number, "train", {}, {}) for number in range(TOTAL)]

    def provenance(self, unit: Unit) -> Provenance:
        return Provenance("logits", unit.split, {"k": self.k}, {})

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def write(self, numbers: Iterable[int] = range(100)) -> FewParts:
        """These of its parts; the manifest once all are there."""
        units = [unit for unit in self.units() if unit.index in numbers]
        entries = [
            write_part(f"{self.output}/{unit.part}", table_of("logits"), self.provenance(unit), 1) for unit in units
        ]
        if len(entries) == TOTAL:
            write_manifest(self.output, build_manifest("logits", {"k": self.k}, {}, entries))
        return self

    def status(self, verify: bool = False) -> StageStatus:
        return fusionx.pipelines.status._stage(cast("Stage", self), verify)


TOTAL = 5


def test_a_changed_byte_is_found_when_all_are_verified(tmp_path: Path) -> None:
    stage = FewParts(str(tmp_path)).write()
    assert (stage.status().line(), stage.status(verify=True).done) == (stage.status(verify=True).line(), TOTAL)
    part = tmp_path / "part-00003.parquet"
    data = bytearray(part.read_bytes())
    data[20] ^= 1
    part.write_bytes(data)
    assert (stage.status().done, stage.status().damaged) == (TOTAL, 0)
    found = stage.status(verify=True)
    assert (found.done, found.damaged) == (TOTAL - 1, 1)
    assert found.why == "part-00003.parquet: A part is damaged: it was cut short or its bytes changed."


def test_many_parts_are_counted_by_name_and_size_and_some_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusionx.pipelines.status, "FOOTERS_READ", 2)
    stage = FewParts(str(tmp_path)).write([0, 1, 2, 4])
    FewParts(str(tmp_path), k=4).write([1])
    found = stage.status()
    assert (found.done, found.missing, found.stale) == (4, 1, 0)
    assert found.note == "what one in 3 was made from was looked up; --verify reads them all"
    found = stage.status(verify=True)
    assert (found.done, found.missing, found.stale, found.note) == (3, 1, 1, "")
    assert found.why == "part-00001.parquet: config.k: found 4, expected 8"
    FewParts(str(tmp_path), k=4).write([0])
    assert stage.status().stale == 1, "the first one is always opened"
    stage.write()
    part = tmp_path / "part-00001.parquet"
    size = part.stat().st_size
    part.write_bytes(part.read_bytes()[:-7])
    found = stage.status()
    assert (found.done, found.damaged) == (TOTAL - 1, 1), "not opened, and shorter than its manifest says"
    assert found.why == f"part-00001.parquet: {size - 7:,} bytes, its manifest says {size:,}"


def test_nothing_is_there(tmp_path: Path) -> None:
    assert FewParts(str(tmp_path / "nowhere")).status().missing == TOTAL


def test_programs_read_the_status_and_people_watch_it(
    config: FusionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([[StageStatus("chunk", done=1, missing=1, why="no part")], [StageStatus("chunk", done=2)]] * 2)
    slept: list[float] = []
    monkeypatch.setattr(fusionx.pipelines.status, "status", lambda pipeline, verify: next(found))
    monkeypatch.setattr(time, "sleep", slept.append)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    result = CliRunner().invoke(main, ["status", str(file), "--watch"])
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.output.splitlines() if line[:2] != "--"] == ["incomplete", "complete"]
    assert len(slept) == 1
    result = CliRunner().invoke(main, ["status", str(file), "--json"])
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["complete"] is False
    (stage,) = told["stages"]
    assert (stage["name"], stage["missing"], stage["why"], stage["complete"]) == ("chunk", 1, "no part", False)


@pytest.mark.parametrize("benchmark", list(HARNESS_TASKS))
def test_a_benchmark_has_as_many_tasks_as_the_harness_says(benchmark: str) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    suite = SUITES[benchmark]
    folders = [Path(tasks.__file__).parent / folder for folder in suite.folders]
    manager = tasks.TaskManager(include_path=folders, include_defaults=False)
    assert HARNESS_TASKS[benchmark] == len(suite.tasks or manager.all_subtasks)
    assert set(HARNESS_TASKS) == set(SUITES)
