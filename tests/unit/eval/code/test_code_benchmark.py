"""The benchmark `me`: problems, samples, scores, resumption, comparison, and bad input."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from code_examples import EXAMPLES, PRESENT
from hypothesis import given
from hypothesis import strategies as st

import fusionx.eval.benchmark_runner as harness_module
import fusionx.eval.code.problems as tasks_module
import fusionx.eval.code.scoring as scores_module
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.eval.benchmark_runner import run_benchmarks
from fusionx.eval.code.languages import Toolchain
from fusionx.eval.code.problems import CodeTask, load_code_tasks
from fusionx.eval.code.sampling import cut, nucleus_choice, sample_answers
from fusionx.eval.code.scoring import score_task
from fusionx.eval.config import CodeLanguage, EvalConfig
from fusionx.eval.evaluate import evaluate_model
from fusionx.eval.models.loaded_model import limited_threads, load_model
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import compare
from fusionx.eval.results.statistics import pass_at_k

LANGUAGES: list[CodeLanguage] = [language for language in ("py", "sh", "js") if language in PRESENT]
PROBLEMS = 6
PLACEHOLDER = Toolchain("py", (), (), None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny: more threads only wait for each other."""
    with limited_threads(1):
        yield


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for language in LANGUAGES:
        rows = [EXAMPLES[language].row(language, number) for number in range(PROBLEMS)]
        write_rows(folder / "me" / f"humaneval-{language}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [make_model(folder / str(seed), "llama", 300, seed=seed, context=256, bos=seed == 1) for seed in (0, 1)]


def config_of(data: Path | None, batch_size: int | str = 8, limit: int | None = None, **code: Any) -> EvalConfig:
    settings = {"run": True, "languages": LANGUAGES, "samples": 3, "max_new_tokens": 8, "seconds": 10, **code}
    harness = {"data": None if data is None else str(data), "batch_size": batch_size, "limit": limit}
    fields = {"benchmarks": ["me"], "harness": harness, "code": settings, "device": "cpu", "threads": 1}
    return EvalConfig.model_validate(fields)


def load_one(data: Path | None, **settings: Any) -> CodeTask:
    return load_code_tasks([PLACEHOLDER], config_of(data, **settings))[0]


# -- statistics and sampling


@given(st.integers(1, 7), st.data())
def test_pass_at_k_equals_the_share_of_all_choices_with_a_pass(samples: int, draw: Any) -> None:
    passed = draw.draw(st.integers(0, samples))
    k = draw.draw(st.integers(1, samples))
    choices = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_an_answer_ends_before_the_first_stop_token(text: str, stops: list[str]) -> None:
    expected = next((text[:end] for end in range(len(text)) if text[end:].startswith(tuple(stops))), text)
    assert cut(text, stops) == expected


def slow_choice(logits: list[float], uniform: float, temperature: float, top_p: float) -> int:
    """Word for word: the likeliest tokens until they have `top_p`, renormalised; the first whose sum exceeds u."""
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    shares = sorted(((power / sum(powers), -token) for token, power in enumerate(powers)), reverse=True)
    nucleus: list[tuple[float, int]] = []
    while sum(share for share, _ in nucleus) < top_p and len(nucleus) < len(shares):
        nucleus.append(shares[len(nucleus)])
    below = 0.0
    for share, token in nucleus:
        below += share / sum(share for share, _ in nucleus)
        if below > uniform:
            return -token
    return -nucleus[-1][1]


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.2, 1.0, 2.0]),
    st.sampled_from([0.01, 0.5, 0.95, 1.0]),
)
def test_a_token_is_chosen_from_the_nucleus(
    values: list[int], uniform: float, temperature: float, top_p: float
) -> None:
    # Uneven steps: no sum of shares equals top_p or the uniform up to rounding.
    logits = [value / 7.3 + number / 1000 for number, value in enumerate(values)]
    found = nucleus_choice(
        torch.tensor([logits], dtype=torch.float64), torch.tensor([uniform], dtype=torch.float64), temperature, top_p
    )
    assert found.tolist() == [slow_choice(logits, uniform, temperature, top_p)]


