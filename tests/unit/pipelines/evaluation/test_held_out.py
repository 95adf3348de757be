"""Alignment is judged on validation text, and what was trained on is told by the training text alone."""

from pathlib import Path
from typing import Any

import pytest

from fusionx.align.fidelity import held_out
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry
from fusionx.eval.config import EvalConfig
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation import evaluate_models
from fusionx.pipelines.evaluation.evaluate_models import EvaluationJob
from fusionx.pipelines.evaluation.reporting import trained_domains
from fusionx.pipelines.layout import Layout


def part(number: int, split: str, stats: dict[str, Any]) -> PartEntry:
    return PartEntry(f"part-{number:05d}.parquet", split, rows=1, tokens=1, bytes=1, sha256="0", stats=stats)


@pytest.mark.parametrize(
    ("splits", "judged", "count"),
    [
        (("train", "validation", "test", "validation"), "validation", 2 + 8),
        (("train", "train"), "train", 1 + 2),
        (("validation",), "validation", 1),
    ],
)
def test_alignment_is_judged_on_validation_where_there_is_some(
    splits: tuple[str, ...], judged: str, count: int
) -> None:
    parts = [part(number, split, {"status": {"code": {"exact": 2**number}}}) for number, split in enumerate(splits)]
    assert held_out(build_manifest("aligned", {}, {}, parts)) == (judged, {"status": {"code": {"exact": count}}})


def test_domains_of_validation_text_only_are_not_trained_on(tmp_path: Path) -> None:
    parts = [
        part(0, "train", {"domains": {"prose": 3, "code": 1}}),
        part(1, "validation", {"domains": {"prose": 1, "tables": 2}}),
        part(2, "train", {"domains": {"code": 2}}),
    ]
    layout = Layout(str(tmp_path))
    write_manifest(layout.tokens("target"), build_manifest("tokens", {}, {}, parts))
    target, source = ({"id": name, "path": f"{tmp_path}/{name}"} for name in ("target", "source"))
    fields = {
        "name": "x",
        "output": str(tmp_path),
        "target": target,
        "sources": [source],
        "corpus": {"path": "nowhere"},
    }
    config = FusionConfig.model_validate(fields)
    assert trained_domains(config, layout) == ["code", "prose"]


def test_how_many_models_are_left_is_said_after_each_that_had_to_be_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate_models, "evaluate", lambda item, *_: item.output != "kept")
    models = [EvaluationJob("folder", output) for output in ("a", "kept", "b")]
    assert evaluate_models.evaluate_each(models, [], EvalConfig()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[eval] 1 of 3 models", "[eval] 3 of 3 models"]
    assert lines[-1].endswith(" 0:00 left")
