"""The problems of MultiPL-E (Cassano et al. 2023) on HumanEval (Chen et al. 2021): one task per programming language.

How a model answers them is `eval.code.sampling`'s, how its programs are scored `eval.code.scoring`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DataError
from fusionx.contract.extras import import_extra
from fusionx.eval.code.languages import Toolchain
from fusionx.eval.config import CodeConfig, EvalConfig
from fusionx.eval.tasks.harness_tasks import bad_data, no_items, split_files

HUB = "nuprl/MultiPL-E"
PYTHON_HUB = "openai/openai_humaneval"
"""MultiPL-E translates from Python; in Python the problems are HumanEval's own."""

PYTHON_STOP = ["\ndef", "\n#", "\nif", "\nclass"]
"""Where MultiPL-E ends an answer in Python."""

CODE_VERSION = "1"
"""Raised whenever the same samples would get another score."""

FIELDS = ("name", "prompt", "tests", "stop_tokens")


@dataclass(frozen=True)
class Problem:
    """A program is `prompt`, the model's answer up to the first of `stop_tokens`, a new line, and `tests`."""

    name: str
    prompt: str
    tests: str
    stop_tokens: list[str]

    def program(self, answer: str) -> str:
        """What is run to score an answer."""
        return f"{self.prompt}{answer}\n{self.tests}"


@dataclass(frozen=True)
class CodeTask:
    """One language's problems, ready to be answered; the fields common to all benchmarks mean what they mean there.

    Attributes:
        prompts_digest: over every problem and every setting that decides what is sampled and what passes: scores of
            equal digests can be compared.
        version: of this task and of transformers, which samples.
    """

    name: str
    toolchain: Toolchain
    problems: list[Problem]
    prompts_digest: str
    version: str
    benchmark: Literal["me"] = "me"


def load_code_tasks(toolchains: Sequence[Toolchain], config: EvalConfig) -> list[CodeTask]:
    """One task per toolchain, from the hub or from `config.harness.data`.

    Local data are `<data>/me/humaneval-<language>.jsonl` (or `.json`), or `test.jsonl`, `test.json` or `test*.parquet`
    in a folder `<data>/me/humaneval-<language>/`, with the hub's fields.

    Raises:
        ConfigError: a task has no local file where `data` is given, or the package datasets is missing.
        DataError: a task's data cannot be read, lack a field, or have no items.
    """
    return [_load_task(toolchain, config) for toolchain in toolchains]


def _load_task(toolchain: Toolchain, config: EvalConfig) -> CodeTask:
    name = f"humaneval-{toolchain.language}"
    data = config.harness.data
    files = [] if data is None else _local_files(Path(data) / "me", name)
    place: Any = ", ".join(map(str, files)) or (PYTHON_HUB if toolchain.language == "py" else HUB)
    try:
        rows = [row for path in files for row in _read(path)] if files else _hub_rows(name)
    except Exception as error:  # datasets, the hub's client, json and pyarrow raise many kinds
        raise bad_data(name, place, error) from error
    rows = rows[: config.harness.limit]
    if not rows:
        raise no_items(name, place)
    problems = [_problem(row, number, name, place) for number, row in enumerate(rows)]
    digest = digest_of([name, [asdict(problem) for problem in problems], _settings(config.code)])
    return CodeTask(name, toolchain, problems, digest, f"{CODE_VERSION}, transformers {version('transformers')}")


def _settings(config: CodeConfig) -> dict[str, Any]:
    return {name: value for name, value in config.content().items() if name != "languages"}


def _local_files(folder: Path, name: str) -> list[Path]:
    for path in (folder / f"{name}.jsonl", folder / f"{name}.json"):
        if path.is_file():
            return [path]
    return split_files(folder / name, "test", f"{folder / name}.jsonl (or .json), or {name}/test.jsonl (or .parquet)")


def _read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _hub_rows(name: str) -> list[Any]:
    # Not an import statement: evaluation works on machines without datasets as long as the data are local.
    load_dataset = import_extra("datasets", "harness", "eval.benchmarks").load_dataset
    if name != "humaneval-py":
        return list(load_dataset(HUB, name, split="test"))
    return [
        {
            "name": row["task_id"],
            "prompt": row["prompt"],
            "tests": f"{row['test']}\n\ncheck({row['entry_point']})\n",
            "stop_tokens": PYTHON_STOP,
        }
        for row in load_dataset(PYTHON_HUB, split="test")
    ]


def _problem(row: Any, number: int, name: str, place: Any) -> Problem:
    found: dict[str, Any] = (
        {field: row.get(field) for field in FIELDS} if isinstance(row, dict) else dict.fromkeys(FIELDS)
    )
    for field, value in found.items():
        texts = value if field == "stop_tokens" and isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts) or (field == "stop_tokens" and not isinstance(value, list)):
            raise DataError(
                "A problem of a benchmark lacks a field.",
                file=place,
                field=f"{name}.{number}.{field}",
                found=f"{value!r:.80}",
                expected="a list of strings" if field == "stop_tokens" else "a string",
                remedy=f"take the file from the data set {HUB}",
            )
    return Problem(**found)
