"""Whatever lies in the folder that a user happens to be in, no command imports or runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FUSIONX = Path(sys.executable).with_name("fusionx")
OWN = ("fusionx", "contract", "precompute", "align", "train", "eval", "pipelines", "benchmarks", "cli")
OTHERS = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "numba", "ray", "datasets", "pydantic"),
    *("yaml", "click", "matplotlib", "jinja2", "regex", "cloudpickle", "psutil", "sitecustomize", "usercustomize"),
    *("json", "random", "types", "typing", "logging", "multiprocessing", "socket", "queue", "signal", "tempfile"),
)
HOSTILE = """
import os
with open({marker!r}, "a") as marker:
    print(__name__, os.getpid(), file=marker)
raise SystemExit("a file of the user's was imported")
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder full of files that would be imported by name, each of which tells of it."""
    code = HOSTILE.format(marker=str(tmp_path / "imported"))
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in (*OWN, *OTHERS):
        (folder / f"{name}.py").write_text(code)
    for name in ("plugins", "tasks"):  # and folders that are packages
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    return folder


def environment() -> dict[str, str]:
    """A user's: nothing in it says where to import from."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def check(folder: Path, *arguments: str, code: int = 0) -> str:
    """Runs `fusionx` there as a user does; the command's name."""
    done = subprocess.run(
        [str(FUSIONX), *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    marker = folder.parent / "imported"
    assert not marker.exists(), f"{arguments[0]}: {marker.read_text()}\n{done.stderr}"
    assert done.returncode == code, done.stderr
    return arguments[0]


def test_the_folder_would_be_imported_from_by_a_plain_python(hostile: Path) -> None:
    command = [sys.executable, "-c", "import train"]
    done = subprocess.run(command, cwd=hostile, env=environment(), capture_output=True, check=False)
    assert done.returncode != 0
    assert (hostile.parent / "imported").read_text().startswith("train ")


@pytest.mark.slow
def test_no_command_imports_from_the_folder_it_is_started_in(world: Any, hostile: Path) -> None:
    """torchrun's processes and the loaders' among what is started; Ray's workers are in test_cluster.py."""
    small = ("output=out", "train.methods=[ct]", "align.methods=[walk]", "train.optimizer.epochs=1")
    several = ("train.run.devices=2", "train.run.loader_workers=1", "train.jobs=1", "eval.rivals={}", "eval.tasks=[]")
    run = [str(world.config), *(word for value in (*small, *several) for word in ("--set", value))]
    first = ("--target", str(world.root / "target"), "--source", str(world.root / "coder"), "--corpus", "nowhere")
    checked = {
        check(hostile, "run", *run),
        check(hostile, "status", *run),
        check(hostile, "plan", *run, "--documents", "5", "--seconds", "1"),
        check(hostile, "explain", *run, "--source", "coder", "a text"),
        check(hostile, "report", "interference", "out/eval/models/target.json", "out/eval/ct"),
        check(hostile, "study", "tau", "nowhere.yaml", code=2),
        check(hostile, "bench", "nothing", code=2),
        check(hostile, "inspect", "model", str(world.root / "target")),
        check(hostile, "inspect", "shard", *run),
        check(hostile, "push", *run, "me/mine", "--dry-run"),
        check(hostile, "doctor", *run),
        check(hostile, "init", "first.yaml", *first, "--yes"),
        check(hostile, "examples"),
        check(hostile, "schema"),
        check(hostile, "completion", "zsh"),
        # The stages are in `run`.
        *(check(hostile, name, "nowhere.yaml", code=2) for name in ("chunk", "precompute", "align", "train", "eval")),
        *(check(hostile, name, "nowhere.yaml", code=2) for name in ("generate", "demo-inputs", "real-inputs")),
    }
    told = subprocess.check_output([FUSIONX, "--help"], text=True)
    assert checked == {*re.findall(r"^  ([a-z][a-z-]*)  ", told, re.MULTILINE)}, "a new command is to be checked here"
