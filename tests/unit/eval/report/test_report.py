"""The report from synthetic inputs: numbers recomputed, a page that needs nothing else, honest words."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fusionx.eval.report.figures.plots import plots
from fusionx.eval.report.pages import ReportInputs, write_report
from fusionx.eval.report.summary import ONE_SEED, summarize
from fusionx.eval.report.verdict import verdict
from fusionx.eval.results.interference import compare
from fusionx.eval.results.statistics import t_interval

MakeInputs = Callable[..., ReportInputs]
SOURCE_ROWS = ("target-gpt2 (aligned shards)", "neox-code (aligned shards)")


@pytest.fixture(scope="module")
def full(make_inputs: MakeInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportInputs, Path]:
    inputs, folder = make_inputs(bootstrap=200), tmp_path_factory.mktemp("report")
    write_report(inputs, folder)
    return inputs, folder


def macro(evaluation: Any, domains: list[str]) -> float:
    return sum(evaluation.domains[d]["bits_per_byte"] for d in domains) / len(domains)


def geometric(domains: Any, names: list[str]) -> float:
    return math.prod(domains[name]["perplexity"] for name in names) ** (1 / len(names))


def test_results_equal_recomputed_numbers(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    results = json.loads((folder / "results.json").read_text())
    every = sorted(inputs.original.domains)
    runs = {(run.method, run.seed): run for run in inputs.runs}
    comparison = results["comparison"]
    assert (comparison["seeds"], comparison["claim"]) == (3, "corpus")
    groups = {"corpus": inputs.train_domains, "absent": inputs.absent_domains, "all": every}
    for step, (group, domains) in itertools.product(("best", "last"), groups.items()):
        for seed in (1, 2, 3):
            shown = results["methods"]["fusionx"]["per_seed"][str(seed)][step]["groups"][group]
            run = getattr(runs["fusionx", seed], step)
            assert shown["bits_per_byte"] == pytest.approx(macro(run, domains))
            assert shown["perplexity"] == pytest.approx(geometric(run.domains, domains))
        for name, measure in (("bpb", macro), ("perplexity", lambda model, of: geometric(model.domains, of))):
            for baseline in ("ct", "fusellm", "paper"):
                ratios = [
                    measure(getattr(runs["fusionx", seed], step), domains)
                    / measure(getattr(runs[baseline, seed], step), domains)
                    - 1
                    for seed in (1, 2, 3)
                ]
                found = comparison[f"{name}_vs_{baseline}"]
                assert found[step][group]["mean"] == pytest.approx(sum(ratios) / 3)
                assert found[step][group]["ci95"] == pytest.approx(t_interval(ratios, 0.95))
                assert (found["mean"], found["ci95"]) == (found["best"]["all"]["mean"], found["best"]["all"]["ci95"])
    counts = {
        method: [
            compare(inputs.original, runs[method, seed].best, resamples=200).summary()["degraded"] for seed in (1, 2, 3)
        ]
        for method in ("fusionx", "fusellm")
    }
    assert comparison["degraded"]["fusionx"]["best"]["vs_target"]["raw"] == pytest.approx(sum(counts["fusionx"]) / 3)
    ratio = sum(counts["fusionx"]) / sum(counts["fusellm"])
    assert comparison["degraded_ratio_to_fusellm"] == pytest.approx(ratio)


def test_ensembles_are_told_beside_models_of_the_same_split(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    shown = json.loads((folder / "results.json").read_text())["ensembles"]
    assert (shown["split"], shown["report_split"], shown["unaligned"]) == ("validation", "test", 3)
    assert inputs.ensembles is not None
    groups = {"corpus": inputs.train_domains, "absent": inputs.absent_domains}
    for group, domains in groups.items():
        for kind in ("candidates", "ensembles"):
            for name, found in inputs.ensembles.scores[kind].items():
                figures = shown[kind][name]["groups"][group]
                assert figures["perplexity"] == pytest.approx(geometric(found["domains"], domains))
        for name, evaluations in inputs.ensembles.models.items():
            figures = shown["models"][name]["groups"][group]
            expected = sum(macro(evaluation, domains) for evaluation in evaluations) / len(evaluations)
            assert figures["bits_per_byte"] == pytest.approx(expected)
        for name, of_seeds in inputs.ensembles.teachers.items():
            expected = sum(one["domains"][domain]["bits_per_byte"] for one in of_seeds for domain in domains)
            found_bits = shown["teachers"][name]["groups"][group]["bits_per_byte"]
            assert found_bits == pytest.approx(expected / len(of_seeds) / len(domains))
    text = (folder / "report.md").read_text()
    section = text[text.index("## Ensembles and other models") : text.index("## Learning-rate")]
    for row in (
        *SOURCE_ROWS,
        "Uniform average (ensemble)",
        "Oracle per token (ceiling)",
        "Fusion-X's teacher (mixture)",
        "Fusion-X (best step)",
        "merged",
    ):
        assert f"\n| {row} | " in section
    assert "of the validation split, because the test split" in section
    assert "scored from the aligned shards (by walk)" in section
    assert shown["alignment"] == "walk"
    assert "Bits per byte by domain, validation split" in section


def test_ensembles_of_the_reports_own_split_say_so_and_may_be_missing(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(methods=("ct",), seeds=(1,), bootstrap=100)
    assert inputs.ensembles is not None
    write_report(replace(inputs, ensembles=replace(inputs.ensembles, split="test")), tmp_path / "same")
    assert "is of the test split, like the tables above" in (tmp_path / "same" / "report.md").read_text()
    write_report(replace(inputs, ensembles=None), tmp_path / "none")
    assert "Ensembles and other models" not in (tmp_path / "none" / "report.md").read_text()


def test_curves_equal_recomputed_figures(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    curves = json.loads((folder / "results.json").read_text())["curves"]
    for run in inputs.runs:
        records = [record for record in run.log if record["event"] == "validation"]
        shown = curves[run.method][str(run.seed)]
        for record, figures in zip(records, shown, strict=True):
            assert figures["step"] == record["step"]
            assert figures["bits_per_byte"] == record["bits_per_byte"]
            assert figures["corpus_bits_per_byte"] == record["trained_bits_per_byte"]
            for name, domains in (("corpus", inputs.train_domains), ("absent", inputs.absent_domains)):
                expected = geometric(record["domains"], domains)
                assert figures[f"{name}_perplexity"] == pytest.approx(expected)


def test_curves_of_old_logs_and_of_a_run_that_diverged(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """An older log has no `trained_bits_per_byte`; a broken target's perplexity is infinite, which JSON cannot say."""
    inputs = make_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100)
    for record in inputs.runs[0].log:
        expected = record.pop("trained_bits_per_byte", None)
        if record["step"] == 0:
            assert summarize(inputs)["curves"]["ct"]["1"][0]["corpus_bits_per_byte"] == pytest.approx(expected)
    end = [record for record in inputs.runs[0].log if record["event"] == "validation"][-1]
    end["domains"]["books"]["perplexity"] = end["perplexity"] = math.inf
    end["bits_per_byte"] = math.nan
    write_report(replace(inputs, provenance={"a": math.nan, "b": [math.inf, 1.0]}), tmp_path)
    text = (tmp_path / "results.json").read_text()
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert results["provenance"] == {"a": None, "b": [None, 1.0]}
    assert results["curves"]["ct"]["1"][-1]["corpus_perplexity"] is None
    assert results["curves"]["ct"]["1"][-1]["absent_perplexity"] > 1


