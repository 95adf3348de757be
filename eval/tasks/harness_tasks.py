"""The public benchmarks' tasks as lm-evaluation-harness defines them: which ones, whose data, exactly which prompts.

Running them is `eval.benchmark_runner`'s.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.extras import import_extra
from fusionx.eval.config import HarnessBenchmark, HarnessConfig

EXTRA = ("harness", "eval.benchmarks")
FEW_SHOT_SEED = 1234
"""The harness' own default."""

METRICS = ("acc_norm", "acc", "exact_match")
"""The first that a task has is its score; `acc_norm` (likelihood per character) is what published tables hold."""


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        folders: where the harness keeps its task files; reading only these takes milliseconds, reading all ten seconds.
        few_shot: worked examples in front of every question.
        prefix: what the harness puts before the benchmark's own task names.
        tasks: the harness' names; all of the folders' where empty.
    """

    folders: tuple[str, ...]
    few_shot: int
    prefix: str = ""
    tasks: tuple[str, ...] = ()


SUITES: dict[HarnessBenchmark, Suite] = {
    "cs": Suite(
        folders=("arc", "super_glue/boolq", "hellaswag", "openbookqa", "winogrande"),
        few_shot=0,
        tasks=("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "winogrande"),
    ),
    "bbh": Suite(folders=("bbh/cot_fewshot",), few_shot=3, prefix="bbh_cot_fewshot_"),
    "mmlu": Suite(folders=("mmlu/default",), few_shot=5, prefix="mmlu_"),
}


@dataclass(frozen=True)
class HarnessTask:
    """One task with its data, ready to be run.

    Attributes:
        name: the harness' name.
        metric: what the score is; 0 or 1 for every item.
        task: the harness' own object; its `instances` are the requests to a model.
        prompts_digest: over every request (prompt and continuation, or prompt and generation settings), every right
            answer, the metric and the version of the harness' task: scores of equal digests can be compared.
        version: of the harness.
    """

    benchmark: HarnessBenchmark
    name: str
    metric: str
    task: Any
    prompts_digest: str
    version: str


def load_benchmarks(benchmarks: Sequence[HarnessBenchmark], config: HarnessConfig) -> list[HarnessTask]:
    """Every task of the benchmarks, in the harness' order.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or a task has no local file where `data` is given.
        DataError: a task's data cannot be read, does not fit the task, or has no items.
    """
    with _templates_compiled_once():
        return [task for benchmark in dict.fromkeys(benchmarks) for task in _load_benchmark(benchmark, config)]


def _load_benchmark(benchmark: HarnessBenchmark, config: HarnessConfig) -> Iterator[HarnessTask]:
    suite = SUITES[benchmark]
    manager = _task_manager(suite)
    for name in suite.tasks or manager.all_subtasks:
        definition = manager.task_index[name].cfg
        changes: dict[str, Any] = {"num_fewshot": suite.few_shot}
        if config.data is not None:
            folder = Path(config.data) / benchmark
            changes |= local_data(folder, name.removeprefix(suite.prefix), definition, suite.few_shot)
        if config.max_gen_toks is not None and "generation_kwargs" in definition:
            settings = {**definition["generation_kwargs"], "max_gen_toks": config.max_gen_toks}
            changes["generation_kwargs"] = settings
        yield _load_task(manager, benchmark, name, changes, config.limit)


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """The harness compiles a task's templates anew for every item and every worked example: most of the loading."""
    environment = import_extra("lm_eval.utils", *EXTRA).env
    environment.from_string = lru_cache(maxsize=1024)(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string  # the class has its own


def _task_manager(suite: Suite) -> Any:
    tasks = import_extra("lm_eval.tasks", *EXTRA)
    root = Path(tasks.__file__).parent
    return tasks.TaskManager(include_path=[root / folder for folder in suite.folders], include_defaults=False)


def local_data(folder: Path, name: str, definition: Mapping[str, Any], few_shot: int) -> dict[str, Any]:
    """What to change in a task's definition so that its data comes from `folder`.

    Either `<folder>/<name>.json` with `{"examples": [...]}`, as BIG-Bench-Hard is published, or a folder
    `<folder>/<name>/` with one `<split>.jsonl`, `<split>.json` or `<split>*.parquet` for each split that is used, as
    the hub keeps them. The examples have the fields of the hub's data set.

    Raises:
        ConfigError: a file is missing.
    """
    scored = definition.get("test_split") or definition["validation_split"]
    shown = definition.get("fewshot_split") if few_shot else None
    single = folder / f"{name}.json"
    kwargs: dict[str, Any] = {}
    if single.is_file() and shown is None:
        files, kwargs = {scored: [single]}, {"field": "examples"}
    else:
        expected = f"{folder / name}/{{{','.join(filter(None, (scored, shown)))}}}.jsonl (or .json, .parquet)"
        if shown is None:
            expected = f"{single} or {expected}"
        files = {split: split_files(folder / name, split, expected) for split in (scored, shown) if split}
    return {
        "dataset_path": "parquet" if files[scored][0].suffix == ".parquet" else "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(path) for path in paths] for split, paths in files.items()},
            **kwargs,
        },
        # Splits that are neither scored nor shown need no file.
        "training_split": None,
        "validation_split": None if definition.get("test_split") else scored,
    }


