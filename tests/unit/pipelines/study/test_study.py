"""Studies: their grids, what a training's log gives, and what table and figures make of it, failures included."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.config import load_config
from fusionx.contract.errors import ConfigError
from fusionx.eval.results.statistics import t_interval
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.study import STUDIES
from fusionx.pipelines.study import cells as study_cells
from fusionx.pipelines.study.cells import cell_config, study_job
from fusionx.pipelines.study.figures import figures
from fusionx.pipelines.study.grids import OF_METHODS, OF_ONE_METHOD, Cell, Study, make_study
from fusionx.pipelines.study.outcomes import Point, TrainingCourse, read_outcome
from fusionx.pipelines.study.recipe import NAME as RECIPE
from fusionx.pipelines.study.report import write_study
from fusionx.pipelines.study.results import CellOutcome, study_results
from fusionx.train.config import TrainJob
from fusionx.train.state.result import write_result

SEEDS = [0, 1]
GRIDS = [*OF_ONE_METHOD, *OF_METHODS]


@pytest.fixture(scope="module")
def demo(root: Path) -> FusionConfig:
    """With the map that one of the studies reads."""
    return load_config(FusionConfig, root / "configs" / "demo.yaml", ["align.methods=[walk,mined,exact]"])


@pytest.fixture
def job(demo: FusionConfig, tmp_path: Path) -> Callable[..., TrainJob]:
    """A cell's job without any data: `job(config, method, seed)`."""

    def make(config: FusionConfig, _: Layout, method: str, seed: int, learning_rate: float) -> TrainJob:
        folders = {model.id: model.id for model in config.models}
        return TrainJob(
            method_name=method, method=config.train.method(method), seed=seed, optimizer=config.train.optimizer,
            run=config.train.run, target="target", target_path="t", target_weights="w", tokens="tokens",
            aligned=folders, inputs={"tokens": "t"},
            output=str(tmp_path / "train" / method / str(seed)),
        )  # fmt: skip

    return make


def test_every_study_has_a_grid_and_a_title() -> None:
    assert {*GRIDS, RECIPE} == {*STUDIES}


@pytest.mark.parametrize("name", GRIDS)
def test_cells_are_told_apart_compared_with_a_cell_and_possible(demo: FusionConfig, name: str) -> None:
    study = make_study(name, demo)
    labels = [cell.labels for cell in study.cells]
    assert study.name == name
    assert len(set(labels)) == len(labels)
    for cell in study.cells:
        assert len(cell.labels) == len(study.columns)
        assert cell.against is None or cell.against in labels
        assert cell_config(demo, study.name, cell).train.methods == [cell.method]


def test_a_cell_changes_its_own_fields_and_keeps_the_runs(demo: FusionConfig) -> None:
    """The run overrides the method's lambda_fuse."""
    overrides = {"fusionx-network": {"lambda_fuse": 3, "selection": {"metric": "noise"}}}
    config = demo.model_copy(update={"train": demo.train.model_copy(update={"overrides": overrides})})
    study = make_study("tau", config)
    method = cell_config(config, study.name, study.cells[0]).train.method("fusionx-network")
    assert (method.lambda_fuse, method.selection.metric, method.selection.tau) == (3, "noise", 0.05)


def test_equal_cells_are_one_training(demo: FusionConfig, job: Callable[..., TrainJob]) -> None:
    """Table 1 lists the whole method six times."""
    study = make_study("table1", demo)
    jobs = [job(cell_config(demo, study.name, cell), None, cell.method, 0, 1e-3) for cell in study.cells]
    assert (len(jobs), len({one.digest() for one in jobs})) == (18, 13)


def test_sources_are_added_in_order(demo: FusionConfig) -> None:
    study = make_study("sources", demo)
    found = {cell.labels: [m.id for m in cell_config(demo, study.name, cell).models] for cell in study.cells}
    assert found["2", "fusionx"] == ["target", "coder"]
    assert found["3", "fusellm"] == ["target", "coder", "writer"]
    assert found["4", "fusionx"] == [model.id for model in demo.models]


def test_amounts_are_validated_equally_often(demo: FusionConfig) -> None:
    study = make_study("data", demo)
    for cell in study.cells:
        train = cell_config(demo, study.name, cell).train
        length = train.optimizer.data_share * train.optimizer.epochs / demo.train.optimizer.epochs
        assert train.run.validate_every == pytest.approx(length * demo.train.run.validate_every, abs=0.5)


