"""`fusionx report interference`: the numbers of a run's report for any evaluations, what it writes, and bad input."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from fusionx.cli.main import main
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.eval.report.interference_report import paired_seeds, ratio_of_means
from fusionx.eval.report.pages import ReportInputs
from fusionx.eval.report.summary import ONE_SEED, summarize
from fusionx.eval.results.benchmark_scores import BenchmarkScores, ModelIdentity, TaskScore
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.statistics import spread, t_interval, t_quantile

ROOT = Path(__file__).resolve().parents[4]
METHODS = ("ct", "fusellm", "fusionx")
FAST = ("--bootstrap", "200")


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., ReportInputs]) -> ReportInputs:
    return make_inputs(methods=METHODS, bootstrap=200, absent_domains=[])


@pytest.fixture(scope="module")
def written(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluations where a run has them."""
    root = tmp_path_factory.mktemp("eval")
    save(inputs.original, root / "models" / "target.json")
    for run in inputs.runs:
        for step in ("best", "last"):
            save(run.at(step), root / run.method / f"seed-{run.seed}" / f"{step}.json")
    return root


def save(evaluation: Evaluation, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, asdict(evaluation))
    return str(path)


def report(root: Path, *arguments: str) -> Result:
    """The command, run in `root`."""
    with chdir(root):
        return CliRunner().invoke(main, ["report", "interference", *arguments], catch_exceptions=False)


def results_of(root: Path, *arguments: str) -> dict[str, Any]:
    result = report(root, *arguments, "--json", *FAST)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("step", ["best", "last"])
def test_the_numbers_are_those_of_the_runs_report(inputs: ReportInputs, written: Path, step: str) -> None:
    expected = json.loads(json.dumps(summarize(inputs)))
    results = results_of(written, "models/target.json", *METHODS, "--step", step)
    assert set(results["interference"]) == set(METHODS)
    for method in METHODS:
        assert results["interference"][method] == {step: expected["interference"][method][step]}
        counts = results["counts"][method]
        for count, told in expected["comparison"]["degraded"][method][step]["vs_target"].items():
            if count != "units":
                assert counts[count]["mean"] == told
        raw = [summary["degraded"] for summary in expected["interference"][method][step]["per_seed"].values()]
        assert counts["raw"]["ci95"] == t_interval(raw, 0.95)
    ratios = expected["comparison"]["degraded_ratios_to_fusellm"][step]
    for count, ratio in ratios.items():
        found = results["ratio_to_fusellm"]["fusionx"][count]
        assert (found and found["mean"]) == ratio
    assert ratios["raw"] is not None
    assert set(results["ratio_to_fusellm"]) == {"ct", "fusionx"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=6))
def test_the_interval_of_a_ratio_is_that_of_the_delta_method(pairs: list[tuple[int, int]]) -> None:
    """Var(x̄/ȳ) ≈ (s²x − 2 r sxy + r² s²y) / (n ȳ²)."""
    count = len(pairs)
    own, other = [[float(value) for value in column] for column in zip(*pairs, strict=True)]
    means = [sum(values) / count for values in (own, other)]
    ratio = means[0] / means[1]
    covariance = sum((x - means[0]) * (y - means[1]) for x, y in pairs) / (count - 1)
    variance = spread(own) ** 2 - 2 * ratio * covariance + ratio**2 * spread(other) ** 2
    half = t_quantile(0.975, count - 1) * math.sqrt(max(variance, 0.0) / count) / means[1]
    found = ratio_of_means(*({str(seed): value for seed, value in enumerate(values)} for values in (own, other)))
    assert found is not None
    assert found["mean"] == pytest.approx(ratio)
    assert found["ci95"] == pytest.approx([ratio - half, ratio + half], abs=1e-6)


def test_a_ratio_without_the_same_seeds_has_no_interval_and_none_is_to_nothing() -> None:
    assert ratio_of_means({"0": 2.0}, {"0": 4.0}) == {"mean": 0.5, "ci95": None}
    assert ratio_of_means({"0": 2.0, "1": 2.0}, {"0": 4.0, "2": 4.0}) == {"mean": 0.5, "ci95": None}
    assert ratio_of_means({"0": 2.0}, {"0": 0.0}) is None


def test_seeds_are_paired_and_a_single_one_meets_the_first(inputs: ReportInputs) -> None:
    one, two, three = (inputs.original, replace(inputs.original, model="2"), replace(inputs.original, model="3"))
    assert paired_seeds({1: one, 2: one, 9: one}, {2: two, 3: three}) == {2: two}
    assert paired_seeds({1: one, 2: one}, {3: three}) == {1: three, 2: three}
    assert paired_seeds({9: one}, {3: three, 2: two}) == {9: two}
    assert paired_seeds({3: one}, {3: three, 2: two}) == {3: three}


