"""The public benchmarks through lm-evaluation-harness: prompts, scores, resumption, comparison, and bad input."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fusionx.eval.benchmark_runner as harness_module
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.sealed import write_sealed
from fusionx.eval.benchmark_runner import run_benchmarks
from fusionx.eval.config import EvalConfig, HarnessConfig
from fusionx.eval.evaluate import evaluate_model
from fusionx.eval.models.loaded_model import load_model
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import compare
from fusionx.eval.tasks.harness_index import SUITES
from fusionx.eval.tasks.harness_tasks import load_benchmarks

pytest.importorskip("lm_eval")

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED_BBH = ROOT.parent / "shared" / "bbh"
needs_published_bbh = pytest.mark.skipif(not PUBLISHED_BBH.is_dir(), reason="BIG-Bench-Hard's own files are not here")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(commonsense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small local folder of every benchmark, in the format of the real ones."""
    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copytree(commonsense / "cs", folder / "cs")
    for name in names_of("bbh_cot_fewshot_", "bbh/cot_fewshot"):
        examples = [{"input": f"True and {word} is", "target": word} for word in ("True", "False")]
        (folder / "bbh").mkdir(exist_ok=True)
        (folder / "bbh" / f"{name}.json").write_text(json.dumps({"canary": "a", "examples": examples}))
    question = {"question": " How many? ", "choices": ["one", "two", "three", "four"]}
    for name in names_of("mmlu_", "mmlu/default"):
        for split, count in (("dev", 5), ("test", 3)):
            rows = [{**question, "subject": name, "answer": number % 4} for number in range(count)]
            write_rows(folder / "mmlu" / name / f"{split}.jsonl", rows)
    return folder


def names_of(prefix: str, place: str) -> list[str]:
    """The harness' tasks of a folder, without their prefix."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent / place
    found = lm_eval.tasks.TaskManager(include_path=root, include_defaults=False).all_subtasks
    return [name.removeprefix(prefix) for name in found]


@pytest.fixture(scope="module")
def arc(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / "cs" / "arc_easy" / "test.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models whose context takes commonsense and MMLU prompts, and the end of BBH's."""
    folder = tmp_path_factory.mktemp("models")
    return [make_model(folder / str(seed), "llama", 300, seed=seed, context=512, bos=seed == 1) for seed in (0, 1)]


def config_of(data: Path | None, *benchmarks: str, **settings: Any) -> EvalConfig:
    harness = {"data": None if data is None else str(data), "max_gen_toks": 4, **settings}
    return EvalConfig.model_validate({"benchmarks": list(benchmarks), "harness": harness, "device": "cpu"})


def prompts(data: Path | None, benchmark: Any, **settings: Any) -> dict[str, list[str]]:
    tasks = load_benchmarks([benchmark], config_of(data, benchmark, **settings).harness)
    return {task.name: [instance.args[0] for instance in task.task.instances] for task in tasks}


def test_commonsense_prompts_are_the_harness_own(data: Path) -> None:
    found = prompts(data, "cs")
    assert set(found) == set(SUITES["cs"].tasks)
    assert found["arc_easy"][0] == "Question: Which of the animals number 0 jumps over the lazy dog?\nAnswer:"
    assert found["boolq"][0] == "The sun is shining.\nQuestion: is it a fine day?\nAnswer:"
    assert found["hellaswag"][0] == "Jumping: A fox is seen. The fox"
    assert found["openbookqa"][0] == "The sun is"
    # Partial evaluation: both options stand in the prompt, and what follows them is scored.
    assert found["winogrande"][:2] == ["The fox beat the dog as fox", "The fox beat the dog as dog"]


def test_mmlu_prompts_are_five_shot(data: Path) -> None:
    found = prompts(data, "mmlu", limit=1)
    assert len(found) == 57
    prompt = found["mmlu_abstract_algebra"][0]
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    question = "How many?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    shots = "".join(f"{question} {answer}\n\n" for answer in "ABCDA")
    assert prompt == head + shots + question


