"""The report's pages in chromium: read with any eyes at any width, and what data says is only ever shown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, IN_ATTRIBUTES, SCRIPTS
from browser import SCHEMES, WIDTHS, Browser

from fusionx.eval.report.inputs import Ensembles
from fusionx.eval.report.interference_report import (
    EvaluatedModel,
    InterferenceInputs,
    interference_results,
    terminal_text,
    write_interference,
)
from fusionx.eval.report.pages import ReportInputs, write_report
from fusionx.eval.report.terminal import summary_text

MakeInputs = Callable[..., ReportInputs]
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def small(make_inputs: MakeInputs, **changes: Any) -> ReportInputs:
    """Everything that a report can have, and no more of it than that: axe looks at every cell."""
    full = make_inputs(methods=("ct", "fusionx"), seeds=(1,), bootstrap=100)
    sources = [full.target, "neox-code"]
    domains = ["", *full.train_domains[:2]]
    fidelity = {id: {domain: full.fidelity["walk"][id][domain] for domain in domains} for id in sources}
    kept = {
        "fidelity": {"walk": fidelity},
        "alignment": {"walk": {id: full.alignment["walk"][id] for id in sources}},
        "calibration": {"walk": {id: full.calibration["walk"][id] for id in sources}},
        "sources": full.sources[:1],
    }
    return replace(full, **{**kept, **changes})


@pytest.fixture(scope="module")
def page(make_inputs: MakeInputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(small(make_inputs), folder)
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_can_be_read_by_everyone(width: int, scheme: str, page: str, browser: Browser) -> None:
    browser.open(page, width, scheme)
    assert browser.overflow() == 0
    browser.unfold()
    assert browser.overflow() == 0
    assert browser.violations() == []
    assert browser.requests == []


def test_the_report_can_be_heard(page: str, browser: Browser) -> None:
    """By a screen reader: the answers first, nothing without a name, and in words what others see by colour."""
    browser.open(page)
    browser.unfold()
    heard = browser.heard()
    headings = [name for role, name in heard if role == "heading"]
    assert headings[1:3] == ["Did it help?", "Where did it hurt?"]
    levels = browser.ask("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.nodeName[1]))")
    assert len(levels) == len(headings)
    assert levels[0] == 1
    assert all(1 < below <= above + 1 for above, below in pairwise(levels)), "a level is left out"
    for tag, role in (("table", "table"), ("figure svg", "image"), ("th[scope=row]", "rowheader"), ("a", "link"),
                      ("th[scope=col]", "columnheader"), ("summary", "DisclosureTriangle")):  # fmt: skip
        shown = browser.ask(f"document.querySelectorAll('{tag}').length")
        assert [one for one, _ in heard].count(role) == shown > 0, f"a {role} has no name"
    pictures = [name for role, name in heard if role == "image"]
    assert all(re.search(r"\d", name) for name in pictures), "a picture tells nothing of what it shows"
    said = Counter(name for role, name in heard if role == "StaticText")
    assert said["worse"] == browser.ask("document.querySelectorAll('td.worse').length") > 0
    assert said["best"] == browser.ask("document.querySelectorAll('td.best').length") > 0
    assert "▲" not in said


def attacked(inputs: ReportInputs, shift: int) -> ReportInputs:
    """Every name that data or a user can give is an attack; another one with every `shift`."""
    names: list[str] = [*inputs.original.domains, *inputs.original.tasks, *(source.id for source in inputs.sources)]
    names += [id for id in inputs.fidelity["walk"] if id not in names]
    evil = {name: f"{ATTACKS[(place + shift) % len(ATTACKS)]} {place}" for place, name in enumerate(names)}
    everything = "\n".join(ATTACKS)
    fields: dict[str, Any] = {
        of.name: _attacked(getattr(inputs, of.name), evil) for of in dataclass_fields(inputs) if of.name != "ensembles"
    }
    assert inputs.ensembles is not None
    recommended = {
        "kind": "method", "name": "fusionx", "seed": 1, "bits_per_byte": 1.0, "claim": "corpus", "folder": everything,
        "vs_target": {"mean": -0.1, "interval": None},
        "runner_up": {"kind": "method", "name": "ct", "bits_per_byte": 2.0},
        "best_source": {"name": everything, "bits_per_byte": 1.0, "vs_model": {"mean": -0.1, "interval": None}},
        "all": {"methods": {"fusionx": {"per_seed": {"1": 1.0}}}}, "confidence": 0.95,
    }  # fmt: skip
    return ReportInputs(
        **fields
        | {
            "title": everything,
            "config": {"name": everything, everything: [everything]},
            "provenance": {"one": everything, everything: {"two": everything}},
            "command": everything,
            "recommendation": recommended,
            "stages": {f"{attack} stage": {"seconds": 1.0} for attack in ATTACKS},
            "ensembles": Ensembles(**_attacked(vars(inputs.ensembles), evil)),
        }
    )


def _attacked(value: Any, evil: dict[str, str]) -> Any:
    if isinstance(value, dict):
        said = dict.fromkeys(("prompt", "text", "written"), "\n".join(ATTACKS)) if "written" in value else {}
        return {evil.get(key, key): said.get(key) or _attacked(item, evil) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_attacked(item, evil) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**_attacked(vars(value), evil))
    return evil.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module", params=[0, 11, 22])
def hostile(request: pytest.FixtureRequest, make_inputs: MakeInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_report(attacked(small(make_inputs), request.param), folder)
    return folder


def test_no_script_in_data_runs_on_the_report(hostile: Path, browser: Browser) -> None:
    """Without the page's own policy, which is a second wall behind the first."""
    browser.open((hostile / "report.html").read_text(), obeying=False)
    assert browser.scripts_that_ran() == 0
    assert browser.overflow() == 0
    assert browser.requests == []
    assert "1337" not in browser.ask("document.body.innerText")
    for figure in sorted((hostile / "plots").glob("*.svg")):
        browser.open(figure.read_text(), obeying=False, suffix="svg")
        assert browser.ask("document.documentElement.nodeName") == "svg", f"{figure.name} is no XML"
        assert browser.scripts_that_ran() == 0, figure.name
        assert browser.requests == []


