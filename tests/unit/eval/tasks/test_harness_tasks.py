"""A user's own tasks of lm-evaluation-harness: by name, group, tag or file; worked examples, limits and scores."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import fusionx.eval.benchmark_runner as runner_module
import fusionx.eval.tasks.harness_index as index_module
from fusionx.cli.main import main
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.models.hub import is_offline
from fusionx.eval.benchmark_runner import load_benchmark_tasks, run_benchmarks
from fusionx.eval.config import EvalConfig
from fusionx.eval.evaluate import evaluate_model
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import compare

pytest.importorskip("lm_eval")

ITEMS = 24
COLOURS = ["red", "blue"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_task(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def own(commonsense: Path, tmp_path: Path) -> Path:
    """A folder of task files: two tasks of three kinds of scores, their group and tag, and a text."""
    del commonsense  # it has data sets cached in a temporary folder
    folder = tmp_path / "own tasks"
    folder.mkdir()
    rows = [{"thing": f"thing {number}", "gold": number % 2} for number in range(ITEMS)]
    data = {"train": write_rows(tmp_path / "train.jsonl", rows[:4]), "test": write_rows(tmp_path / "test.jsonl", rows)}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test"}
    shots = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    colours = {"doc_to_text": "The {{thing}} is", "doc_to_choice": COLOURS, "doc_to_target": "gold", "tag": ["hues"]}
    write_task(folder, "colours", task="colours", output_type="multiple_choice", **common, **shots, **colours)
    filters = [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for name, pattern in (("strict", "^ is (.+)"), ("loose", "(foo|blue)"))
    ]
    generated = {"until": ["\n"], "max_gen_toks": 4}
    write_task(
        folder, "said", task="said", output_type="generate_until", **common, doc_to_text="The {{thing}}",
        doc_to_target="{{'blue'}}", generation_kwargs=generated, filter_list=filters,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{thing}} is blue"}
    metrics = [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    write_task(folder, "text", task="text", **common, **rolling, metric_list=metrics)
    write_task(folder, "mine", group="mine", task=["colours", "said"])
    return folder


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [make_model(folder / str(seed), "llama", 300, seed=seed, context=256) for seed in (0, 1)]


def config_of(folder: Path | None, *benchmarks: str, **settings: Any) -> EvalConfig:
    harness = {"include_path": None if folder is None else str(folder), **settings}
    return EvalConfig.model_validate({"benchmarks": list(benchmarks), "harness": harness, "device": "cpu"})


def prompts(config: EvalConfig) -> dict[str, list[str]]:
    return {task.name: [one.args[0] for one in task.task.instances] for task in load_benchmark_tasks(config)}


@pytest.fixture
def hub_is_silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Nobody has said that there is no network, and there is none; the hub's address."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    is_offline.cache_clear()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        yield constants.ENDPOINT
    is_offline.cache_clear()


@pytest.fixture
def little_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the harness' 14,000 tasks, which take ten seconds to read, those of one folder."""
    monkeypatch.setattr(index_module, "_whole_manager", lambda _: index_module._suite_manager(("arc",)))


def test_a_task_is_named_by_itself_its_group_its_tag_or_its_file(own: Path) -> None:
    expected = {"colours", "said"}
    assert set(prompts(config_of(own, "mine", limit=2))) == expected
    assert set(prompts(config_of(own, "colours", "said", limit=2))) == expected
    assert set(prompts(config_of(own, "hues", limit=2))) == {"colours"}
    by_file = load_benchmark_tasks(config_of(None, str(own / "colours.yaml"), limit=2))
    by_name = load_benchmark_tasks(config_of(own, "colours", limit=2))
    assert [task.prompts_digest for task in by_file] == [task.prompts_digest for task in by_name]


def test_limit_and_worked_examples_are_the_users(own: Path) -> None:
    plain = prompts(config_of(own, "mine", limit=3))
    assert plain["colours"] == ["The thing 0 is"] * 2 + ["The thing 1 is"] * 2 + ["The thing 2 is"] * 2
    shown = prompts(config_of(own, "mine", limit=3, few_shot={"colours": 2}))
    assert shown["colours"][4] == "The thing 0 is red\n\nThe thing 1 is blue\n\nThe thing 2 is"
    assert shown["said"] == plain["said"] == ["The thing 0", "The thing 1", "The thing 2"]
    # A number of the whole group, and one of a task in it, which goes first.
    both = prompts(config_of(own, "mine", limit=1, few_shot={"mine": 1, "said": 0}))
    assert (both["colours"][0], both["said"][0]) == ("The thing 0 is red\n\nThe thing 0 is", "The thing 0")
    with pytest.raises(ConfigError, match=r"few_shot") as caught:
        load_benchmark_tasks(config_of(own, "mine", limit=1, few_shot={"colors": 1}))
    assert caught.value.details["found"] == "colors"