def test_bbh_prompts_are_worked_examples(data: Path) -> None:
    found = prompts(data, "bbh")
    assert len(found) == 27
    prompt = found["bbh_cot_fewshot_boolean_expressions"][1]
    assert prompt.startswith(
        "Evaluate the result of a random Boolean expression.\n\n"
        "Q: not ( ( not not True ) ) is\nA: Let's think step by step.\nRemember that (i) expressions"
    )
    assert prompt.count("So the answer is") == 3
    assert prompt.endswith("So the answer is True.\n\nQ: True and False is\nA: Let's think step by step.\n")


@needs_published_bbh
def test_published_bbh_files_give_the_published_prompts() -> None:
    tasks = load_benchmarks(["bbh"], HarnessConfig(data=str(PUBLISHED_BBH.parent), limit=1))
    assert len(tasks) == 27
    assert sum(len(task.task.eval_docs) for task in tasks) == 6511
    different = set()
    for task in tasks:
        name = task.name.removeprefix("bbh_cot_fewshot_")
        published = (PUBLISHED_BBH / "cot-prompts" / f"{name}.txt").read_text().split("-----\n", 1)[1].strip()
        first = json.loads((PUBLISHED_BBH / f"{name}.json").read_text())["examples"][0]["input"]
        expected = f"{published}\n\nQ: {first}\nA: Let's think step by step.\n"
        if task.task.instances[0].args[0] != expected:
            different.add(name)
    # The harness puts a new line where the published prompt has a space.
    assert different == {"sports_understanding"}
    assert tasks[0].prompts_digest == "4ae6c149730849ce"


