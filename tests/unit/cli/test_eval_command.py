"""The command `eval`: generated programs run only where the user says so, and it says so before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fusionx.eval.code.languages as languages_module
from fusionx.cli.main import main


@pytest.fixture(autouse=True)
def folder_without_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the checkout, where the demo's models and tasks lie as soon as somebody has run it."""
    monkeypatch.chdir(tmp_path)


def run_eval(root: Path, *options: str) -> Result:
    config = str(root / "configs" / "demo.yaml")
    settings = ["--set", "output=out", "--set", "eval.tasks=[]", "--benchmarks", "me"]
    return CliRunner().invoke(main, ["eval", config, *settings, *options])


def test_generated_code_runs_only_with_the_flag(root: Path) -> None:
    refused = run_eval(root)
    assert refused.exit_code == 2
    assert "runs programs that the models write" in refused.output
    assert "--run-generated-code" in refused.output


@pytest.mark.usefixtures("sandbox")
def test_a_missing_toolchain_is_told_before_anything_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages_module.shutil, "which", lambda name: None)
    missing = run_eval(root, "--run-generated-code", "--set", "eval.code.languages=[rs]")
    assert missing.exit_code == 2
    assert "no rustc on the PATH" in missing.output
    # With the toolchain and the problems there the command goes on, to what this empty folder lacks.
    problem = {"name": "one", "prompt": "def f():\n", "tests": "assert f()", "stop_tokens": []}
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "humaneval-py.jsonl").write_text(json.dumps(problem))
    here = ("--set", f"eval.harness.data={tmp_path}", "--set", "eval.code.languages=[py]")
    allowed = run_eval(root, "--run-generated-code", *here)
    assert allowed.exit_code not in (0, 2)
    assert "out/chunks/manifest.json" in allowed.output