def test_what_cannot_be_run_is_refused_by_name(own: Path, tmp_path: Path, little_harness: None) -> None:
    with pytest.raises(ConfigError, match="no such benchmark") as unknown:
        load_benchmark_tasks(config_of(own, "arc_eazy"))
    assert "arc_easy" in unknown.value.details["expected"]
    with pytest.raises(ConfigError, match="two benchmarks") as twice:
        load_benchmark_tasks(config_of(own, "mine", "said", limit=1))
    assert "said in mine" in twice.value.details["found"]
    with pytest.raises(ConfigError, match=r"include_path"):
        load_benchmark_tasks(config_of(tmp_path / "nowhere", "mine"))
    write_task(
        own, "unsafe", **yaml.safe_load((own / "said.yaml").read_text()) | {"task": "unsafe", "unsafe_code": True}
    )
    with pytest.raises(ConfigError, match="outside a sandbox"):
        load_benchmark_tasks(config_of(own, "unsafe"))
    write_task(own, "none", about="nothing")
    for file, problem in (("none.yaml", "defines no task"), ("missing.yaml", "no such task file")):
        with pytest.raises(ConfigError, match=problem) as caught:
            load_benchmark_tasks(config_of(None, str(own / file)))
        assert caught.value.details["file"] == str(own / file)
    (tmp_path / "said.json").write_text(json.dumps({"examples": [{"input": "a", "target": "b"}]}))
    clash = config_of(own, "said", limit=1).model_copy(update={"tasks": [str(tmp_path / "said.json")]})
    with pytest.raises(ConfigError, match="has the name of a benchmark's task"):
        load_benchmark_tasks(clash)


def test_data_that_are_not_there_are_refused_by_all_their_names(own: Path, little_harness: None) -> None:
    with pytest.raises(DataError, match="first of several") as caught:
        load_benchmark_tasks(config_of(own, "ai2_arc", "mine"))
    assert caught.value.details["field"] == "2 tasks: arc_challenge, arc_easy"
    assert caught.value.details["file"] == "allenai/ai2_arc"
    assert "eval.harness.data" in caught.value.details["remedy"]
    with pytest.raises(ConfigError, match=r"no local data"):
        load_benchmark_tasks(config_of(own, "arc_easy", "mine", data=str(own)))


