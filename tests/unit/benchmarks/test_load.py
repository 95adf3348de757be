"""What `fusionx bench load` says of stages that stay as they are, and of one that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionx.benchmarks.load import stages
from fusionx.benchmarks.load.stages import figures
from fusionx.benchmarks.measuring.watch import Watch
from fusionx.contract.errors import DataError

LINES = [f"The {number}th fox jumps over the lazy dog, and café number {number} is open. " for number in range(40)]
STAGES = ["chunk", "precompute target", "precompute coder", "tokens", "align coder", "train", "evaluate"]


def test_every_stage_is_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "_MODELS", ("target", "coder"))
    monkeypatch.setattr(stages, "_BLOCK", 96)
    for seed, name in enumerate(("target", "coder")):
        make_model(tmp_path / "models" / name, "llama", 300 + 20 * seed, seed=seed)
    (tmp_path / "corpus").mkdir()
    table = pa.table({"text": ["".join(LINES)] * 4, "domain": ["prose"] * 4})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / "corpus" / f"{split}.parquet")
    found = {(figure.case, figure.metric): figure for figure in figures(20, str(tmp_path))}
    assert found["all", "text"].value == pytest.approx(20 * 4 * len("".join(LINES).encode()) / 1e6)
    for stage in STAGES:
        assert found[stage, "memory"].n >= 20, "parts, or every tenth step"
        for metric in ("memory", "open files", "time"):
            compared = found[stage, f"{metric}, last of 10 shares"]
            assert compared.ratio is not None
            assert compared.ratio > 0
    assert "complete" in capsys.readouterr().err


def test_what_grows_is_seen() -> None:
    watch = Watch()
    watch.memory, watch.handles = [100.0 + part for part in range(20)], [7] * 18 + [8, 9]
    watch.seconds = [0.5 * part**2 for part in range(20)]
    found = {figure.metric: figure for figure in watch.figures("load", "chunk", 10, 2.0)}
    assert found["memory"].value == 119
    assert found["memory, last of 10 shares"].ratio == pytest.approx(119 / 101)
    assert found["open files, last of 10 shares"].ratio == pytest.approx(9 / 7)
    assert found["time, last of 10 shares"].ratio == pytest.approx((361 - 324) / (1 - 0))
    assert found["time"].value == pytest.approx(0.5 * 361 / 1.9)


def test_without_the_demos_models_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="demo-inputs"):
        list(figures(2, str(tmp_path)))
