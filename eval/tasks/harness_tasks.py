"""Tasks of lm-evaluation-harness: whose data, how many worked examples, exactly which prompts, and what is the score.

Which tasks a name stands for is `eval.tasks.harness_index`'s, running them `eval.benchmark_runner`'s.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.extras import import_extra
from fusionx.contract.models.hub import is_offline
from fusionx.eval.config import HarnessConfig
from fusionx.eval.tasks.harness_index import EXTRA, Found, find_tasks

FEW_SHOT_SEED = 1234
"""The harness' own default."""

METRICS = ("acc_norm", "acc", "exact_match")
"""The first that a task has is its score; `acc_norm` (likelihood per character) is what published tables hold. Of a
task that has none of them it is the first of its own."""


@dataclass(frozen=True)
class HarnessTask:
    """One task with its data, ready to be run.

    Attributes:
        benchmark: what the config calls it, or the group that it is of.
        name: the harness' name.
        metric: what the score is; `higher_is_better` says which way.
        task: the harness' own object; its `instances` are the requests to a model.
        prompts_digest: over every request (prompt and continuation, or prompt and generation settings), every right
            answer, the metric and the version of the harness' task: scores of equal digests can be compared.
        version: of the harness.
    """

    benchmark: str
    name: str
    metric: str
    task: Any
    prompts_digest: str
    version: str
    higher_is_better: bool = True


def load_benchmarks(benchmarks: Sequence[str], config: HarnessConfig) -> list[HarnessTask]:
    """Every task of the benchmarks, in the harness' order.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, there is no such task, a task stands in two benchmarks, may
            not be run here, or has no local file where `data` is given.
        DataError: a task's data cannot be read, does not fit the task, or has no items.
    """
    with _templates_compiled_once():
        found = [(benchmark, one) for benchmark in dict.fromkeys(benchmarks) for one in find_tasks(benchmark, config)]
        tasks = _load_each(found, config)
    of: dict[str, str] = {}
    for task in tasks:
        if of.setdefault(task.name, task.benchmark) != task.benchmark:
            raise ConfigError(
                "A task stands in two benchmarks.",
                field="eval.benchmarks",
                found=f"{task.name} in {of[task.name]} and in {task.benchmark}",
                remedy="leave one of the two out",
            )
    if unknown := set(config.few_shot) - {*benchmarks, *of}:
        raise ConfigError(
            "A number of worked examples is of no task.",
            field="eval.harness.few_shot",
            found=", ".join(sorted(unknown)),
            expected="tasks, or names of eval.benchmarks",
        )
    return tasks


def _load_each(found: Sequence[tuple[str, Found]], config: HarnessConfig) -> list[HarnessTask]:
    """All tasks, or one error that names all those that cannot be loaded."""
    tasks: list[HarnessTask] = []
    failed: dict[str, FusionXError] = {}
    sources: set[str] = set()  # data sets that could not be had
    for benchmark, one in found:
        source = str((one.definition or {}).get("dataset_path", one.spec))
        if config.data is None and source in sources:
            failed[one.spec] = next(iter(failed.values()))
            continue
        try:
            tasks += _load(benchmark, one, config)
        except FusionXError as error:
            failed[one.spec] = error
            sources.add(source)
    if not failed:
        return tasks
    first = next(iter(failed.values()))
    if len(failed) == 1:
        raise first
    details = {**first.details, "field": f"{len(failed)} tasks: {', '.join(failed)}"}
    raise type(first)(f"{first.problem} The first of several:", **details)


