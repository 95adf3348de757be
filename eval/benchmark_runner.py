"""Runs the public benchmarks on exported models; a finished task is not run again.

Through lm-evaluation-harness, but for the code benchmark. What the tasks are is `eval.tasks.harness_tasks`'s and
`eval.code.problems`'s, how their scores are kept `eval.results.benchmark_scores`'s.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.extras import import_extra
from fusionx.eval.code.languages import Toolchain, usable_toolchains
from fusionx.eval.code.problems import CodeTask, load_code_tasks
from fusionx.eval.code.scoring import run_code_task
from fusionx.eval.config import EvalConfig
from fusionx.eval.models.loaded_model import (
    LoadedModel,
    check_model_folder,
    limited_threads,
    load_model,
    resolve_device,
    resolve_dtype,
    settings_digest,
    weights_digest,
)
from fusionx.eval.results.benchmark_scores import BenchmarkScores, ModelIdentity, TaskScore
from fusionx.eval.results.evaluation import Number
from fusionx.eval.tasks.exact_match import load_tasks
from fusionx.eval.tasks.harness_index import EXTRA
from fusionx.eval.tasks.harness_tasks import HarnessTask, load_benchmarks

BenchmarkTask = HarnessTask | CodeTask

RESAMPLES = 1000
"""Of the harness' own bootstrap, for the standard error of a score that is no mean over items (F1, BLEU)."""