@pytest.mark.parametrize("whole", ["lone.yaml", "changed"])
def test_without_a_network_a_data_set_of_the_hub_is_refused_at_once(
    own: Path,
    whole: str,
    hub_is_silent: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what only the harness takes apart, too: a file, and a group with changes to its tasks."""
    monkeypatch.setattr(index_module, "_whole_manager", index_module._include_manager)
    lone = yaml.safe_load((own / "colours.yaml").read_text()) | {"task": "lone", "dataset_path": "owner/hues"}
    write_task(own, "lone", **{key: value for key, value in lone.items() if key != "dataset_kwargs"})
    write_task(own, "changed", group="changed", task=[{"task": "lone", "num_fewshot": 1}, "colours"])
    name = str(own / whole) if whole.endswith(".yaml") else whole
    with pytest.raises(DataError, match="not on this machine, and the hub does not answer") as caught:
        load_benchmark_tasks(config_of(own, name, limit=2))
    assert (caught.value.details["file"], caught.value.details["field"]) == ("owner/hues", whole.removesuffix(".yaml"))
    assert "eval.harness.data" in caught.value.details["remedy"]
    printed = capsys.readouterr().err
    assert "Retrying" not in printed
    assert printed.count(hub_is_silent) == 1


def test_who_reads_from_the_hub_is_told_by_the_definitions(own: Path) -> None:
    local = yaml.safe_load((own / "colours.yaml").read_text())
    remote = {key: value for key, value in local.items() if key != "dataset_kwargs"} | {"tag": "far"}
    for number in (1, 2):
        task = {"task": f"remote{number}", "dataset_path": f"owner/{number}"}
        write_task(own, f"remote{number}", **remote | task)
    members = ["mine", {"task": "colours", "dataset_path": "json"}, {"group": "inner", "task": [{"task": "remote1"}]}]
    write_task(own, "nested", group="nested", task=members)
    write_task(own, "tagged", group="tagged", task=["far", {"task": "said", "dataset_kwargs": None}])
    manager = index_module._include_manager(str(own))
    found = {
        name: index_module.hub_data(manager.task_index[name].cfg, manager) for name in ("mine", "nested", "tagged")
    }
    assert found == {"mine": set(), "nested": {"owner/1"}, "tagged": {"owner/1", "owner/2", "json"}}


def test_a_task_of_the_harness_by_its_name_reads_local_data(
    own: Path, commonsense: Path, tmp_path: Path, little_harness: None
) -> None:
    (tmp_path / "data" / "arc_easy").mkdir(parents=True)
    (tmp_path / "data" / "arc_easy" / "arc_easy").symlink_to(commonsense / "cs" / "arc_easy")
    found = load_benchmark_tasks(config_of(own, "arc_easy", "colours", data=str(tmp_path / "data"), limit=2))
    assert [task.name for task in found] == ["arc_easy", "colours"], "tasks with files of their own need none there"
    in_suite = load_benchmark_tasks(config_of(None, "cs", data=str(commonsense), limit=2))
    assert found[0].prompts_digest == next(t.prompts_digest for t in in_suite if t.name == "arc_easy")


def test_a_finished_task_is_kept_under_whatever_name_it_is_asked_for(
    own: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "scores.json", models[0]
    assert run_benchmarks([model], config_of(own, "colours", limit=5), output) == 1
    assert run_benchmarks([model], config_of(own, "mine", limit=5), output) == 1
    scores = BenchmarkScores.load(output).tasks[str(model)]
    assert {name: (score.benchmark, score.n) for name, score in scores.items()} == {
        "colours": ("mine", 5),
        "said": ("mine", 5),
    }
    # The first filter's answers count; the other's figure is told.
    assert (scores["said"].metric, set(scores["said"].metrics)) == ("exact_match", {"exact_match", "exact_match,loose"})
    monkeypatch.setattr(runner_module, "load_model", None)  # nothing may get as far as loading a model
    assert run_benchmarks([model], config_of(own, "mine", limit=5), output) == 0
    # What the group has no more is left out, and the group's mean with it.
    write_task(own, "mine", group="mine", task=["said"])
    assert run_benchmarks([model], config_of(own, "mine", limit=5), output) == 0
    assert set(BenchmarkScores.load(output).tasks[str(model)]) == {"said"}


def test_a_score_that_is_no_mean_is_compared_by_its_number(
    own: Path, models: list[Path], chunks: list[dict[str, Any]], tmp_path: Path
) -> None:
    config, output = config_of(own, "text", limit=5), tmp_path / "scores.json"
    run_benchmarks(models, config, output)
    before, after = (evaluated(model, chunks, config, output) for model in models)
    figures = before.tasks["text"]
    assert (figures["metric"], figures["higher_is_better"], before.items["text"]) == ("byte_perplexity", False, [])
    assert before.skill_accuracy is None
    (unit,) = [unit for unit in compare(before, after, resamples=100).units if unit.kind == "task"]
    assert unit.degraded == (unit.model > unit.baseline)
    assert unit.loss == pytest.approx(unit.model / unit.baseline - 1)
    assert (unit.p_value, unit.share) == (1.0, False)


def evaluated(model: Path, chunks: list[dict[str, Any]], config: EvalConfig, scores: Path) -> Evaluation:
    found = Evaluation.from_dict(evaluate_model(model, chunks, config))
    return BenchmarkScores.load(scores).joined(found, config.benchmarks)


def test_a_task_that_got_worse_stands_in_the_interference_report(
    own: Path, models: list[Path], chunks: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, scores = config_of(own, "mine"), tmp_path / "scores.json"
    run_benchmarks(models[:1], config, scores)
    # What the first model says is right, so that it has all and another one, as random, about a half of them.
    says = BenchmarkScores.load(scores).tasks[str(models[0])]["colours"].items
    rows = [
        {"thing": f"thing {number}", "gold": number % 2 if right else 1 - number % 2}
        for number, right in enumerate(says)
    ]
    write_rows(tmp_path / "test.jsonl", rows)
    assert run_benchmarks(models, config, scores) == 4 - 1, "the other task of the first model is as it was"
    for name, model in zip(("target", "other"), models, strict=True):
        evaluate_model(model, chunks, config, tmp_path / f"{name}.json")
    monkeypatch.chdir(tmp_path)
    arguments = ["target.json", "other.json", "--benchmarks", "scores.json", "--output", "out", "--bootstrap", "100"]
    done = CliRunner().invoke(main, ["report", "interference", *arguments])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "interference.json").read_text())
    (unit,) = [unit for unit in results["interference"]["other"]["best"]["units"] if unit["name"] == "colours"]
    items = BenchmarkScores.load(scores).tasks[str(models[1])]["colours"].items
    assert (unit["baseline"], unit["model"]) == (1.0, sum(items) / ITEMS)
    assert unit["degraded_beyond_noise_seeds"] == 1
    row = next(line for line in (tmp_path / "out" / "interference.md").read_text().splitlines() if "| colours" in line)
    assert "| 100.0 % (86.2 to 100.0) |" in row
    assert "▲" in row
