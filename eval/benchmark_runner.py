"""Runs the public benchmarks on exported models; a finished task is not run again.

Through lm-evaluation-harness, but for the code benchmark. What the tasks are is `eval.tasks.harness_tasks`'s and
`eval.code.problems`'s, how their scores are kept `eval.results.benchmark_scores`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from fusionx.eval.tasks.harness_tasks import EXTRA, HarnessTask, load_benchmarks

log = logging.getLogger(__name__)


def run_benchmarks(
    models: Sequence[str | Path], config: EvalConfig, output: str | Path, *, trust_remote_code: bool = False
) -> int:
    """Runs what `output` has no score of yet, every model on every task of `config.benchmarks`, and adds it there.

    `output` is written after every task, so that a stopped run goes on where it was.

    Returns:
        How many tasks were run, over all models.

    Raises:
        ConfigError: there is no such folder, lm-evaluation-harness is not installed, a task's local data is missing,
            a model's context has no room for a task's answers, or generated programs cannot or may not be run.
        DataError: a folder is no safetensors model, a task has no items, or `output` is something else.
    """
    toolchains = check_benchmarks(config)
    folders = [check_model_folder(model) for model in models]
    scores = BenchmarkScores.load(output)
    tasks: list[HarnessTask | CodeTask] = []
    tasks += load_benchmarks([name for name in config.benchmarks if name != "me"], config.harness)
    tasks += load_code_tasks(toolchains, config)
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    made = 0
    for folder in folders:
        scores.begin(str(folder), ModelIdentity(weights_digest(folder), settings_digest(folder), dtype))
        known = scores.tasks[str(folder)]
        missing = [task for task in tasks if not _is_score_of(known.get(task.name), task)]
        if missing:
            with limited_threads(config.threads):
                loaded = load_model(folder, config.device, config.dtype, trust_remote_code=trust_remote_code)
                run = _runner(loaded, missing, config)
                for number, task in enumerate(missing, 1):
                    score = known[task.name] = run(task)
                    scores.save(output)
                    log.info("%s: %s %.4f (%d of %d)", folder, task.name, score.score, number, len(missing))
        made += len(missing)
    scores.save(output)
    return made


def check_benchmarks(config: EvalConfig) -> list[Toolchain]:
    """The toolchains for generated programs where a benchmark has any, none otherwise.

    Raises:
        ConfigError: generated programs may not be run, or this machine cannot run them.
    """
    return usable_toolchains(config.code) if "me" in config.benchmarks else []


def _is_score_of(found: TaskScore | None, task: HarnessTask | CodeTask) -> bool:
    return found is not None and (found.prompts_digest, found.version) == (task.prompts_digest, task.version)


def _runner(
    loaded: LoadedModel, missing: Sequence[HarnessTask | CodeTask], config: EvalConfig
) -> Callable[[HarnessTask | CodeTask], TaskScore]:
    """What runs each of the tasks on the model."""
    through_harness = [task for task in missing if isinstance(task, HarnessTask)]
    model: Any = None
    if through_harness:
        model = _harness_model(loaded, config)
        _check_room(model, through_harness)

    def run(task: HarnessTask | CodeTask) -> TaskScore:
        if isinstance(task, CodeTask):
            return run_code_task(loaded, task, config)
        return _run(model, task, config.harness.limit)

    return run


def _harness_model(loaded: LoadedModel, config: EvalConfig) -> Any:
    """The harness' own HFLM, around weights that were read as everywhere else here."""
    huggingface = import_extra("lm_eval.models.huggingface", *EXTRA)
    return huggingface.HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=config.harness.batch_size
    )


def _check_room(model: Any, tasks: Sequence[HarnessTask]) -> None:
    longest = max(tasks, key=_answer_tokens)
    if _answer_tokens(longest) >= model.max_length:
        raise ConfigError(
            f"The answers of {longest.name} do not fit the model's context.",
            file=model.model.name_or_path,
            field="eval.harness.max_gen_toks",
            found=_answer_tokens(longest),
            expected=f"less than {model.max_length}",
        )


def _answer_tokens(task: HarnessTask) -> int:
    """Tokens kept free for a generated answer; 0 where continuations are only scored."""
    return (task.task.get_config("generation_kwargs") or {}).get("max_gen_toks", 0)


def _run(model: Any, task: HarnessTask, limit: int | None) -> TaskScore:
    evaluator = import_extra("lm_eval.evaluator", *EXTRA)
    found = evaluator.evaluate(model, {"tasks": {task.name: task.task}}, limit=limit, log_samples=True)
    figures = {key.split(",")[0]: value for key, value in found["results"][task.name].items() if "," in key}
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    stderr = figures[f"{task.metric}_stderr"]
    return TaskScore(
        benchmark=task.benchmark,
        metric=task.metric,
        n=len(samples),
        score=float(figures[task.metric]),
        stderr=float(stderr) if isinstance(stderr, float) else None,  # "N/A" for a single item
        truncated=_truncated(model, task),
        metrics={name: float(value) for name, value in figures.items() if not name.endswith("_stderr")},
        version=task.version,
        prompts_digest=task.prompts_digest,
        items=[int(sample[task.metric]) for sample in samples],
    )


def _truncated(model: Any, task: HarnessTask) -> int:
    """Items of which the harness cut the beginning, because prompt and answer together exceed the context."""
    cut = set()
    for instance in task.task.instances:
        prompt, continuation = instance.args
        if isinstance(continuation, str):
            # The last token is only predicted.
            length, room = len(model.tok_encode(prompt + continuation)) - 1, model.max_length
        else:
            length, room = len(model.tok_encode(prompt)), model.max_length - _answer_tokens(task)
        if length > room:
            cut.add(instance.doc_id)
    return len(cut)
