"""`fusionx doctor`: findings of the machine, of a config, and what will not fit."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fusionx.cli.main import main
from fusionx.pipelines.config import ExecutorConfig
from fusionx.pipelines.model_description import describe_model
from fusionx.pipelines.preflight import doctor, machine
from fusionx.pipelines.preflight.finding import Finding
from fusionx.pipelines.preflight.machine import Memory, disk_finding, ray_finding, version_findings


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> Path:
    place = tmp_path / "run.yaml"
    place.write_text(yaml.safe_dump({name: value for name, value in raw.items() if name != "executor"}))
    return place


def examined(*arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and the findings by subject."""
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, {found["subject"]: found for found in map(json.loads, result.stdout.splitlines())}


def test_the_machine_alone_needs_no_config() -> None:
    code, found = examined()
    assert code == 0, found
    assert {"CPU", "memory", "packages"} <= set(found)
    assert "torch" in found["packages"]["said"]


def test_a_sound_config_has_no_problem(config: Path, models: Path) -> None:
    code, found = examined(config)
    assert code == 0, found
    assert {finding["level"] for finding in found.values()} <= {"ok", "warning"}
    size = describe_model(str(models / "target")).parameters
    assert f"{size:,} parameters" in found["target"]["said"]
    assert {"Ray", "training", "precompute", "disk", "config"} <= set(found)
    assert not (config.parent / "out").exists()


def test_every_problem_is_a_line_with_a_remedy_and_the_exit_code_is_1(config: Path) -> None:
    sets = ("precompute.k=1000", "eval.tasks=[/no/task]", f"sources.source.path={config.parent}/none")
    arguments = [word for one in sets for word in ("--set", one)]
    code, found = examined(config, *arguments)
    problems = {name: finding for name, finding in found.items() if finding["level"] == "problem"}
    assert code == 1
    assert {"precompute.k", "tasks", "path of model 'source'"} <= set(problems)
    assert all(finding["remedy"] for name, finding in problems.items() if name != "tasks")
    text = CliRunner().invoke(main, ["doctor", str(config), *arguments]).stdout
    assert "problem  precompute.k" in text
    assert "\n         remedy: lower precompute.k" in text


def test_set_without_a_config_is_bad_usage() -> None:
    assert CliRunner().invoke(main, ["doctor", "--set", "a=1"]).exit_code == 2


def fits(config: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, *sets: str) -> dict[str, str]:
    monkeypatch.setattr(doctor, "memory_here", lambda: memory)
    monkeypatch.setattr(doctor, "machine_findings", lambda memory: iter(()))
    _, found = examined(config, *(word for one in sets for word in ("--set", one)))
    return {name: found[name]["level"] for name in ("training", "precompute")}


def test_what_does_not_fit_is_a_problem(config: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = describe_model(str(models / "target")).train_bytes
    assert size is not None
    level = {share: fits(config, Memory(int(size * share), ()), monkeypatch)["training"] for share in (0.9, 1.1, 2.0)}
    assert level == {0.9: "problem", 1.1: "warning", 2.0: "ok"}
    assert fits(config, Memory(2 * size, ()), monkeypatch, "train.jobs=3")["training"] == "problem"
    assert fits(config, Memory(10**9, (size // 2,)), monkeypatch)["training"] == "problem"
    run = describe_model(str(models / "target")).run_bytes
    assert run is not None
    assert fits(config, Memory(3 * run, ()), monkeypatch, "precompute.workers=4")["precompute"] == "problem"
    halves = ("train.run.shards=fsdp", "train.run.devices=4")
    assert fits(config, Memory(10**9, (size // 2,) * 4), monkeypatch, *halves)["training"] == "ok"


def test_models_and_checkpoints_need_room_on_the_disk(tmp_path: Path) -> None:
    assert disk_finding(str(tmp_path / "not" / "yet"), 0).level == "ok"
    assert disk_finding(str(tmp_path), 1 << 60).level == "problem"
    assert disk_finding("s3://bucket/run", 1 << 60).level == "ok"


def test_ray_is_asked_where_a_config_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def level(**settings: Any) -> str:
        return ray_finding(ExecutorConfig(**settings)).level

    monkeypatch.setattr(machine.os, "environ", {"RAY_TMPDIR": str(tmp_path)})
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert [level(address=address), level(address=f"ray://{address}")] == ["ok", "ok"]
        assert level(address="auto") == "problem"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert level(address="auto") == "ok"
    assert level(address=address) == "problem"
    assert [level(kind="inline", address=address), level()] == ["ok", "ok"]


def test_versions_are_compared_with_what_the_package_needs_and_with_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.version
    changed = {"torch": "2.0.0", "click": "8.9.9"}
    monkeypatch.setattr(machine, "version", lambda name: changed.get(name) or real(name))
    found = {finding.subject: finding for finding in version_findings()}
    assert (found["torch"].level, "expected >=" in found["torch"].said) == ("problem", True)
    assert (found["click"].level, "tests run with" in found["click"].said) == ("warning", True)
    assert found["packages"].level == "ok"


def test_an_error_becomes_one_line() -> None:
    from fusionx.contract.errors import ConfigError

    error = ConfigError("It is\nwrong.", field="a.b", found=3, expected="at most 2", remedy="lower it")
    found = Finding.of("a.b", error)
    assert found == Finding("problem", "a.b", "It is wrong (found 3; expected at most 2)", "lower it")
    assert replace(found, remedy="").line().count("\n") == 0