def split_files(folder: Path, split: str, expected: str) -> list[Path]:
    """A split's files as the hub keeps them: `<split>.jsonl`, `<split>.json`, or every `<split>*.parquet`.

    Raises:
        ConfigError: there is none.
    """
    for pattern in (f"{split}.jsonl", f"{split}.json", f"{split}*.parquet"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ConfigError(
        "A benchmark's task has no local data.",
        file=folder,
        field="eval.harness.data",
        found="nothing" if not folder.exists() else f"no file of the split '{split}'",
        expected=expected,
        remedy="put the file there, or leave eval.harness.data out to read the hub",
    )


def _load_task(
    manager: Any, benchmark: HarnessBenchmark, name: str, changes: Mapping[str, Any], limit: int | None
) -> HarnessTask:
    data = changes.get("dataset_kwargs", {}).get("data_files") or manager.task_index[name].cfg["dataset_path"]
    try:
        # A group of one: the harness' way to load a task with changes to its definition.
        task = manager.load({"group": benchmark, "task": [{"task": name, **changes}]})["tasks"][name]
        task.set_fewshot_seed(FEW_SHOT_SEED)
        task.build_all_requests(limit=limit)
        answers = [[task.doc_to_text(doc), task.doc_to_target(doc)] for _, doc in task.doc_iterator(limit=limit)]
    except Exception as error:  # datasets, the hub's client and the harness' templates raise many kinds
        raise bad_data(name, data, error) from error
    metric = next(metric for metric in METRICS if metric in task.aggregation())
    requests = [instance.args for instance in task.instances]
    digest = digest_of([name, str(task.VERSION), metric, answers, requests])
    return HarnessTask(benchmark, name, metric, task, digest, importlib.metadata.version("lm_eval"))


def bad_data(name: str, data: Any, error: BaseException) -> DataError:
    """The error to report for a task whose data, from the place `data`, could not be read."""
    while error.__cause__ is not None:  # datasets says "an error occurred" and keeps the reason behind it
        error = error.__cause__
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return no_items(name, data)
    return DataError(
        "A benchmark's task cannot be loaded.",
        file=data,
        field=name,
        found=f"{type(error).__name__}: {' '.join(str(error).split()):.200}",
        expected="examples with the fields of the hub's data set",
        remedy="check the file; without a network, give a folder of task files as eval.harness.data",
    )


def no_items(name: str, data: Any) -> DataError:
    """The error to report for a task whose data, from the place `data`, is empty."""
    return DataError(
        "A benchmark's task has no items.", file=data, field=name, found="no examples", expected="at least one"
    )