def test_tokens_come_in_proportion_to_the_usual_nucleus() -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 3
    warped = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.7)(None, logits))
    expected = torch.softmax(warped, -1)[0]
    grid = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    found = nucleus_choice(logits.expand(5000, -1), grid, 0.7, 0.9).bincount(minlength=50) / 5000
    assert torch.allclose(found.float(), expected, atol=2 / 5000)


def test_the_same_model_gives_the_same_samples_in_any_batch(data: Path, models: list[Path]) -> None:
    loaded = load_model(models[1], "cpu")
    config = config_of(data, temperature=2.0, samples=5)
    task = load_one(data)
    answers = sample_answers(loaded, task, config.code, 5)
    assert sample_answers(loaded, task, config.code, 2) == answers
    torch.manual_seed(17)
    assert sample_answers(loaded, task, config.code, 5) == answers
    # Other samples and other problems have random numbers of their own.
    assert len({tuple(found) for found in answers}) == PROBLEMS
    assert all(len(set(found)) > 1 for found in answers)


def test_a_cold_sample_is_the_greedy_answer(data: Path, models: list[Path]) -> None:
    loaded = load_model(models[0], "cpu")
    task = load_one(data, limit=1)
    ids = torch.tensor([loaded.tokenizer(task.problems[0].prompt)["input_ids"]])
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, loaded.model(ids).logits[:, -1:].argmax(-1)], 1)
    expected = loaded.tokenizer.decode(ids[0], skip_special_tokens=True).removeprefix(task.problems[0].prompt)
    found = sample_answers(loaded, task, config_of(data, temperature=1e-4).code, 3)
    assert found == [[cut(expected, task.problems[0].stop_tokens)] * 3]


def test_generation_ends_at_a_stop_token(data: Path, models: list[Path]) -> None:
    loaded = load_model(models[0], "cpu")
    task = load_one(data, limit=1)
    config = config_of(data, temperature=1e-4, samples=1, max_new_tokens=12).code
    whole = sample_answers(loaded, task, config, 1)[0][0]
    stop = whole[3:5]
    stopping = CodeTask(
        **{**vars(task), "problems": [type(task.problems[0])("a", task.problems[0].prompt, "", [stop])]}
    )
    steps: list[int] = []
    forward = loaded.model.forward
    loaded.model.forward = lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs)
    assert sample_answers(loaded, stopping, config, 1) == [[whole[: whole.index(stop)]]]
    assert 0 < len(steps) < 12


# -- scores


def answers_of(plan: dict[CodeLanguage, list[str]]) -> Callable[..., list[list[str]]]:
    """A model that writes for every problem the programs of the plan: r(ight), w(rong), e(ndless), s(yntax error)."""
    endless: dict[str, str] = {"py": "    while True: pass\n", "sh": "    while :; do :; done\n", "js": "for(;;);}\n"}

    def answers(loaded: Any, task: CodeTask, config: Any, batch_size: int) -> list[list[str]]:
        language = task.toolchain.language
        example = EXAMPLES[language]
        texts = {"r": example.right, "w": example.wrong, "e": endless[language], "s": "(((\n"}
        closed = "\n}" if language == "sh" else ""  # the tests close what the prompt has opened
        return [[cut(texts[key] + closed, [example.stop]) for key in keys] for keys in plan[language]]

    return answers


