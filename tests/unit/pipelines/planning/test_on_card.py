"""What trainings take on a card: where a rate comes from, what is exchanged, and what several cards reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fusionx.pipelines.planning.on_card as plans
from fusionx.contract.errors import ConfigError
from fusionx.pipelines.planning.on_card import card_rate, efficiency, exchanged_bytes, plan_trainings
from fusionx.train.config import TrainConfig

BILLION = 10**9


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"bench": "gpu", "metric": "mfu", "card": "NVIDIA H200", "versions": {}, "date": "2026-11-28"}
    rows = [
        {**row, "case": "train 135M, packed", "value": 0.9, "date": "2026-11-27"},
        {**row, "case": "train 135M, packed", "value": 0.2},
        {**row, "case": "train 1B, packed", "value": 0.5},
        {**row, "case": "train 1B, packed", "value": 0.1, "card": "NVIDIA A800-SXM4-80GB"},
        {**row, "case": "train 7B", "metric": "fusionx_ratio_to_bare", "value": 0.9},
    ]
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setattr(plans, "_RESULTS", tmp_path / "gpu.jsonl")


@pytest.mark.parametrize(("parameters", "share"), [(100_000_000, 0.2), (800_000_000, 0.5), (7 * BILLION, 0.5)])
def test_the_nearest_size_that_was_measured_counts(parameters: int, share: float, measured: None) -> None:
    rate = card_rate("H200", "train", parameters)
    assert rate.flops_per_s == pytest.approx(share * 989e12)
    assert rate.source.startswith("measured on NVIDIA H200")


@pytest.mark.parametrize(("card", "bench"), [("H100", "train"), ("A100-SXM4-80GB", "train"), ("H200", "precompute")])
def test_what_was_not_measured_is_called_assumed(card: str, bench: str, measured: None) -> None:
    assert "was not measured" in card_rate(card, bench, BILLION).source  # type: ignore[arg-type]


def test_without_results_all_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_RESULTS", tmp_path / "none.jsonl")
    assert card_rate("A100", "train", BILLION).source.startswith("assumed")
    with pytest.raises(ConfigError, match="peak"):
        card_rate("Abacus 9", "train", BILLION)


def test_exchange() -> None:
    """A ring of n sends each byte (n - 1) / n times for a gather or a scatter, twice that for an all-reduce."""
    assert exchanged_bytes(BILLION, 1, "none") == 0
    assert exchanged_bytes(BILLION, 8, "none") == pytest.approx(2 * 7 / 8 * 4e9)
    assert exchanged_bytes(BILLION, 8, "fsdp", micro_batches=1) == pytest.approx(7 / 8 * (2 * 2e9 + 4e9))
    assert exchanged_bytes(BILLION, 8, "fsdp", micro_batches=3) == pytest.approx(7 / 8 * (6 * 2e9 + 4e9))


def test_efficiency_falls_with_what_the_backward_pass_does_not_hide() -> None:
    assert efficiency(3.0, 2e9, 1e9) == 1
    assert efficiency(3.0, 5e9, 1e9) == pytest.approx(3 / 6)


def test_the_trainings_of_a_run(measured: None) -> None:
    config = TrainConfig.model_validate(
        {
            "methods": ["ct", "fusionx"],
            "seeds": [0, 1],
            "tune": [1e-5, 3e-5],
            "optimizer": {"batch_size": 128, "pack": 2048, "epochs": 2},
        }
    )
    made = plan_trainings(config, 10**9, 10**6, BILLION, "NVIDIA H200", 8)
    assert made.trainings == 2 * 2 + 2
    assert made.tokens == 6 * 2 * 10**9
    assert made.steps == round(6 * 2 * 10**9 / (128 * 2048))
    assert made.step_seconds == pytest.approx(128 * 2048 * 6e9 / (0.5 * 989e12) / 8)
    assert made.tokens_per_s == pytest.approx(8 * 0.5 * 989e12 / 6e9 * made.efficiency)
    assert made.hours == pytest.approx(6 * 2e9 / made.tokens_per_s / 3600)
    assert "measured on NVIDIA H200, train 1B, packed" in "\n".join(made.lines())
    own = config.model_copy(update={"overrides": {"fusionx": {"epochs": 6}, "ct": {"learning_rate": 1e-5}}})
    named = plan_trainings(own, 10**9, 10**6, BILLION, "NVIDIA H200", 8)
    assert (named.trainings, named.tokens) == (4, (2 * 2 + 2 * 6) * 10**9)
