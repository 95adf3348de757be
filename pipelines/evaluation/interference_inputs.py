"""`fusionx report interference`: finds the evaluations that its arguments name, and has the report made of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import exists, join, list_tree, plain
from fusionx.eval.report.inputs import STEPS, Step
from fusionx.eval.report.interference_report import EvaluatedModel, InterferenceInputs
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation

_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class NamedEvaluations:
    """An argument of the command, `PATH` or `NAME=PATH`."""

    name: str
    path: str


def interference_inputs(
    arguments: Sequence[str],
    *,
    step: Step = "best",
    ct: str | None = None,
    fusellm: str | None = None,
    benchmarks: str | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
) -> InterferenceInputs:
    """What the report is made of; the first argument is the original target.

    Args:
        arguments: `PATH` or `NAME=PATH`, an evaluation file or the folder of one model's.
        ct, fusellm: names of arguments; by default those that are called so.
        benchmarks: the file of benchmark scores that join every evaluation.

    Raises:
        ConfigError: an argument or a name is wrong.
        DataError: a file is no evaluation, a folder has none, or a model has no benchmark scores.
    """
    named = [_named(argument) for argument in arguments]
    _check_names(named)
    chosen = {role: _role(named, role, name) for role, name in (("ct", ct), ("fusellm", fusellm))}
    files = [_files(item, step) for item in named]
    if len(files[0]) > 1:
        raise ConfigError(
            "The first argument is the original target, which is one evaluation.",
            file=named[0].path,
            found=f"{len(files[0])} seeds",
            expected="one evaluation file, such as eval/models/target.json",
        )
    scores = None if benchmarks is None else _benchmark_scores(benchmarks)
    original, *models = (
        EvaluatedModel(item.name, {seed: _load(path, scores) for seed, path in found.items()})
        for item, found in zip(named, files, strict=True)
    )
    (evaluation,) = original.seeds.values()
    settings = {"step": step, **chosen, "benchmarks": benchmarks, "bootstrap": bootstrap, "confidence": confidence}
    given = [word for name, value in settings.items() if value is not None for word in (f"--{name}", f"{value}")]
    return InterferenceInputs(
        original_name=original.name,
        original=evaluation,
        models=models,
        step=step,
        bootstrap=bootstrap,
        confidence=confidence,
        command=f"fusionx report interference {shlex.join([*arguments, *given])}",
        **chosen,
    )


def _named(argument: str) -> NamedEvaluations:
    name, equals, path = argument.partition("=")
    if not equals or "/" in name or exists(argument):
        name, path = _default_name(argument), argument
    if not name or not path:
        raise ConfigError("An argument gives no name or no path.", found=argument, expected="PATH or NAME=PATH")
    return NamedEvaluations(name, plain(path))


def _default_name(path: str) -> str:
    """The file's stem; of `seed-N/best.json` and of a folder, the method's folder."""
    parts = PurePosixPath(path)
    if parts.suffix == ".json":
        if parts.stem not in STEPS:
            return parts.stem
        parts = parts.parent
    return (parts.parent if _SEED.fullmatch(parts.name) else parts).name


def _check_names(named: Sequence[NamedEvaluations]) -> None:
    if len(named) < 2:
        raise ConfigError(
            "There is nothing to compare the original target with.",
            found=", ".join(item.path for item in named),
            expected="the original target first, and then at least one other model",
        )
    for position, item in enumerate(named):
        twin = next((other for other in named[:position] if other.name == item.name), None)
        if twin is not None:
            raise ConfigError(
                "Two arguments have one name.",
                field=item.name,
                found=f"{twin.path} and {item.path}",
                expected="a name of its own for every model",
                remedy=f"give it one: OTHER={item.path}",
            )


def _role(named: Sequence[NamedEvaluations], role: str, chosen: str | None) -> str | None:
    names = [item.name for item in named[1:]]
    if chosen is None:
        return role if role in names else None
    if chosen not in names:
        raise ConfigError(
            "There is no such model among the arguments.", field=f"--{role}", found=chosen, expected=", ".join(names)
        )
    return chosen


def _files(item: NamedEvaluations, step: Step) -> dict[int, str]:
    """Seed -> evaluation file; a file is the seed that its folder names, or seed 0."""
    tree = list_tree(item.path)
    if not tree:
        raise ConfigError("There is no such evaluation.", field=item.name, file=item.path, remedy="correct the path")
    if "" in tree:
        return {_seed(item.path): item.path}
    found: dict[int, str] = {}
    for path in (join(item.path, name) for name in tree if PurePosixPath(name).name == f"{step}.json"):
        twin = found.setdefault(_seed(path), path)
        if twin != path:
            raise DataError(
                "The folder has two evaluations of one seed.",
                file=item.path,
                field=f"seed {_seed(path)}",
                found=f"{twin} and {path}",
                expected="one model, in seed-0, seed-1 and so on",
                remedy="name the folder of one method, or the files",
            )
    if not found:
        raise DataError(
            "The folder has no evaluations.",
            file=item.path,
            field=item.name,
            found=f"{len(tree)} files, none of them {step}.json",
            expected=f"{step}.json, at any depth",
            remedy="evaluate the model first, name the file itself, or choose another --step",
        )
    return dict(sorted(found.items()))


def _seed(path: str) -> int:
    numbers = [int(match[1]) for part in PurePosixPath(path).parts if (match := _SEED.fullmatch(part))]
    return numbers[-1] if numbers else 0


def _benchmark_scores(path: str) -> BenchmarkScores:
    scores = BenchmarkScores.load(path) if exists(path) else BenchmarkScores()
    if not _benchmarks(scores):
        raise ConfigError(
            "The file has no benchmark scores.",
            file=path,
            field="--benchmarks",
            found="no task of any model" if exists(path) else "no such file",
            expected="eval/benchmarks.json, as `fusionx eval --benchmarks` writes it",
        )
    return scores


def _benchmarks(scores: BenchmarkScores) -> list[str]:
    return sorted({score.benchmark for tasks in scores.tasks.values() for score in tasks.values()})


def _load(path: str, scores: BenchmarkScores | None) -> Evaluation:
    """An evaluation that goes by its file's path, so that errors name what the user gave."""
    evaluation = replace(Evaluation.load(path), model=path)
    return evaluation if scores is None else scores.joined(evaluation, _benchmarks(scores))
