"""The report's alignment section: what is left of each source, and the warnings of those that know less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionx.eval.report.pages import ReportInputs, write_report

MakeInputs = Callable[..., ReportInputs]


@pytest.fixture(scope="module")
def full(make_inputs: MakeInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportInputs, Path]:
    inputs, folder = make_inputs(methods=("ct",), seeds=(1,), bootstrap=100), tmp_path_factory.mktemp("report")
    write_report(inputs, folder)
    return inputs, folder


def alignment_section(text: str) -> str:
    return text[text.index("## What each source gave") : text.index("## Every domain")]


def test_what_alignment_costs_is_told_per_source_method_and_domain(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    section = alignment_section((folder / "report.md").read_text())
    overall, rest = section.split("**Positions by status**")
    for method, by_source in inputs.fidelity.items():
        of_method = rest[rest.index(f"**By domain, aligned by {method}**") :]
        for source, found in by_source.items():
            for domain, figures in found.items():
                name = f"| {domain} ({source}) | " if domain else f"| {source} ({method}) | "
                row = next(line for line in (of_method if domain else overall).splitlines() if line.startswith(name))
                own, aligned, cost, filled, right, blind, *_ = (cell.strip("* ▲") for cell in row.split("|")[2:])
                shown = (float(value) for value in (own, aligned, cost, filled))
                keys = [f"{of}_bits_per_byte" for of in ("own", "aligned", "filled")]
                expected = [figures[key] for key in (keys[0], keys[1], "cost", keys[2])]
                assert list(shown) == pytest.approx(expected, abs=6e-4)
                assert (right, blind) == ("41.0 %", "39.0 %")
                less = figures["aligned_bits_per_byte"] > by_source["target-gpt2"][domain]["aligned_bits_per_byte"]
                assert ("▲" in row) == less
    assert (
        "| neox-code (walk) | 1.3833 | 1.3853 | **+0.0020** | 1.3843 | 41.0 % | 39.0 % | +0.0833 ▲ | 4 of 6 |"
        in overall
    )
    assert (
        "| llama-science (walk) | 1.5000 | 1.5020 | **+0.0020** | 1.5010 | 41.0 % | 39.0 % | +0.2000 ▲ | 0 of 6 ▲ |"
        in overall
    )
    assert "](plots/fidelity.svg)" in section


def test_calibration_is_one_folded_table_with_the_target_first(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    section = alignment_section((folder / "report.md").read_text())
    rows = section[section.index("**Calibration by token length") :].splitlines()[2:]
    assert rows[0].startswith("| Source | 1 B | 2 B |")
    assert rows[0].endswith("| 9 B | 10 B and more |")
    assert [row.split("|")[1].strip() for row in rows[2:7]] == [
        "target-gpt2 (itself)", "neox-code (own tokens)", "neox-code (walk)", "neox-code (mined)",
        "llama-science (own tokens)",
    ]  # fmt: skip
    assert rows[4].startswith("| neox-code (walk) | 1.11 | 1.08 |")
    assert rows[4].endswith("| 0.87 | – |")
    assert "<details><summary>Calibration by token length" in (folder / "report.html").read_text()
    shown = json.loads((folder / "results.json").read_text())
    assert shown["calibration"] == inputs.calibration
    assert shown["fidelity"] == inputs.fidelity


def test_the_page_points_at_the_warnings_that_come_first_in_the_section(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    results = json.loads((folder / "results.json").read_text())
    found = results["warnings"]
    assert found == [
        "neox-code knows this text worse than the target: 1.39 against 1.30 bits per byte; it can teach little here. "
        "It is worse in 2 of 6 domains: stories, science.",
        "llama-science is better than the target in no domain: 1.50 against 1.30 bits per byte; it cannot teach.",
        "phi-stories knows this text better than the target (1.17 against 1.30 bits per byte), but worse in 1 of 6 "
        "domains: stories.",
        "Aligned by mined, phi-stories is worse than the target: 1.53 against 1.50 bits per byte; so it can teach "
        "little.",
    ]
    text = (folder / "report.md").read_text()
    lines = alignment_section(text).splitlines()
    assert lines[2:4] == ["> **Warning**", ">"]
    assert lines[4 : 4 + len(found)] == [f"> - {sentence}" for sentence in found]
    pointer = "4 remarks on sources that know this text worse than the target"
    assert f"> **Warning** {pointer}\n" in text[: text.index("## ")]
    page = (folder / "report.html").read_text()
    assert page.count('<div class="warnings">') == 1
    first = page.index(f'{pointer}: <a href="#alignment">')
    assert first < page.index("<nav") < page.index('<section id="alignment">') < page.index('<div class="warnings">')


def test_without_a_target_to_compare_with_there_is_no_warning(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(methods=("ct",), seeds=(1,), bootstrap=100, target="not aligned")
    assert write_report(inputs, tmp_path)["warnings"] == []
    text = (tmp_path / "report.md").read_text()
    assert "Warning" not in text
    assert "| neox-code (walk) | 1.3833 | 1.3853 | **+0.0020** | 1.3843 | 41.0 % | 39.0 % | – | – |" in text
    assert "Warning" not in (tmp_path / "report.html").read_text().split("</style>")[1]


def test_a_source_of_which_nothing_is_judged_has_empty_cells(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs(methods=("ct",), seeds=(1,), bootstrap=100)
    inputs.fidelity["walk"]["neox-code"] = {}
    del inputs.fidelity["walk"]["phi-stories"]["books"]
    write_report(inputs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| neox-code (walk) | – | – | – | – | – | – | – |" in text
    assert "| books (phi-stories) | – | – | – | – | – |" in text
    assert "worse in 1 of 5 domains: stories" in text
