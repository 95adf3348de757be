"""From the checkout to a fused model in an environment that held nothing, by the lines of Containerfile and README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINES = [f"The {number}th fox jumps over the lazy dog, and café number {number} is open. " * 2 for number in range(240)]


@dataclass(frozen=True)
class Environment:
    """One that `python -m venv` has just made; `folder` is a copy of the files that git knows."""

    folder: Path
    python: Path

    def run(self, line: str) -> str:
        """A line of a shell, as one types it with the environment activated; what it prints."""
        left_out = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE")
        variables = {name: value for name, value in os.environ.items() if name not in left_out}
        variables["PIP_NO_COMPILE"] = "0"  # means: compiled is what is imported, which is a minute less
        variables["PATH"] = f"{self.python.parent}{os.pathsep}{variables['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", line], cwd=self.folder, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def container_steps(root: Path) -> Iterator[str]:
    """The RUN lines of Containerfile, with `root` for the image's /; packages may come from pip's cache."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    for line in re.findall(r"^RUN (.+)$", text, re.MULTILINE):
        yield re.sub(r"--mount=\S+|--no-cache-dir", "", line).replace(" /", f" {root}/")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and its pinned requirements, and nothing else: no extra, no other package of this environment."""
    root = tmp_path_factory.mktemp("image")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / "src" / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-m", "venv", root / "env"], check=True)
    made = Environment(root / "src", root / "env" / "bin" / "python")
    (pin,) = re.findall(r"^click==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    asked = [made.python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", root / "tmp", pin]
    if subprocess.run(asked, check=False).returncode != 0:
        pytest.skip("no package index can be reached from here")
    shutil.copy(ROOT / "constraints.txt", root / "tmp")
    steps = list(container_steps(root))
    assert [step.split()[:2] for step in steps] == [["pip", "wheel"], ["pip", "install"]]
    for step in steps:
        made.run(step)
    return made


@pytest.mark.slow
def test_the_readme_leads_to_a_fused_model(installed: Environment, make_model: Any) -> None:
    """Its first lines, word for word, with a folder of text and two models where it says that they lie."""
    at_home = installed.run("cd / && python -P -c 'import fusionx; print(fusionx.__file__)'")
    assert installed.python.parent.parent in Path(at_home.strip()).parents
    there = set(re.findall(r"^(\S+)==", installed.run("pip list --format freeze"), re.MULTILINE))
    assert not there & {"peft", "accelerate", "pytest", "sentencepiece"}, "extras"
    user = installed.folder
    make_model(user / "models" / "mine", "llama", 320, bos=True)
    make_model(user / "models" / "other", "gpt_neox", 300, seed=1)
    (user / "texts").mkdir()
    (user / "texts" / "notes.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    shell, python, *_ = re.findall(r"^```(bash|python)\n(.*?)^```", section("Use it"), re.MULTILINE | re.DOTALL)
    assert (shell[0], python[0]) == ("bash", "python")
    printed = installed.run(shell[1])
    assert "problem " not in printed
    assert "Take the model" in printed or "Keep the original target" in printed
    installed.run(f"python - <<'END'\n{python[1]}END")


@pytest.mark.slow
def test_whoever_has_no_checkout_gets_its_configs(installed: Environment, tmp_path: Path) -> None:
    told = installed.run(f"cd {tmp_path} && fusionx examples && fusionx examples elsewhere")
    listed = re.findall(r"^written  (\S+)$", told, re.MULTILINE)
    shipped = [*(ROOT / "configs").rglob("*.*"), *(ROOT / "pipelines" / "cluster").iterdir()]
    assert sorted(listed) == sorted(2 * [path.relative_to(ROOT).as_posix() for path in shipped])
    assert all((tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in listed)
    (tmp_path / "configs" / "demo.yaml").write_text("mine")
    assert "kept     configs/demo.yaml" in installed.run(f"cd {tmp_path} && fusionx examples")
    assert (tmp_path / "configs" / "demo.yaml").read_text() == "mine"
    assert "Python" in installed.run("fusionx doctor"), "the pinned versions are at hand"


def section(title: str) -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
