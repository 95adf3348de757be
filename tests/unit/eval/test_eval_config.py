"""EvalConfig: strictness, defaults that depend on other fields, and what its measurement digest covers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fusionx.contract.config import parse_config
from fusionx.contract.errors import ConfigError
from fusionx.eval.config import EvalConfig


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"task_template": "Q:"}, "{input}"),
        ({"few_shot": 2, "prompt_prefix_folder": "x"}, "few_shot"),
        ({"confidence": 1.5}, "confidence"),
        ({"device": "abacus"}, "device"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_contradictions_are_config_errors(raw: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config(EvalConfig, raw, "test")


def test_stop_is_a_blank_line_after_worked_prompts() -> None:
    assert EvalConfig().stop_text == "\n"
    assert EvalConfig(prompt_prefix_folder="x").stop_text == "\n\n"
    assert EvalConfig(prompt_prefix_folder="x", stop=";").stop_text == ";"


def test_judging_and_operational_fields_do_not_make_evaluations_stale() -> None:
    base = EvalConfig().measurement_digest()
    assert EvalConfig(bootstrap=500, confidence=0.9, threads=2, device="cpu").measurement_digest() == base
    assert EvalConfig(dtype="float32").measurement_digest() != base
    assert EvalConfig(few_shot=1).measurement_digest() != base


def test_config_and_report_import_without_heavy_packages() -> None:
    code = (
        "import sys, fusionx.eval.config, fusionx.eval.evaluate, fusionx.eval.report.pages; "
        "print(sorted({'torch', 'transformers', 'matplotlib', 'jinja2', 'ray', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_code_benchmark_makes_no_finished_work_stale() -> None:
    code = EvalConfig.model_validate({"benchmarks": ["me"], "code": {"samples": 5, "run": True}})
    assert code.measurement_digest() == EvalConfig().measurement_digest()
    assert "code" not in EvalConfig(benchmarks=["me"]).content()
    assert EvalConfig.model_validate({"code": {"run": True}}).code.content() == EvalConfig().code.content()
    for field, wrong in {"languages": ["cobol"], "samples": 0, "top_p": 0, "libraries": {"cobol": "a"}}.items():
        with pytest.raises(ConfigError, match=f"code.{field}"):
            parse_config(EvalConfig, {"code": {field: wrong}}, "test")