def test_one_attack_that_is_not_escaped_is_counted_and_stopped_by_the_pages_policy(
    hostile: Path, browser: Browser
) -> None:
    page = (hostile / "report.html").read_text()
    for attack in SCRIPTS[4:5]:
        before, found, after = page.rpartition(escape(attack))
        assert found
        wrong = before + attack + after
        browser.open(wrong, obeying=False)
        assert browser.scripts_that_ran() == 1
        browser.open(wrong)
        assert browser.scripts_that_ran() == 0


def test_the_markdown_report_shows_what_it_is_told(hostile: Path, browser: Browser) -> None:
    """As a reader with HTML allowed makes a page of it."""
    markdown_it = pytest.importorskip("markdown_it")
    text = (hostile / "report.md").read_text()
    made = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    browser.open(f"<!doctype html><meta charset=utf-8>{made}", obeying=False)
    links = browser.ask("[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    assert sorted(links) == [f"tables/report/{path.name}" for path in sorted((hostile / "tables" / "report").iterdir())]
    browser.ask("document.querySelectorAll('a').forEach(one => one.removeAttribute('href'))")  # or a click leaves
    assert browser.scripts_that_ran() == 0
    pictures = browser.ask("[...document.querySelectorAll('img')].map(one => one.getAttribute('src'))")
    assert sorted(pictures) == [f"plots/{path.name}" for path in sorted((hostile / "plots").iterdir())]
    assert not UNSEEN.search(text)


def test_a_terminal_obeys_nothing_that_data_says(hostile: Path) -> None:
    results = json.loads((hostile / "results.json").read_text())
    assert UNSEEN.search(results["recommendation"]["folder"])
    assert not UNSEEN.search(summary_text(results))


def test_the_interference_page_is_as_good(make_inputs: MakeInputs, tmp_path: Path, browser: Browser) -> None:
    inputs = attacked(small(make_inputs), 0)
    models = [EvaluatedModel(f"{ATTACKS[place]} {run.method}", {1: run.best}) for place, run in enumerate(inputs.runs)]
    found = InterferenceInputs(ATTACKS[4], inputs.original, models, ct=models[0].name, bootstrap=100,
                               command="\n".join(ATTACKS))  # fmt: skip
    results = interference_results(found)
    write_interference(results, str(tmp_path))
    assert not UNSEEN.search(terminal_text(results))
    browser.open((tmp_path / "interference.html").read_text(), width=360, obeying=False)
    assert browser.overflow() == 0
    browser.unfold()
    assert browser.violations() == []
    assert browser.scripts_that_ran() == 0
    assert browser.requests == []


@pytest.mark.parametrize("attack", SCRIPTS)
def test_every_attack_is_one(attack: str, browser: Browser) -> None:
    """Else a count of none would mean nothing."""
    browser.open(f"<!doctype html><p>{attack}</p>", obeying=False)
    assert browser.scripts_that_ran() >= 1


@pytest.mark.parametrize("attack", IN_ATTRIBUTES)
def test_every_attack_on_attributes_is_one(attack: str, browser: Browser) -> None:
    quote = '"' if '"' in attack else "'"
    browser.open(f"<!doctype html><p title={quote}{attack}{quote}>text</p>", obeying=False)
    assert browser.scripts_that_ran() >= 1
