"""Scores a model's programs: the share of its samples that pass, problem by problem, and pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

from fusionx.eval.code.languages import verdicts
from fusionx.eval.code.problems import CodeTask
from fusionx.eval.code.sampling import sample_answers
from fusionx.eval.config import EvalConfig
from fusionx.eval.models.loaded_model import LoadedModel
from fusionx.eval.results.benchmark_scores import TaskScore
from fusionx.eval.results.statistics import pass_at_k, spread

PASS_AT = (1, 10)


def run_code_task(loaded: LoadedModel, task: CodeTask, config: EvalConfig) -> TaskScore:
    """Lets the model write programs for every problem and runs them with the problem's tests.

    The score is pass@1, the mean over the problems of the share of samples that pass; its standard error is over the
    problems.

    Raises:
        ConfigError: the model's context has no room for a prompt and its answer.
    """
    batch_size = config.harness.batch_size
    samples = config.code.samples
    answers = sample_answers(loaded, task, config.code, samples if batch_size == "auto" else int(batch_size))
    programs = [
        problem.program(answer) for problem, found in zip(task.problems, answers, strict=True) for answer in found
    ]
    passed = verdicts(task.toolchain, programs, config.code)
    return score_task(task, [passed[start : start + samples] for start in range(0, len(passed), samples)])


def score_task(task: CodeTask, passed: Sequence[Sequence[bool]]) -> TaskScore:
    """The task's score from one verdict for every sample of every problem."""
    counts, samples = [sum(found) for found in passed], len(passed[0])
    figures = {
        f"pass@{k}": fsum(pass_at_k(samples, count, k) for count in counts) / len(counts)
        for k in PASS_AT
        if k <= samples
    }
    shares = [count / samples for count in counts]
    return TaskScore(
        benchmark=task.benchmark,
        metric="pass@1",
        n=len(counts),
        score=figures["pass@1"],
        stderr=spread(shares) / sqrt(len(shares)) if len(shares) > 1 else None,
        truncated=0,
        metrics=figures,
        version=task.version,
        prompts_digest=task.prompts_digest,
        items=shares,
    )