def test_a_single_model_meets_the_first_seed_of_ct(written: Path) -> None:
    merged = "merged=fusionx/seed-2/last.json"
    results = results_of(written, "models/target.json", "ct", merged)
    by_seed = results_of(written, "models/target.json", "ct", "fusionx", "--step", "last")["interference"]["fusionx"]
    assert results["interference"]["merged"]["best"]["per_seed"] == {"2": by_seed["last"]["per_seed"]["2"]}
    assert list(results["interference"]["merged"]["best"]["vs_ct_per_seed"]) == ["2"]


def test_one_seed_has_no_interval(written: Path) -> None:
    arguments = ("models/target.json", *(f"{method}/seed-1" for method in METHODS))
    results = results_of(written, *arguments)
    assert set(results["interference"]) == set(METHODS), "named by the method's folder"
    assert {counts["raw"]["ci95"] for counts in results["counts"].values()} == {None}
    assert results["ratio_to_fusellm"]["fusionx"]["raw"]["ci95"] is None
    text = report(written, *arguments, *FAST).stdout
    assert ONE_SEED in text
    assert "95 %:" not in text
    assert "95 %:" in report(written, "models/target.json", *METHODS, *FAST).stdout


def test_the_terminal_shows_every_unit_worst_first(written: Path) -> None:
    text = report(written, "models/target.json", *METHODS, *FAST).stdout
    units = results_of(written, "models/target.json", *METHODS)["interference"]
    losses: dict[str, float] = {}
    for found in units.values():
        for unit in found["best"]["units"]:
            losses[unit["name"]] = max(losses.get(unit["name"], -math.inf), unit["loss"])
    shown = text[text.index("Largest loss under any model first") :]
    names = [line.split("|")[1].split()[0] for line in shown.splitlines() if line.startswith("| ")][2:]
    assert names == sorted(losses, key=lambda name: -losses[name])
    assert "Holm-corrected" in text
    assert "200 resamples" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2
    assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_roles_are_given_by_option_and_baselines_may_have_any_name(written: Path) -> None:
    arguments = ["start=models/target.json", "plain=ct", "other=fusellm", "new=fusionx"]
    results = results_of(written, *arguments, "--ct", "plain", "--fusellm", "other")
    same = results_of(written, "models/target.json", *METHODS)
    assert results["interference"]["new"] == same["interference"]["fusionx"]
    assert results["ratio_to_fusellm"]["new"] == same["ratio_to_fusellm"]["fusionx"]
    without = results_of(written, *arguments)
    assert without["interference"]["new"]["best"]["vs_ct_mean"] is None
    assert without["ratio_to_fusellm"] == {}
    assert "worse than start:" in results["verdict"][0]