@needs_published_bbh
def test_published_bbh_runs(models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    assert run_benchmarks(models[:1], config_of(PUBLISHED_BBH.parent, "bbh", limit=1), output) == 27
    assert {score.n for score in BenchmarkScores.load(output).tasks[str(models[0])].values()} == {1}


def test_a_prompt_digest_is_stable_and_of_the_content(data: Path, arc: list[dict[str, Any]], tmp_path: Path) -> None:
    def digests(folder: Path, **settings: Any) -> dict[str, str]:
        tasks = load_benchmarks(["cs"], config_of(folder, "cs", **settings).harness)
        return {task.name: task.prompts_digest for task in tasks}

    expected = digests(data)
    assert expected["arc_easy"] == "c9c11918ae987464"
    assert len(set(expected.values())) == 6
    shutil.copytree(data / "cs", tmp_path / "cs")
    assert digests(tmp_path) == expected, "not of the place"
    assert digests(data, batch_size=2) == expected
    assert digests(data, limit=2)["arc_easy"] != expected["arc_easy"]
    # Another right answer is another task, though the prompts are the same.
    write_rows(tmp_path / "cs" / "arc_easy" / "test.jsonl", [{**arc[0], "answerKey": "B"}, *arc[1:]])
    changed = digests(tmp_path)
    assert {name for name in expected if changed[name] != expected[name]} == {"arc_easy"}


def test_hub_parquet_files_give_the_same_prompts(data: Path, arc: list[dict[str, Any]], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(data / "cs", tmp_path / "cs")
    (tmp_path / "cs" / "arc_easy" / "test.jsonl").unlink()
    for number in range(2):
        rows = pa.Table.from_pylist(arc[6 * number : 6 * number + 6])
        pq.write_table(rows, tmp_path / "cs" / "arc_easy" / f"test-0000{number}-of-00002.parquet")
    assert prompts(tmp_path, "cs") == prompts(data, "cs")


def log_likelihood(loaded: Any, prompt: str, continuation: str) -> float:
    start = loaded.tokenizer(prompt)["input_ids"]
    ids = loaded.tokenizer(prompt + continuation)["input_ids"]
    with torch.no_grad():
        scores = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(scores[place - 1, ids[place]] for place in range(len(start), len(ids))))


def test_scores_are_those_of_the_likeliest_choice_per_character(
    data: Path, arc: list[dict[str, Any]], models: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    assert run_benchmarks(models, config_of(data, "cs", batch_size=5), output) == 12
    for folder in models:
        score = BenchmarkScores.load(output).tasks[str(folder)]["arc_easy"]
        loaded = load_model(folder, "cpu")
        expected = []
        for row in arc:
            prompt, texts = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
            likelihoods = [log_likelihood(loaded, prompt, f" {text}") / len(text) for text in texts]
            expected.append(int(likelihoods.index(max(likelihoods)) == "ABCD".index(row["answerKey"])))
        assert score.items == expected
        assert (score.n, score.metric, score.truncated) == (12, "acc_norm", 0)
        mean = sum(expected) / 12
        assert score.score == pytest.approx(mean)
        assert score.stderr == pytest.approx((mean * (1 - mean) / 11) ** 0.5)
        assert set(score.metrics) == {"acc", "acc_norm"}
    content = json.loads(output.read_text())["models"][str(models[0])]
    assert set(content["tasks"]) == set(SUITES["cs"].tasks)
    assert content["benchmarks"]["cs"]["tasks"] == 6
    assert content["tasks"]["boolq"]["version"] == content["tasks"]["arc_easy"]["version"] != ""


def test_generated_answers_are_matched_exactly(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    def answers(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return ["True and False. So the answer is False." for _ in requests]

    monkeypatch.setattr(HFLM, "generate_until", answers)
    run_benchmarks(models[:1], config_of(data, "bbh"), tmp_path / "scores.json")
    scores = BenchmarkScores.load(tmp_path / "scores.json").tasks[str(models[0])]
    assert all(score.items == [0, 1] for score in scores.values())
    assert {score.metric for score in scores.values()} == {"exact_match"}


def test_a_prompt_longer_than_the_context_is_counted(data: Path, models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    run_benchmarks(models[:1], config_of(data, "bbh", limit=1), output)
    scores = BenchmarkScores.load(output).tasks[str(models[0])]
    assert {(score.truncated, score.n, score.stderr) for score in scores.values()} == {(1, 1, None)}


def test_mmlu_runs(data: Path, models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    assert run_benchmarks(models[:1], config_of(data, "mmlu", limit=2), output) == 57
    scores = BenchmarkScores.load(output).tasks[str(models[0])]
    assert {(score.n, score.metric, len(score.items), score.truncated) for score in scores.values()} == {
        (2, "acc", 2, 0)
    }


def test_a_stopped_run_goes_on_and_a_finished_task_is_not_run_again(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, resumed = config_of(data, "cs"), tmp_path / "whole.json", tmp_path / "resumed.json"
    run_benchmarks(models, config, whole)
    ran: list[str] = []
    run_one = harness_module._run

    def stopping(model: Any, task: Any, *rest: Any) -> Any:
        if len(ran) == 8:
            raise KeyboardInterrupt
        ran.append(task.name)
        return run_one(model, task, *rest)

    monkeypatch.setattr(harness_module, "_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(models, config, resumed)
    monkeypatch.setattr(harness_module, "_run", run_one)
    assert run_benchmarks(models, config, resumed) == 12 - 8
    assert resumed.read_bytes() == whole.read_bytes()

    monkeypatch.setattr(harness_module, "_harness_model", None)  # nothing may get as far as loading a model
    assert run_benchmarks(models, config, resumed) == 0
    copied = shutil.copytree(models[0], tmp_path / "the same weights elsewhere")
    assert run_benchmarks([*models, copied], config, resumed) == 0
    scores = BenchmarkScores.load(resumed)
    assert scores.tasks[str(copied)] == scores.tasks[str(models[0])]
    with pytest.raises(TypeError):
        run_benchmarks(models, config_of(data, "cs", limit=2), resumed)
    half = config.model_copy(update={"dtype": "bfloat16"})
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {})  # then it is float32 again
    assert run_benchmarks(models, half, resumed) == 0
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(TypeError):
        run_benchmarks(models, half, resumed)


def evaluated(folder: Path, chunks: list[dict[str, Any]], config: EvalConfig, scores: Path) -> Evaluation:
    result = Evaluation.from_dict(evaluate_model(folder, chunks, config))
    return BenchmarkScores.load(scores).joined(result, config.benchmarks)


def test_interference_takes_benchmarks_like_any_other_task(
    data: Path, models: list[Path], chunks: list[dict[str, Any]], tmp_path: Path
) -> None:
    config, scores = config_of(data, "cs"), tmp_path / "scores.json"
    run_benchmarks(models, config, scores)
    before, after = (evaluated(folder, chunks, config, scores) for folder in models)
    units = {unit.name: unit for unit in compare(before, after, resamples=100).units if unit.kind == "task"}
    assert set(units) == set(SUITES["cs"].tasks)
    assert units["arc_easy"].difference == after.tasks["arc_easy"]["score"] - before.tasks["arc_easy"]["score"]
    assert sum(after.items["arc_easy"]) == pytest.approx(12 * after.tasks["arc_easy"]["score"])

    # Scores of other prompts, or of fewer tasks, are never compared.
    run_benchmarks(models[1:], config_of(data, "cs", limit=2), scores)
    other = evaluated(models[1], chunks, config, scores)
    with pytest.raises(DataError, match="different prompts") as caught:
        compare(before, other)
    assert caught.value.details["field"] == "arc_challenge"
    plain = Evaluation.from_dict(evaluate_model(models[1], chunks, config))
    with pytest.raises(DataError, match="no score"):
        compare(before, plain)
    with pytest.raises(DataError, match="no benchmark scores"):
        BenchmarkScores.load(scores).joined(plain, ["cs", "mmlu"])


def test_bad_data_is_named(data: Path, models: list[Path], tmp_path: Path) -> None:
    folder, output = tmp_path / "data", tmp_path / "scores.json"
    shutil.copytree(data, folder)
    task = folder / "bbh" / "navigate.json"
    for content, message in (
        ('{"examples": []}', "has no items"),
        ('{"examples": [{"input": "a", "tar', "cannot be loaded"),
        ('{"examples": [{"text": "a"}]}', "cannot be loaded"),
    ):
        task.write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            run_benchmarks(models, config_of(folder, "bbh"), output)
        assert "navigate.json" in caught.value.details["file"]
        assert caught.value.details["field"] == "bbh_cot_fewshot_navigate"
    task.unlink()
    with pytest.raises(ConfigError, match=r"navigate\.json or") as missing:
        run_benchmarks(models, config_of(folder, "bbh"), output)
    assert missing.value.details["field"] == "eval.harness.data"
    (folder / "mmlu" / "anatomy" / "dev.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"anatomy/\{test,dev\}\.jsonl"):
        run_benchmarks(models, config_of(folder, "mmlu"), output)
    (folder / "cs" / "boolq" / "validation.jsonl").write_text("")
    with pytest.raises(DataError, match="has no items"):
        run_benchmarks(models, config_of(folder, "cs"), output)
    assert not output.exists()


def test_without_hub_and_local_data_the_remedy_is_named(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.harness\.data") as caught:
        run_benchmarks(models, config_of(None, "cs"), tmp_path / "scores.json")
    assert caught.value.details["file"] == "allenai/ai2_arc"


def test_bad_models_and_files_are_named(
    data: Path, models: list[Path], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    with pytest.raises(ConfigError, match="no such model folder"):
        run_benchmarks([tmp_path / "missing"], config_of(data, "cs"), output)
    with pytest.raises(DataError, match="not a model"):
        run_benchmarks([models[0], data], config_of(data, "cs"), output)
    with pytest.raises(ConfigError, match="do not fit the model's context") as caught:
        run_benchmarks([model_folders["gpt2"]], config_of(data, "bbh", max_gen_toks=96), output)
    assert caught.value.details["expected"] == "less than 96"
    write_sealed(output, {"models": {"a": {}}})
    with pytest.raises(DataError, match="no benchmark scores"):
        run_benchmarks(models, config_of(data, "cs"), output)


def test_a_missing_package_is_named(data: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match="lm_eval") as caught:
        run_benchmarks(models, config_of(data, "cs"), "scores.json")
    assert caught.value.details["field"] == "eval.benchmarks"
    assert "[harness]" in caught.value.details["remedy"]
