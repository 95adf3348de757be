"""Which model to take, in words: never more than the figures show, and the target or a source where that is better."""

from __future__ import annotations

from typing import Any

import pytest

from fusionx.eval.report.recommendation import HEADING, advice, with_reason

CARD = "---\ntags: [x]\n---\n\n# small after ct\n\nTrained.\n\n## Models\n\n| a |\n"


def results(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": "method",
        "name": "fusionx",
        "seed": 1,
        "bits_per_byte": 1.0,
        "vs_target": {"mean": -0.05, "interval": [-0.06, -0.04]},
        "best_source": {"name": "coder", "bits_per_byte": 1.3, "vs_model": {"mean": 0.3, "interval": [0.25, 0.35]}},
        "runner_up": {"kind": "method", "name": "ct", "bits_per_byte": 1.02},
        "all": {"methods": {"fusionx": {"per_seed": {"0": 1.01, "1": 1.0}}}},
        "claim": "corpus",
        "confidence": 0.95,
        "folder": "runs/x/model",
    }
    return {"recommendation": found | changes}


def test_a_gain_is_told_with_its_interval_and_the_next_best() -> None:
    model, source = (sentence.replace("\u00a0", " ") for sentence in advice(results()))
    assert model == (
        "Take the model of Fusion-X, seed 1, runs/x/model: on validation text of the corpus's domains it has 1.0000 "
        "bits per byte, −5.0 % against the original target (95 % interval over documents −6.0 % to −4.0 %); the next "
        "best method, Continual training, has 1.0200."
    )
    assert source.startswith("The best source alone, coder, has 1.3000 bits per byte there, +30.0 % against it")


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({"vs_target": {"mean": -0.01, "interval": [-0.03, 0.01]}}, "so no gain is shown", "better still"),
        ({"vs_target": {"mean": -0.01, "interval": None}}, "too few documents for an interval", "no gain"),
        ({"runner_up": {"kind": "target", "name": "small", "bits_per_byte": 1.1}}, "Take the model", "next best"),
        ({"claim": "all"}, "on validation text it has", "corpus"),
        (
            {"kind": "target", "name": "small", "seed": None, "vs_target": None},
            "Take the original target, unchanged, runs/x/model: on validation text of the corpus's domains no training",
            "Take the model",
        ),
        (
            {"best_source": {"name": "coder", "bits_per_byte": 0.9, "vs_model": {"mean": -0.1, "interval": None}}},
            "the source coder alone is better still: 0.9000 bits per byte",
            "best source alone",
        ),
        ({"best_source": None}, "they were not run over it", "coder"),
    ],
)
def test_what_the_figures_do_not_show_is_not_said(changes: dict[str, Any], said: str, unsaid: str) -> None:
    text = " ".join(advice(results(**changes)))
    assert said in text
    assert unsaid not in text


def test_a_card_has_the_reason_once_and_keeps_the_rest() -> None:
    first = with_reason(CARD, results())
    assert first.index("Trained.") < first.index(HEADING) < first.index("## Models")
    again = with_reason(first, results(best_source=None))
    assert again.count(HEADING) == 1
    assert "coder" not in again
    assert with_reason(again, results()) == first
    assert with_reason("# small, unchanged\n", results()).count(HEADING) == 1
    assert "runs/x" not in first, "no local path"
    assert advice({"recommendation": None}) == []