def test_it_writes_a_page_that_needs_nothing_else(written: Path, tmp_path: Path) -> None:
    output = tmp_path / "made"
    arguments = ("models/target.json", *METHODS, "--output", str(output))
    results = results_of(written, *arguments)
    assert json.loads((output / "interference.json").read_text()) == results
    page, text = ((output / f"interference.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == 2
    assert not re.findall(r'(?:src|href)="(?!#|data:text/csv;)', page)
    links = re.findall(r"\]\(((?:plots|tables)/[^)]+)\)", text)
    assert len(links) == 4
    assert all((output / link).is_file() for link in links)
    assert results["verdict"][0] in text
    again = report(written, *shlex.split(results["command"])[3:], "--json")
    assert json.loads(again.stdout) == results, "the command on the page reproduces it"


def benchmark(items: list[float], prompts: str = "p") -> TaskScore:
    mean = sum(items) / len(items)
    return TaskScore("cs", "acc", len(items), mean, 0.1, 0, {"acc": mean}, "0.4", prompts, items)


def write_benchmarks(path: Path, inputs: ReportInputs, **others: TaskScore) -> str:
    """Every model's score of `boolq`; `others` by weights' digest."""
    scores = BenchmarkScores()
    for evaluation in (inputs.original, *(run.best for run in inputs.runs)):
        scores.begin(evaluation.model, ModelIdentity(evaluation.weights_digest, "", ""))
        right = [1.0] * 4 if evaluation is inputs.original else [1.0, 0.0, 0.0, 0.0]
        scores.tasks[evaluation.model] = {"boolq": others.get(evaluation.weights_digest, benchmark(right))}
    scores.save(path)
    return str(path)


def test_benchmarks_join_the_units(inputs: ReportInputs, written: Path, tmp_path: Path) -> None:
    file = write_benchmarks(tmp_path / "benchmarks.json", inputs)
    results = results_of(written, "models/target.json", *METHODS, f"--benchmarks={file}")
    unit = next(unit for unit in results["interference"]["fusionx"]["best"]["units"] if unit["name"] == "boolq")
    assert (unit["kind"], unit["baseline"], unit["model"], unit["degraded_seeds"]) == ("task", 1.0, 0.25, 3)


def test_benchmarks_of_other_prompts_or_models_are_refused(inputs: ReportInputs, written: Path, tmp_path: Path) -> None:
    other = write_benchmarks(tmp_path / "other.json", inputs, **{"fusionx-2-best": benchmark([1.0] * 4, prompts="q")})
    refused = report(written, "models/target.json", *METHODS, f"--benchmarks={other}")
    assert refused.exit_code == 1
    assert "different prompts" in refused.stderr
    assert "fusionx/seed-2/best.json" in refused.stderr
    assert "as in models/target.json" in refused.stderr
    file = write_benchmarks(tmp_path / "benchmarks.json", inputs)
    refused = report(written, "models/target.json", "ct", "--step=last", f"--benchmarks={file}")
    assert refused.exit_code == 1
    assert "no benchmark scores" in refused.stderr
    assert "ct/seed-1/last.json" in refused.stderr
    for path, problem in ((tmp_path / "none.json", "no such file"), (written / "models/target.json", "models")):
        refused = report(written, "models/target.json", "ct", f"--benchmarks={path}")
        assert refused.exit_code in (1, 2)
        assert problem in refused.stderr


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data_digest": "other"}, "cannot be compared"),
        ({"config_digest": "other"}, "cannot be compared"),
        ({"versions": {"dtype": "bfloat16"}}, "different precisions"),
    ],
)
def test_evaluations_that_differ_are_refused_by_their_files(
    changes: dict[str, Any], problem: str, inputs: ReportInputs, tmp_path: Path
) -> None:
    start = save(replace(inputs.original, versions={"dtype": "float32"}), tmp_path / "start.json")
    other = save(replace(inputs.original, **{"versions": {"dtype": "float32"}, **changes}), tmp_path / "other.json")
    refused = report(tmp_path, start, other)
    assert refused.exit_code == 1
    assert problem in refused.stderr
    assert start in refused.stderr
    assert other in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["Missing argument"]),
        (["models/target.json"], 2, ["nothing to compare", "at least one other"]),
        (["models/target.json", "nowhere"], 2, ["no such evaluation", "nowhere"]),
        (["models/target.json", "models"], 1, ["no evaluations", "models", "best.json"]),
        (["models/target.json", "ct", "ct"], 2, ["one name", "ct", "OTHER="]),
        (["models/target.json", "ct", "ct/seed-1"], 2, ["one name", "seed-1"]),
        (["models/target.json", "all=."], 1, ["two evaluations of one seed", "name the folder of one method"]),
        (["ct", "fusionx"], 2, ["original target", "3 seeds"]),
        (["models/target.json", "ct", "--ct", "nobody"], 2, ["--ct", "nobody", "expected: ct"]),
        (["models/target.json", "ct", "--fusellm", "target"], 2, ["--fusellm", "target"]),
        (["models/target.json", "broken.json"], 1, ["no JSON", "broken.json"]),
        (["models/target.json", "list.json"], 1, ["no checksum", "list.json"]),
        (["models/target.json", "words.json"], 1, ["not an evaluation", "words.json", "domains.", "bits_per_byte"]),
        (["models/target.json", "ct", "--benchmarks", "words.json"], 1, ["no benchmark scores", "field:    format"]),
        (["models/target.json", "=ct"], 2, ["no name", "NAME=PATH"]),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments: list[str], code: int, words: list[str], written: Path) -> None:
    (written / "broken.json").write_text('{"model": "m"')
    (written / "list.json").write_text('["model"]')
    target = read_sealed(written / "models/target.json", "")
    next(iter(target["domains"].values()))["bits_per_byte"] = "low"
    write_sealed(written / "words.json", target)
    refused = report(written, *arguments)
    assert refused.exit_code == code, refused.output
    assert all(word in refused.stderr for word in words), refused.stderr


@pytest.mark.parametrize("backend", ["TkAgg", None])
def test_figures_are_drawn_without_a_display(backend: str | None, written: Path, tmp_path: Path) -> None:
    """Of the run's report and of this one, whatever window system matplotlib is told to use."""
    left_out = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    if backend is not None:
        environment["MPLBACKEND"] = backend
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
from conftest import build_inputs
from fusionx.eval.report.pages import write_report
from fusionx.cli.main import main
write_report(build_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100), {str(tmp_path / "run")!r})
main(["report", "interference", "models/target.json", "ct", "--output", {str(tmp_path / "own")!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=written, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder, count in (("run", 8), ("own", 2)):
        drawn = list((tmp_path / folder / "plots").glob("*.svg"))
        assert len(drawn) == count
        assert all(path.read_text().startswith("<svg") for path in drawn)
