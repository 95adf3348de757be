"""A tiny world: three random models of different architectures and tokenizers, a corpus of three domains, two tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from forked import ForkedCommand, forked_trainings
from object_store import Proxy, fresh_bucket, running_store

from fusionx.pipelines.training import launcher

ROOT = Path(__file__).resolve().parent.parent.parent

MODELS = {"target": ("llama", 320, True), "coder": ("gpt_neox", 300, False), "writer": ("gpt_neo", 400, False)}
TEXTS = {
    "code": "def f_{i}(x):\n    return x + {i}\n\nprint(f_{i}({i}))\n",
    "prose": "The {i}th fox jumps over the lazy dog, and café number {i} is open. ",
    "tables": "{i}\t{i}{i}\tname {i}\n",
}


@dataclass(frozen=True)
class Done:
    returncode: int
    stderr: str
    stdout: str = ""


@dataclass(frozen=True)
class World:
    """Inputs in `root`; every run writes to an output of its own."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "run.yaml"

    def command(self, output: Path, command: str, *sets: str) -> list[str]:
        overrides = [f"output={output}", *sets]
        options = [word for override in overrides for word in ("--set", override)]
        return [*command.split(), str(self.config), *options]

    def cli(self, output: Path, command: str, *sets: str) -> Done:
        """The command line in a process of its own."""
        process = ForkedCommand(*self.command(output, command, *sets), folder=ROOT)
        _, printed = process.communicate()
        return Done(process.wait(), printed)

    def here(self, output: Path, command: str, *sets: str) -> Done:
        """The same command line in this process."""
        from click.testing import CliRunner

        from fusionx.cli.main import main

        result = CliRunner().invoke(main, self.command(output, command, *sets))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stderr, result.stdout)

    def run(self, output: Path, command: str, *sets: str) -> str:
        done = self.here(output, command, *sets)
        assert done.returncode == 0, done.stderr
        return done.stderr


@contextmanager
def trainings_forked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "subprocess", forked_trainings(by_server=True))
        yield


@pytest.fixture(autouse=True, scope="module")
def _trainings_are_forked() -> Iterator[None]:
    """Those that commands in this process start."""
    with trainings_forked():
        yield


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """SHA-256 of every part and manifest below `folder`."""
    files = [path for pattern in patterns or ("part-*.parquet", "manifest.json") for path in folder.rglob(pattern)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


@pytest.fixture(scope="session")
def part_hashes() -> Any:
    return hashes


def documents(domain: str, start: int, count: int) -> list[dict[str, str]]:
    made = []
    for number in range(start, start + count):
        text = "".join(TEXTS[domain].format(i=number * 10 + line) for line in range(8))
        made.append({"text": text, "domain": domain})
    return made


def write_corpus(root: Path) -> None:
    """`tables` stands in validation and test only."""
    root.mkdir()
    for number, (split, count) in enumerate({"train": 14, "validation": 4, "test": 4}.items()):
        domains = [domain for domain in TEXTS if (split, domain) != ("train", "tables")]
        rows = [row for domain in domains for row in documents(domain, 100 * number, count)]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}.parquet")


def write_config(root: Path) -> None:
    sources = [{"id": name, "path": str(root / name)} for name in MODELS if name != "target"]
    config = {
        "name": "tiny",
        "output": "overridden",
        "target": {"id": "target", "path": str(root / "target")},
        "sources": sources,
        "corpus": {"path": str(root / "corpus"), "domain": "domain"},
        "chunk": {"block_size": 96, "part_bytes": 1500},
        "precompute": {"k": 8, "splits": ["train", "validation"], "batch_tokens": 512},
        "align": {"methods": ["walk", "mined"]},
        "train": {
            "methods": ["ct", "fusellm", "paper", "fusionx-network", "fusionx"],
            "optimizer": {"learning_rate": 0.001, "batch_size": 16, "epochs": 2},
            "run": {"validate_every": 4},
            "jobs": 2,
        },
        "eval": {
            "tasks": [str(root / "tasks")],
            "sources": True,
            "rivals": {"sibling": str(root / "target")},
            "max_new_tokens": 2,
            "bootstrap": 100,
            "threads": 1,
        },
        "executor": {"kind": "inline"},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> World:
    root = tmp_path_factory.mktemp("tiny-world")
    for number, (name, (architecture, size, bos)) in enumerate(MODELS.items()):
        make_model(root / name, architecture, size, seed=number, bos=bos)
    write_corpus(root / "corpus")
    (root / "tasks").mkdir()
    for task, target in (("yes", "True"), ("sums", "4")):
        examples = [{"input": f"{task} {i}", "target": target} for i in range(3)]
        (root / "tasks" / f"{task}.json").write_text(json.dumps({"examples": examples}))
    write_config(root)
    return World(root)


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run with the executor `inline`; tests copy it before they change it."""
    output = tmp_path_factory.mktemp("finished") / "out"
    with trainings_forked():  # a fixture of the session comes before those of a module
        done = world.here(output, "run")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def store() -> Iterator[Proxy]:
    with running_store() as proxy:
        yield proxy


@pytest.fixture
def bucket(store: Proxy) -> Iterator[str]:
    with fresh_bucket(store) as name:
        yield name


@pytest.fixture(scope="module")
def local_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data stages in a local folder."""
    output = tmp_path_factory.mktemp("local") / "out"
    for stage in ("chunk", "precompute", "align"):
        world.run(output, stage)
    return output