@pytest.mark.usefixtures("sandbox")
def test_pass_at_1_is_what_a_hand_counts(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: dict[CodeLanguage, list[str]] = {
        "py": ["rrrr", "rrrw", "rwse", "wwww", "wrwr", "eswr"],
        "sh": ["wwww", "rwww", "rrww", "wrrr", "rrrr", "eees"],
        "js": ["rrrr", "rrrr", "wwww", "swes", "rwrw", "srrr"],
    }
    monkeypatch.setattr(scores_module, "sample_answers", answers_of(plan))
    output = tmp_path / "scores.json"
    config = config_of(data, samples=4, seconds=3)
    assert run_benchmarks(models[:1], config, output) == len(LANGUAGES)
    scores = BenchmarkScores.load(output).tasks[str(models[0])]
    assert set(scores) == {f"humaneval-{language}" for language in LANGUAGES}
    for language in LANGUAGES:
        score = scores[f"humaneval-{language}"]
        shares = [keys.count("r") / 4 for keys in plan[language]]
        assert score.items == shares, language
        assert score.score == pytest.approx(sum(shares) / 6)
        assert score.stderr == pytest.approx(np.std(shares, ddof=1) / 6**0.5)
        assert (score.benchmark, score.metric, score.n, score.truncated) == ("me", "pass@1", 6, 0)
        assert score.metrics == {"pass@1": score.score}
        assert "transformers" in score.version
    assert scores["humaneval-py"].score == pytest.approx((4 + 3 + 1 + 0 + 2 + 1) / 24)
    written = json.loads(output.read_text())["models"][str(models[0])]
    assert written["benchmarks"]["me"]["tasks"] == len(LANGUAGES)


def test_ten_samples_give_pass_at_10(data: Path) -> None:
    task = load_one(data, limit=2)
    score = score_task(task, [[True] + [False] * 11, [False] * 12])
    assert score.metrics == {"pass@1": pytest.approx(1 / 24), "pass@10": pytest.approx((1 - 1 / 6) / 2)}
    assert score_task(task, [[True]]).stderr is None


@pytest.mark.usefixtures("sandbox")
def test_a_real_model_is_scored_and_resumed(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights write no program, so every score is an honest 0."""
    output, config = tmp_path / "scores.json", config_of(data)
    assert run_benchmarks(models, config, output) == 2 * len(LANGUAGES)
    before = output.read_bytes()
    found = BenchmarkScores.load(output).tasks[str(models[1])]
    assert {(score.score, score.stderr) for score in found.values()} == {(0.0, 0.0)}
    assert all(score.items == [0.0] * PROBLEMS for score in found.values())

    monkeypatch.setattr(harness_module, "load_model", None)  # nothing may get as far as loading a model
    assert run_benchmarks(models, config, output) == 0
    assert output.read_bytes() == before
    assert run_benchmarks(models, config_of(data, batch_size="auto", workers=1), output) == 0
    for other in (config_of(data, samples=2), config_of(data, limit=1), config_of(data, temperature=0.3)):
        with pytest.raises(TypeError):
            run_benchmarks(models, other, output)
    # A finished language is kept while the missing ones are run.
    content = read_sealed(output, "")
    del content["models"][str(models[0])]["tasks"]["humaneval-sh"]
    write_sealed(output, content)
    monkeypatch.setattr(harness_module, "load_model", load_model)
    assert run_benchmarks(models, config, output) == 1
    assert json.loads(output.read_text()) == json.loads(before)


def test_nothing_is_loaded_unless_programs_may_be_run(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_module, "load_model", None)
    with pytest.raises(ConfigError, match="--run-generated-code"):
        run_benchmarks(models, config_of(data, run=False), tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("sandbox")
def test_interference_takes_shares_of_samples(
    data: Path,
    models: list[Path],
    chunks: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, config = tmp_path / "scores.json", config_of(data, samples=4, languages=["py", "sh"])
    plans: list[dict[CodeLanguage, list[str]]] = [
        {"py": ["rrrw"] * 6, "sh": ["rrrr"] * 6},
        {"py": ["rwww"] * 6, "sh": ["wwww"] * 6},
    ]
    for model, plan in zip(models, plans, strict=True):
        monkeypatch.setattr(scores_module, "sample_answers", answers_of(plan))
        run_benchmarks([model], config, output)
    found = [
        BenchmarkScores.load(output).joined(Evaluation.from_dict(evaluate_model(model, chunks, config)), ["me"])
        for model in models
    ]
    units = {unit.name: unit for unit in compare(*found, resamples=200).units if unit.kind == "task"}
    assert units["humaneval-py"].difference == pytest.approx(-0.5)
    # All six items lose a half: no draw is without a loss.
    assert units["humaneval-py"].p_value == pytest.approx(1 / 201)
    assert units["humaneval-py"].interval == [-0.5, -0.5]
    # Right or wrong as a whole: the exact test, (1/2)^6.
    assert units["humaneval-sh"].p_value == pytest.approx(1 / 64)
    assert units["humaneval-sh"].interval is None


# -- data


def test_a_program_is_prompt_answer_and_tests(data: Path) -> None:
    problem, example = load_one(data).problems[2], EXAMPLES["py"]
    assert problem.name == "HumanEval_2_add"
    assert problem.program("A") == f"{example.prompt}A\n{example.tests}"
    assert problem.stop_tokens == ["\ndef"]


def test_the_same_problems_in_any_format_have_the_same_digest(data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = load_one(data)
    rows = [json.loads(line) for line in (data / "me" / "humaneval-py.jsonl").read_text().splitlines()]
    folder = tmp_path / "me" / "humaneval-py"
    write_rows(folder / "test.jsonl", rows)
    assert load_one(tmp_path) == expected
    (folder / "test.jsonl").rename(folder / "test.json")
    assert load_one(tmp_path) == expected
    (folder / "test.json").unlink()
    for number in range(2):
        table = pa.Table.from_pylist(rows[3 * number : 3 * number + 3])
        pq.write_table(table, folder / f"test-0000{number}-of-00002.parquet")
    assert load_one(tmp_path) == expected
    (tmp_path / "me" / "humaneval-py.json").write_text(json.dumps(rows))
    assert load_one(tmp_path) == expected

    digest = expected.prompts_digest
    assert digest == load_one(data, batch_size=1, workers=3, languages=[]).prompts_digest
    for change in ({"limit": 5}, {"samples": 4}, {"top_p": 0.9}, {"max_new_tokens": 9}, {"seconds": 1}):
        assert load_one(data, **change).prompts_digest != digest
    for field, value in (("prompt", "a"), ("tests", "a"), ("stop_tokens", ["a"])):
        write_rows(tmp_path / "me" / "humaneval-py.jsonl", [{**rows[0], field: value}, *rows[1:]])
        assert load_one(tmp_path).prompts_digest != digest


def test_the_hub_has_python_as_humaneval_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "test": "def check(c):\n    assert c()\n",
        "entry_point": "f",
    }

    def load_dataset(*place: str, split: str) -> list[dict[str, Any]]:
        asked.append((*place, split))
        return [row] if place == ("openai/openai_humaneval",) else [EXAMPLES["sh"].row("sh")]

    monkeypatch.setattr(tasks_module, "import_extra", lambda *_: SimpleNamespace(load_dataset=load_dataset))
    python, bash = load_code_tasks([PLACEHOLDER, Toolchain("sh", (), (), None)], config_of(None))
    assert asked == [("openai/openai_humaneval", "test"), ("nuprl/MultiPL-E", "humaneval-sh", "test")]
    expected = "def f():\n    return 1\ndef check(c):\n    assert c()\n\n\ncheck(f)\n"
    assert python.problems[0].program("    return 1") == expected
    assert "\ndef" in python.problems[0].stop_tokens
    assert bash.problems[0].prompt == EXAMPLES["sh"].prompt


def test_bad_data_is_named(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "me" / "humaneval-py.jsonl"
    with pytest.raises(ConfigError, match=r"humaneval-py\.jsonl") as missing:
        load_one(tmp_path)
    assert missing.value.details["field"] == "eval.harness.data"
    path.parent.mkdir()
    good = EXAMPLES["py"].row("py")
    for content, message, field in (
        ("", "has no items", "humaneval-py"),
        ("[]", "has no items", "humaneval-py"),
        ('{"name": "a", ', "cannot be loaded", "humaneval-py"),
        (json.dumps(good) + '\n"a"\n', "lacks a field", "humaneval-py.1.name"),
        (json.dumps({**good, "tests": None}), "lacks a field", "humaneval-py.0.tests"),
        (json.dumps({**good, "stop_tokens": "a"}), "lacks a field", "humaneval-py.0.stop_tokens"),
        (json.dumps({**good, "stop_tokens": [1]}), "lacks a field", "humaneval-py.0.stop_tokens"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            load_one(tmp_path)
        assert caught.value.details["file"] == str(path)
        assert caught.value.details["field"] == field


def test_a_context_that_is_too_short_is_named(data: Path, models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit the model's context") as caught:
        run_benchmarks(models[:1], config_of(data, max_new_tokens=250), tmp_path / "scores.json")
    assert caught.value.details["field"] == "eval.code.max_new_tokens"
    assert caught.value.details["expected"] == "at most 256 together"