def run_benchmarks(
    models: Sequence[str | Path],
    config: EvalConfig,
    output: str | Path,
    *,
    tasks: Sequence[BenchmarkTask] | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Runs what `output` has no score of yet, every model on every task of `config.benchmarks`, and adds it there.

    `output` is written after every task, so that a stopped run goes on where it was. `tasks` are what
    `load_benchmark_tasks` gave of the same config, if it was asked before.

    Returns:
        How many tasks were run, over all models.

    Raises:
        ConfigError: there is no such folder, a model's context has no room for a task's answers, or what
            `load_benchmark_tasks` raises.
        DataError: a folder is no safetensors model, `output` is something else, or what `load_benchmark_tasks` raises.
    """
    folders = [check_model_folder(model) for model in models]
    scores = BenchmarkScores.load(output)
    tasks = load_benchmark_tasks(config) if tasks is None else tasks
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    made = 0
    for place, folder in enumerate(folders, 1):
        scores.begin(str(folder), ModelIdentity(weights_digest(folder), settings_digest(folder), dtype))
        known = scores.tasks[str(folder)] = _sorted_into_groups(scores.tasks[str(folder)], tasks)
        missing = [task for task in tasks if not _is_score_of(known.get(task.name), task)]
        if missing:
            with limited_threads(config.threads):
                loaded = load_model(folder, config.device, config.dtype, trust_remote_code=trust_remote_code)
                run = _runner(loaded, missing, config)
                for number, task in enumerate(missing, 1):
                    score = known[task.name] = run(task)
                    scores.save(output)
                    done = f"{task.name} {score.score:.3f}, {number} of {len(missing)} tasks"
                    print(f"[eval] model {place} of {len(folders)}: {done}", file=sys.stderr, flush=True)
        made += len(missing)
    scores.save(output)
    return made


def load_benchmark_tasks(config: EvalConfig) -> list[BenchmarkTask]:
    """Every task of `config.benchmarks` with its data, before any model is loaded.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, there is no such task, a task's local data is missing, a
            task has the name of one of `config.tasks`, or generated programs cannot or may not be run.
        DataError: a task's data cannot be read, or it has no items.
    """
    toolchains = check_benchmarks(config)
    harness = [name for name in config.benchmarks if name != "me"]
    tasks: list[BenchmarkTask] = [*load_benchmarks(harness, config.harness), *load_code_tasks(toolchains, config)]
    if twice := {task.name for task in tasks} & {task.name for task in load_tasks(config)}:
        raise ConfigError(
            "A task of eval.tasks has the name of a benchmark's task.",
            field="eval.tasks",
            found=", ".join(sorted(twice)),
            remedy="rename the task's file, or leave the benchmark out",
        )
    return tasks


def check_benchmarks(config: EvalConfig) -> list[Toolchain]:
    """The toolchains for generated programs where a benchmark has any, none otherwise.

    Raises:
        ConfigError: generated programs may not be run, or this machine cannot run them.
    """
    return usable_toolchains(config.code) if "me" in config.benchmarks else []


def _sorted_into_groups(known: dict[str, TaskScore], tasks: Sequence[BenchmarkTask]) -> dict[str, TaskScore]:
    """The scores under the benchmarks that the tasks are of now; those of tasks that a group has no more are left out.

    What is run of `me` depends on the machine's toolchains: a machine without one drops nothing.
    """
    of = {task.name: task.benchmark for task in tasks}
    now = {benchmark for benchmark in of.values() if benchmark != "me"}
    return {
        name: replace(score, benchmark=of.get(name, score.benchmark))
        for name, score in known.items()
        if name in of or score.benchmark not in now
    }


def _is_score_of(found: TaskScore | None, task: BenchmarkTask) -> bool:
    return found is not None and (found.prompts_digest, found.version) == (task.prompts_digest, task.version)


def _runner(
    loaded: LoadedModel, missing: Sequence[BenchmarkTask], config: EvalConfig
) -> Callable[[BenchmarkTask], TaskScore]:
    """What runs each of the tasks on the model."""
    through_harness = [task for task in missing if isinstance(task, HarnessTask)]
    model: Any = None
    if through_harness:
        model = _harness_model(loaded, config)
        _check_room(model, through_harness)

    def run(task: BenchmarkTask) -> TaskScore:
        if isinstance(task, CodeTask):
            return run_code_task(loaded, task, config)
        return _run(model, task, config.harness.limit)

    return run


def _harness_model(loaded: LoadedModel, config: EvalConfig) -> Any:
    """The harness' own HFLM, around weights that were read as everywhere else here."""
    huggingface = import_extra("lm_eval.models.huggingface", *EXTRA)

    class Quiet(huggingface.HFLM):  # type: ignore[name-defined]
        """Whose bars are for terminals: elsewhere their every step is a line."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    with _without_warnings(huggingface.__name__):  # that it is given a model, which is what is meant
        return Quiet(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=config.harness.batch_size
        )


@contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(before)


def _check_room(model: Any, tasks: Sequence[HarnessTask]) -> None:
    longest = max(tasks, key=lambda task: _answer_tokens(model, task))
    if _answer_tokens(model, longest) >= model.max_length:
        raise ConfigError(
            f"The answers of {longest.name} do not fit the model's context.",
            file=model.model.name_or_path,
            field="eval.harness.max_gen_toks",
            found=_answer_tokens(model, longest),
            expected=f"less than {model.max_length}",
        )


def _answer_tokens(model: Any, task: HarnessTask) -> int:
    """Tokens kept free for a generated answer; 0 where continuations are only scored."""
    if task.task.OUTPUT_TYPE != "generate_until":
        return 0
    return (task.task.get_config("generation_kwargs") or {}).get("max_gen_toks", model.max_gen_toks)


def _run(model: Any, task: HarnessTask, limit: int | None) -> TaskScore:
    evaluator = import_extra("lm_eval.evaluator", *EXTRA)
    found = evaluator.evaluate(
        model, {"tasks": {task.name: task.task}}, limit=limit, log_samples=True, bootstrap_iters=RESAMPLES
    )
    # Keys are "metric,filter"; where a task reads its answers in several ways (filters), the first one counts.
    figures = {key: value for key, value in found["results"][task.name].items() if "," in key}
    chosen = next(key.split(",")[1] for key in figures if key.startswith(f"{task.metric},"))
    figures = {key.removesuffix(f",{chosen}"): value for key, value in figures.items()}
    score, stderr = float(figures[task.metric]), figures.get(f"{task.metric}_stderr")
    samples = [sample for sample in found["samples"][task.name] if sample["filter"] == chosen]
    samples.sort(key=lambda sample: sample["doc_id"])
    return TaskScore(
        benchmark=task.benchmark,
        metric=task.metric,
        n=len(samples),
        score=score,
        stderr=float(stderr) if isinstance(stderr, float) else None,  # "N/A" for a single item
        truncated=_truncated(model, task),
        metrics={name: float(value) for name, value in figures.items() if "_stderr" not in name},
        version=task.version,
        prompts_digest=task.prompts_digest,
        items=_items([sample[task.metric] for sample in samples], score),
        higher_is_better=task.higher_is_better,
    )


def _items(values: Sequence[Any], score: float) -> list[Number]:
    """The items' values where the score is their mean; none of a score like F1 or perplexity, which is no mean."""
    if not all(isinstance(value, bool | int | float) for value in values):
        return []
    if not math.isclose(math.fsum(values) / len(values), score, abs_tol=1e-9):
        return []
    return [int(value) if value == int(value) else float(value) for value in values]


def _truncated(model: Any, task: HarnessTask) -> int:
    """Items of which the harness cut the beginning, because prompt and answer together exceed the context."""
    cut = set()
    for instance in task.task.instances:
        match instance.args:
            case (str(prompt), str(continuation)):
                # The last token is only predicted.
                length, room = len(model.tok_encode(prompt + continuation)) - 1, model.max_length
            case (str(prompt), _):
                length, room = len(model.tok_encode(prompt)), model.max_length - _answer_tokens(model, task)
            case _:  # a whole text, which is scored window by window
                continue
        if length > room:
            cut.add(instance.doc_id)
    return len(cut)
