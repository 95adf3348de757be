"""The files around the code: one version everywhere, CI that calls `make test`, a container of the pinned packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_the_one_that_the_project_states() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_notice_names_every_text_and_model_of_the_real_demo() -> None:
    from fusionx.pipelines.real.models import MODELS
    from fusionx.pipelines.real.text import DOMAINS

    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for model in MODELS.values():
        assert model.title.split(",")[0] in notice
    for domain in ("english", "french", "chinese", "python", "javascript", "structured", "mathematics"):
        for source in DOMAINS[domain]:
            licence = re.split(r"[;, (]", source.licence)[0]
            assert licence in notice, (domain, source.licence)


def test_ci_runs_what_a_person_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == ["make test"]


def test_hooks_have_the_pinned_ruff() -> None:
    """They call the environment's own, which `make setup` installs with constraints.txt."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert all(hook["entry"].startswith(".venv/bin/ruff ") for hook in repo["hooks"])
    assert re.search(r"^ruff==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()


def test_the_container_is_of_the_pinned_packages_and_a_python_that_will_do() -> None:
    text = (ROOT / "Containerfile").read_text()
    assert "--constraint /tmp/constraints.txt" in text
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    images = re.findall(r"^FROM \S+python:(\d+)\.(\d+)", text, re.MULTILINE)
    assert images
    assert all(tuple(map(int, image)) >= lowest for image in images)


def test_every_package_that_an_installation_brings_is_pinned_with_hashes() -> None:
    """And in the versions of constraints.txt, which lacks those that only other systems and GPUs need."""
    text = (ROOT / "requirements.lock").read_text()
    pinned = {name(each): version for each, version in re.findall(r"^([\w.-]+)==(\S+)", constraints(), re.MULTILINE)}
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    assert {name(re.split(r"[\[><=]", each)[0]) for each in PROJECT["dependencies"]} <= locked.keys()
    assert {each: locked[each] for each in locked.keys() & pinned.keys()} == {
        each: pinned[each] for each in locked.keys() & pinned.keys()
    }
    for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
        package = entry.split("==")[0]
        assert package in pinned or re.match(r"cuda-|nvidia-|triton|.*sys_platform", entry.splitlines()[0]), package
    assert "://" not in text, "an address of some machine's index"


def constraints() -> str:
    return (ROOT / "constraints.txt").read_text()


def name(package: str) -> str:
    """As package indexes write it."""
    return re.sub(r"[-_.]+", "-", package).lower()