def test_no_curve_is_cut_off(make_inputs: MakeInputs) -> None:
    """One curve rises by a factor of 40, the other falls; every point lies inside the axes."""
    inputs = make_inputs(methods=("ct", "fusionx"), seeds=(1, 2), bootstrap=100)
    for run in inputs.runs:
        for record in run.log:
            for figures in record["domains"].values() if record["event"] == "validation" else ():
                figures["perplexity"] = 50 * (40 if run.method == "ct" else 0.2) ** (record["step"] / 400)
    drawn = {plot.name: plot for plot in plots(inputs, summarize(inputs))}
    for name in ("validation-corpus", "validation-absent"):
        area = re.search(r'<g id="patch_2">\s*<path d="([^"]+)"', drawn[name].svg)
        assert area is not None
        low, high = extent(area[1])
        curve = r'<path d="([^"]+L[^"]+)" clip-path="[^"]+" style="fill: none; [^"]*stroke: #(?:E69F00|0072B2)'
        lines = re.findall(curve,
                           drawn[name].svg, re.IGNORECASE)  # fmt: skip
        assert len(lines) == 2
        for line in lines:
            assert low <= extent(line)[0] < extent(line)[1] <= high
    assert "Continual training last 2000.00, 50.00 at step 0" in drawn["validation-corpus"].alt
    assert "Fusion-X last 10.00, 10.00 at step 400" in drawn["validation-absent"].alt