def test_both_baselines_stand_at_every_amount(demo: FusionConfig, job: Callable[..., TrainJob]) -> None:
    study = make_study("data", demo)
    places: dict[tuple[str, ...], list[str]] = {}
    for cell in study.cells:
        places.setdefault(cell.labels[:2], []).append(cell.method)
        assert cell.against == (None if cell.method == "ct" else (*cell.labels[:2], "ct"))
    assert len(places) == 12
    assert {*map(tuple, places.values())} == {("ct", "fusellm", "fusionx")}
    (figure,) = figures(made(study, demo, job))
    for line in ("fusellm, 3 epochs", "fusionx, 3 epochs"):
        assert line in figure.svg


def test_entries_that_are_all_stored_are_no_limit(demo: FusionConfig) -> None:
    ks = {cell.labels[2]: cell.changes["k"] for cell in make_study("align", demo).cells}
    assert ks == {"32": None, "10": 10}


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("tau", "ct", "--method"),
        ("tau", "fusionx", "a method with a selection network"),
        ("data", "ct", "a method with a teacher"),
        ("efficiency", "fusionx", "changes none"),
        ("align", "paper", "study align, cell"),
    ],
)
def test_what_cannot_be_studied_is_refused(demo: FusionConfig, name: str, method: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        [cell_config(demo, study.name, cell) for study in [make_study(name, demo, method)] for cell in study.cells]


def test_every_alignment_is_tried_and_compared_with_the_walk(demo: FusionConfig) -> None:
    study = make_study("align", demo)
    assert study.columns == ("Alignment", "Tail", "k")
    read = {
        cell.labels[0]: cell_config(demo, study.name, cell).train.method(cell.method).alignment for cell in study.cells
    }
    assert read == {"walk": "walk", "mined": "mined", "exact": "exact"}
    assert {cell.against for cell in study.cells} == {("walk", "bucket", "32")}


def test_an_alignment_that_the_run_does_not_make_is_named(demo: FusionConfig) -> None:
    config = demo.model_copy(update={"align": demo.align.model_copy(update={"methods": ["walk"]})})
    study = make_study("align", config)
    with pytest.raises(ConfigError, match=r"study align, cell mined[\s\S]*align\.methods"):
        [cell_config(config, study.name, cell) for cell in study.cells]


def test_sources_need_a_source(demo: FusionConfig) -> None:
    with pytest.raises(ConfigError, match="sources"):
        make_study("sources", demo.model_copy(update={"sources": []}))


def write_log(output: Path, records: list[dict[str, Any]]) -> None:
    output.mkdir(parents=True)
    (output / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_runs_own_training_is_read(
    demo: FusionConfig, job: Callable[..., TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a cell that differs from it gets a folder of its own, named by content."""
    monkeypatch.setattr(study_cells, "make_job", job)
    layout = Layout(str(tmp_path))
    mine = job(demo, layout, "fusionx", 0, 1e-3)
    assert study_job(demo, layout, "fusionx", 0, 1e-3).output.endswith(f"studies/trainings/fusionx-{mine.digest()}")
    write_log(Path(mine.output), [])
    write_result(Path(mine.output), {"job": mine.digest(), "config": mine.content()})
    assert study_job(demo, layout, "fusionx", 0, 1e-3) == mine
    study = make_study("tau", demo)
    other = study_job(cell_config(demo, study.name, study.cells[0]), layout, "fusionx", 0, 1e-3)
    assert other.output == layout.study_training("fusionx", other.digest())
    assert other.digest() != mine.digest()


def point(step: int, bits: float) -> Point:
    return Point(step, 10.0 * step, bits, bits + 1, 10 * bits, 0.25)


def outcome(*bits: float, chosen: float | None = 1.5) -> TrainingCourse:
    curve = [point(4 * number, value) for number, value in enumerate(bits)]
    weights = [(4 * number, {"target": 1.0, "coder": 3.0}) for number in range(len(bits))]
    return TrainingCourse(curve, min(curve, key=lambda one: one.corpus), chosen, weights if chosen else [])


def test_reached_lies_between_validations() -> None:
    found = outcome(4.0, 3.0, 2.0)
    assert found.reached(35.0) == (2.0, 20.0)
    assert found.reached(30.0) == (4.0, 40.0)
    assert found.reached(50.0) == (0.0, 0.0)
    assert found.reached(19.0) is None


def test_what_a_log_says(demo: FusionConfig, job: Callable[..., TrainJob]) -> None:
    mine = job(demo, None, "fusionx", 0, 1e-3)
    assert read_outcome(mine, ["a", "b"]) is None

    def validation(step: int, **bits: float) -> dict[str, Any]:
        domains = {name: {"bits_per_byte": value, "perplexity": value**2} for name, value in bits.items()}
        return {"event": "validation", "step": step, "trained_bits_per_byte": (bits["a"] + bits["b"]) / 2,
                "domains": domains}  # fmt: skip

    def step(number: int, **weight: float) -> dict[str, Any]:
        return {"event": "step", "step": number, "weight": weight, "selected": {"t": 0.5, "c": 1.0}}

    log = [validation(0, a=4, b=9, absent=3), step(2, t=0.2, c=0.8), validation(4, a=2, b=8, absent=5)]
    output = Path(mine.output)
    write_log(output, log)
    write_result(output, {"job": mine.digest(), "config": mine.content(), "best_step": 4, "tokens": 80, "steps": 4})
    found = read_outcome(mine, ["a", "b"])
    assert found is not None
    assert (found.start.corpus, found.start.worse) == (6.5, 0)
    assert found.best == found.last == Point(4, 80, 5.0, 5.0, pytest.approx(16.0), pytest.approx(1 / 3))
    assert (found.chosen, found.weights) == (1.5, [(2, {"t": 0.2, "c": 0.8})])


def made(study: Study, demo: FusionConfig, job: Callable[..., TrainJob], failed: tuple[int, ...] = ()) -> Any:
    """Results of invented trainings; those of the cells at `failed` have none."""
    cells = []
    for number, cell in enumerate(study.cells):
        jobs = [job(cell_config(demo, study.name, cell), None, cell.method, seed, 1e-3) for seed in SEEDS]
        low = 2 + 0.01 * number
        chosen = None if cell.method == "ct" else 1.5
        outcomes = [None if number in failed else outcome(3, low + 0.1 * seed, 2.5, chosen=chosen) for seed in SEEDS]
        cells.append(CellOutcome(cell, jobs, outcomes))
    return study_results(study, STUDIES[study.name], cells, {})


@pytest.mark.parametrize("failed", [(), (2,)], ids=["whole", "one failed"])
@pytest.mark.parametrize("name", GRIDS)
def test_every_study_is_shown(
    demo: FusionConfig, job: Callable[..., TrainJob], tmp_path: Path, name: str, failed: tuple[int, ...]
) -> None:
    study = make_study(name, demo)
    results = made(study, demo, job, failed)
    table, drawn = write_study(results, str(tmp_path))
    text = Path(table).read_text()
    assert drawn
    assert all(Path(path).read_text().startswith("<svg") for path in drawn)
    shown = len(study.cells) > 2 and bool(failed)
    assert ("failed" in text) == shown
    rows = [line for line in text.splitlines() if line.startswith("| " + study.cells[-1].labels[0])]
    assert rows
    assert json.loads((tmp_path / "results.json").read_text())["cells"][0]["trainings"].keys() == {"0", "1"}


def test_means_intervals_and_paired_changes(demo: FusionConfig, job: Callable[..., TrainJob], tmp_path: Path) -> None:
    results = made(make_study("tau", demo), demo, job)
    first, reference = results["cells"][0], results["cells"][2]
    assert first["best"]["corpus"]["per_seed"] == [2.0, 2.1]
    assert first["best"]["corpus"]["ci95"] == t_interval([2.0, 2.1], 0.95)
    assert first["change"]["per_seed"] == pytest.approx([2.0 / 2.02 - 1, 2.1 / 2.12 - 1])
    assert (first["same_as_against"], reference["same_as_against"]) == (False, True)
    table, _ = write_study(results, str(tmp_path))
    assert "| 0.15 | 2.0700 ± 0.6353 | the same |" in Path(table).read_text()


def test_a_seed_that_failed_leaves_the_mean_of_the_others(demo: FusionConfig, job: Callable[..., TrainJob]) -> None:
    study = replace(
        make_study("tau", demo), cells=[Cell(("0.1",), "fusionx", against=("0.2",)), Cell(("0.2",), "paper")]
    )
    jobs = [[job(demo, None, cell.method, seed, 1e-3) for seed in SEEDS] for cell in study.cells]
    outcomes = [[outcome(3, 2.2), None], [outcome(3, 2.0), outcome(3, 1.0)]]
    found = [CellOutcome(*of_cell) for of_cell in zip(study.cells, jobs, outcomes, strict=True)]
    results = study_results(study, "", found, {})
    assert results["cells"][0]["failed"] == [1]
    assert results["cells"][0]["change"]["per_seed"] == [pytest.approx(0.1)]


def test_nothing_finished_is_a_table_without_a_figure(
    demo: FusionConfig, job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    study = make_study("lambda", demo)
    results = made(study, demo, job, failed=tuple(range(len(study.cells))))
    assert figures(results) == []
    table, _ = write_study(results, str(tmp_path))
    assert Path(table).read_text().count("failed") == len(study.cells)