def _load(benchmark: str, found: Found, config: HarnessConfig) -> list[HarnessTask]:
    definition = found.definition
    few_shot = config.few_shot.get(found.spec, config.few_shot.get(benchmark, found.few_shot))
    changes: dict[str, Any] = {}
    if definition is not None:
        _check_runnable(found.spec, bool(definition.get("unsafe_code")), "doc_to_image" in definition)
        if found.hub_data and config.data is not None:
            shown = definition.get("num_fewshot") if few_shot is None else few_shot
            changes = local_data(Path(config.data) / benchmark, found.local_name, definition, shown or 0)
    if not changes and (found.hub_data or "class" in (definition or {})):  # what a class reads is not known
        _ask_hub_once()
    # A group of one: the harness' way to load a task with changes to its definition.
    spec = found.spec if definition is None else {"group": benchmark, "task": [{"task": found.spec, **changes}]}
    data = changes.get("dataset_kwargs", {}).get("data_files") or ", ".join(sorted(found.hub_data)) or found.spec
    try:
        loaded = found.manager.load(spec)["tasks"]
    except Exception as error:  # datasets, the hub's client and the harness raise many kinds
        raise bad_data(found.local_name if definition is None else found.spec, data, error) from error
    tasks = []
    for name, task in loaded.items():
        _check_runnable(name, getattr(task, "UNSAFE_CODE", False), getattr(task, "MULTIMODAL", False))
        number = config.few_shot.get(name, few_shot)
        if number is not None or task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", number or 0)
        tasks.append(_prepared(benchmark, name, task, data, config))
    return tasks


def _ask_hub_once() -> None:
    """Where the hub does not answer, no data set waits for it again; those in its cache can still be had."""
    if is_offline():
        import_extra("datasets", *EXTRA).config.HF_HUB_OFFLINE = True


def _check_runnable(name: str, unsafe: bool, multimodal: bool) -> None:
    for found, problem, remedy in (
        (unsafe, "A task runs programs that the models write, outside a sandbox.", "the benchmark me has one"),
        (multimodal, "A task shows pictures or plays sounds.", "leave it out"),
    ):
        if found:
            raise ConfigError(problem, field="eval.benchmarks", found=name, remedy=remedy)


def _prepared(benchmark: str, name: str, task: Any, data: Any, config: HarnessConfig) -> HarnessTask:
    if config.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": config.max_gen_toks}, update=True)
    limit = config.limit
    try:
        task.set_fewshot_seed(FEW_SHOT_SEED)
        task.build_all_requests(limit=limit)
        answers = [[task.doc_to_text(doc), task.doc_to_target(doc)] for _, doc in task.doc_iterator(limit=limit)]
    except Exception as error:  # the harness' templates raise many kinds
        raise bad_data(name, data, error) from error
    metric = next((metric for metric in METRICS if metric in task.aggregation()), next(iter(task.aggregation())))
    requests = [instance.args for instance in task.instances]
    # What is no JSON (a date in a table) counts as its text.
    content = json.loads(json.dumps([name, str(task.VERSION), metric, answers, requests], default=str))
    higher = bool(task.higher_is_better().get(metric, True))
    version = importlib.metadata.version("lm_eval")
    return HarnessTask(benchmark, name, metric, task, digest_of(content), version, higher)


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """The harness compiles a task's templates anew for every item and every worked example: most of the loading."""
    environment = import_extra("lm_eval.utils", *EXTRA).env
    environment.from_string = lru_cache(maxsize=1024)(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string  # the class has its own


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


def bad_data(name: str, data: Any, error: BaseException) -> DataError:
    """The error to report for a task whose data, from the place `data`, could not be read."""
    while error.__cause__ is not None:  # datasets says "an error occurred" and keeps the reason behind it
        error = error.__cause__
    if isinstance(error, ConnectionError) and is_offline():
        return DataError(
            "The data set of a benchmark's task is not on this machine, and the hub does not answer.",
            file=data,
            field=name,
            found="nothing of it in the hub's cache",
            expected="the data set in the cache, files in eval.harness.data, or a network (without HF_HUB_OFFLINE)",
            remedy="where there is a network, `fusionx eval` with this benchmark fills the cache (HF_HOME); or copy "
            "the data set's files into a folder and name it as eval.harness.data; or leave the task out",
        )
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return no_items(name, data)
    return DataError(
        "A benchmark's task cannot be loaded.",
        file=data,
        field=name,
        found=f"{type(error).__name__}: {' '.join(str(error).split()):.200}",
        expected="examples with the fields of the hub's data set",
        remedy="check the file; without a network, fill the hub's cache (HF_HOME) where there is one, or give a folder "
        "of task files as eval.harness.data",
    )


def no_items(name: str, data: Any) -> DataError:
    """The error to report for a task whose data, from the place `data`, is empty."""
    return DataError(
        "A benchmark's task has no items.", file=data, field=name, found="no examples", expected="at least one"
    )