def extent(path: str) -> tuple[float, float]:
    heights = [float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", path)]
    return min(heights), max(heights)


def test_absent_domains_have_their_own_panel_only_where_there_are_some(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100, absent_domains=[])
    names = {plot.name for plot in plots(inputs, summarize(inputs))}
    assert "validation-corpus" in names
    assert "validation-absent" not in names


def test_without_a_domain_of_the_corpus_all_domains_are_judged(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(
        methods=("ct", "fusionx"), seeds=(1,), bootstrap=100, train_domains=["elsewhere"], absent_domains=[]
    )
    results = write_report(inputs, tmp_path)
    assert results["comparison"]["claim"] == "all"
    assert results["comparison"]["bpb_vs_ct"]["best"]["corpus"] is None
    assert "over all held-out domains" in results["verdict"][0]
    assert "corpus's own domains only" not in (tmp_path / "report.md").read_text()


def test_the_page_says_how_the_best_step_was_chosen(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text().replace("&#39;", "'")
        assert "best step is chosen on validation text of the corpus's own domains only" in text


CSV_ADDRESS = "data:text/csv;charset=utf-8;base64,"


class Page(HTMLParser):
    """Collects what a page links to, its ids, and how many drawings it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.drawings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawings += tag == "svg"
        assert tag not in ("script", "link", "iframe", "img")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_page_is_self_contained(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    drawn = sorted(path.name for path in (folder / "plots").iterdir())
    assert page.drawings == len(drawn) == 8
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    encoded = [link.removeprefix(CSV_ADDRESS) for link in page.links if link.startswith(CSV_ADDRESS)]
    assert len(inside) + len(encoded) == len({*page.links})
    written = {path.read_bytes() for path in (folder / "tables" / "report").iterdir()}
    assert {base64.b64decode(one) for one in encoded} == written
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "a &lt;b&gt; &amp; c" in text


def test_markdown_links_existing_plots_and_even_tables(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    text = (folder / "report.md").read_text()
    linked = re.findall(r"\]\((plots/[^)]+)\)", text)
    assert len(linked) == 8
    assert all((folder / link).is_file() for link in linked)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_report_is_deterministic(full: tuple[ReportInputs, Path], tmp_path: Path) -> None:
    inputs, folder = full
    write_report(inputs, tmp_path)
    for path in sorted(folder.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_one_seed_has_no_interval(full: tuple[ReportInputs, Path], make_inputs: MakeInputs, tmp_path: Path) -> None:
    results = write_report(make_inputs(seeds=(1,), bootstrap=200), tmp_path)
    assert results["comparison"]["bpb_vs_ct"]["ci95"] is None
    assert results["comparison"]["note"] == ONE_SEED
    assert results["verdict"][-1] == ONE_SEED
    assert "in this one pair of runs" in results["verdict"][0]
    for name in ("report.md", "report.html"):
        for sign in ("interval over seeds", "±"):
            assert sign in (full[1] / name).read_text()
            assert sign not in (tmp_path / name).read_text()
        assert "one seed; interval over documents" in (tmp_path / name).read_text()


@pytest.mark.parametrize("methods", [("fusionx",), ("ct",), ("ct", "fusionx"), ()])
def test_missing_methods_still_give_a_report(methods: tuple[str, ...], make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(
        methods=methods,
        seeds=(1,),
        bootstrap=100,
        tuning=[],
        stages={},
        alignment={},
        fidelity={},
        calibration={},
        sources=[],
        absent_domains=[],
    )
    results = write_report(inputs, tmp_path)
    assert set(results["methods"]) == {"target", *methods}
    if methods == ("fusionx",):
        assert "without its baseline" in results["verdict"][0]
        assert results["comparison"]["bpb_vs_ct"] is None
        assert results["comparison"]["degraded_ratio_to_fusellm"] is None
    if "fusionx" not in methods:
        assert results["comparison"] is None
    assert (tmp_path / "report.html").stat().st_size > 4000


def test_no_tasks_no_validation_and_unknown_methods(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100)
    bare = {"tasks": {}, "items": {}}
    runs = [
        replace(
            run,
            best=replace(run.best, **bare),
            last=replace(run.last, **bare),
            log=[],
            method="top2" if run.method == "ct" else run.method,
        )
        for run in inputs.runs
    ]
    results = write_report(replace(inputs, original=replace(inputs.original, **bare), runs=runs), tmp_path)
    assert results["methods"]["top2"]["mean"]["best"]["skill_accuracy"] is None
    assert "Every skill" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([-0.05, -0.051, -0.049], "Fusion-X beats plain continual training"),
        ([0.05, 0.051, 0.049], "Fusion-X loses to plain continual training"),
        ([-0.05, 0.04, 0.02], "No difference between Fusion-X and plain continual training is shown"),
        ([0.0001, 0.0, -0.0001], "are equal"),
        ([-0.05], "Fusion-X is ahead of plain continual training in this one pair of runs"),
        ([0.05], "Fusion-X is behind plain continual training in this one pair of runs"),
    ],
)
def test_verdict_says_what_the_numbers_say(changes: list[float], words: str, make_inputs: MakeInputs) -> None:
    results = summarize(make_inputs(methods=("ct", "fusionx"), bootstrap=100))
    mean = sum(changes) / len(changes)
    results["comparison"]["bpb_vs_ct"]["best"]["corpus"] = {"mean": mean, "ci95": t_interval(changes, 0.95)}
    opening = verdict(results)[0]
    assert words in opening
    if abs(mean) > 0.0005:
        assert f"{abs(mean) * 100:.1f}\u00a0% {'lower' if mean < 0 else 'higher'}" in opening


def test_verdict_names_what_a_win_on_the_corpus_costs_elsewhere(make_inputs: MakeInputs) -> None:
    results = summarize(make_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100))
    results["comparison"]["bpb_vs_ct"]["best"] = {
        "corpus": {"mean": -0.2, "ci95": None}, "absent": {"mean": 0.174, "ci95": None},
        "all": {"mean": -0.01, "ci95": None},
    }  # fmt: skip
    opening = verdict(results)[0]
    assert "on the corpus's domains are 20.0\u00a0% lower" in opening
    assert "on domains absent from it they are 17.4\u00a0% higher" in opening


def test_verdict_names_every_other_method_that_was_trained(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(methods=("ct", "fusellm", "fusionx"), seeds=(1,), bootstrap=100)
    again = [replace(run, method="fusellm-walk") for run in inputs.runs if run.method == "fusellm"]
    results = summarize(replace(inputs, runs=[*inputs.runs, *again]))
    assert results["comparison"]["bpb_vs_fusellm-walk"] == results["comparison"]["bpb_vs_fusellm"]
    told = re.findall(r"lower than ([\w-]+)'s \(one seed; interval", verdict(results)[1])
    assert told == ["FuseLLM", "fusellm-walk"]
