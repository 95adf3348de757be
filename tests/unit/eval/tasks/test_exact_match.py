"""Tasks: reading the format, prompts, answers, and greedy generation against a plain loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fusionx.eval.tasks.exact_match as tasks_module
from fusionx.contract.errors import ConfigError, DataError
from fusionx.eval.config import EvalConfig
from fusionx.eval.models.generation import end_ids
from fusionx.eval.models.loaded_model import load_model
from fusionx.eval.tasks.exact_match import Task, extract_answer, generate_greedily, load_tasks, run_task

BBH = Path(__file__).resolve().parents[5] / "shared" / "bbh"
needs_bbh = pytest.mark.skipif(not BBH.is_dir(), reason="BIG-Bench-Hard's files are not beside this checkout")


def write_task(path: Path, examples: list[tuple[str, str]]) -> Path:
    content = {"examples": [{"input": text, "target": target} for text, target in examples]}
    path.write_text(json.dumps(content))
    return path


def test_prompts_few_shot_and_limit(tmp_path: Path) -> None:
    write_task(tmp_path / "b.json", [("1+1", "2"), ("{x}+1", "3"), ("2+2", "4"), ("5", "5")])
    write_task(tmp_path / "a.json", [("up", "down"), ("left", "right")])
    first, second = load_tasks(EvalConfig(tasks=[str(tmp_path)], few_shot=1, limit=2))
    assert (first.name, second.name) == ("a", "b")
    assert first.prompts == ["Q: up\nA: down\n\nQ: left\nA:"]
    assert second.prompts == ["Q: 1+1\nA: 2\n\nQ: {x}+1\nA:", "Q: 1+1\nA: 2\n\nQ: 2+2\nA:"]
    assert second.targets == ["3", "4"]


def test_bad_tasks_are_named(tmp_path: Path) -> None:
    empty, broken = write_task(tmp_path / "empty.json", []), tmp_path / "broken.json"
    broken.write_text('{"examples": [{"question": 1}]}')
    with pytest.raises(DataError, match="no items"):
        load_tasks(EvalConfig(tasks=[str(empty)]))
    with pytest.raises(DataError, match="format"):
        load_tasks(EvalConfig(tasks=[str(broken)]))
    with pytest.raises(DataError, match="no items"):
        load_tasks(EvalConfig(tasks=[str(write_task(tmp_path / "one.json", [("a", "b")]))], few_shot=1))
    with pytest.raises(ConfigError, match="no such task"):
        load_tasks(EvalConfig(tasks=[str(tmp_path / "missing")]))
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="share a name"):
        load_tasks(EvalConfig(tasks=[str(tmp_path / "one.json"), str(write_task(tmp_path / "other/one.json", []))]))


@pytest.mark.parametrize(
    ("text", "stop", "worked", "answer"),
    [
        (" False\nQ: next", "\n", False, "False"),
        ("\n\nFalse \nQ", "\n", False, "False"),
        ("", "\n", False, ""),
        ("the answer is 4.", "\n", False, "the answer is 4."),
        (" Let's see.\n2+2 is 4. So the answer is 4.\n\nQ: more, the answer is 5.", "\n\n", True, "4"),
        ("So the answer is (A).", "\n\n", True, "(A)"),
        ("no conclusion.", "\n\n", True, "no conclusion."),
    ],
)
def test_answers(text: str, stop: str, worked: bool, answer: str) -> None:
    assert extract_answer(text, stop, worked) == answer


def test_exact_match_on_a_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = {"p0": " yes\nQ: x", "p1": "no", "p2": "yes!", "p3": "  no \n"}
    monkeypatch.setattr(
        tasks_module, "generate_greedily", lambda loaded, prompts, *_: [replies[f"p{ids[0]}"] for ids in prompts]
    )
    tokenizer = lambda prompt, add_special_tokens: {"input_ids": [int(prompt[1:])]}  # noqa: E731
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, adds_bos=False, max_positions=None)
    result = run_task(loaded, Task("stub", list(replies), ["yes", "yes", "yes", "no "]), EvalConfig())
    assert result.correct == [1, 0, 0, 1]
    figures = result.figures()
    assert (figures["n"], figures["score"], figures["stderr"]) == (4, 0.5, 0.25)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_generation_equals_one_by_one(name: str, model_folders: dict[str, Path]) -> None:
    import torch

    loaded = load_model(model_folders[name], device="cpu")
    end = loaded.tokenizer.eos_token_id
    prompts = [loaded.tokenizer(text)["input_ids"] for text in ("Q", "The quick brown", "def add(left", "漢字かな")]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):
            with torch.inference_mode():
                ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == end or "\n" in loaded.tokenizer.decode(ids[len(prompt) :]).lstrip():
                break
        expected.append(loaded.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    for budget in (1, 60, 10_000):
        found = generate_greedily(loaded, prompts, 12, "\n", budget)
        assert [extract_answer(text, "\n", False) for text in found] == [
            extract_answer(text, "\n", False) for text in expected
        ]


def test_a_folders_own_generation_settings_decide_nothing(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Transformers fills what a caller leaves open from generation_config.json; a penalty would change answers."""
    import torch

    folder = tmp_path / "model"
    shutil.copytree(model_folders["gpt2"], folder)
    plain = load_model(folder, device="cpu")
    own = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 50.0, "no_repeat_ngram_size": 1,
           "eos_token_id": [0, 7], "min_new_tokens": 5}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(own))
    changed = load_model(folder, device="cpu")
    prompts = [plain.tokenizer(text)["input_ids"] for text in ("The quick", "def")]
    torch.manual_seed(0)
    texts = generate_greedily(changed, prompts, 24, "\0", 1000)
    plain.model.generation_config.eos_token_id = [0, 7]
    assert texts == generate_greedily(plain, prompts, 24, "\0", 1000)
    assert end_ids(changed) == [0, 7]


def test_stopping_rule_ends_a_row_after_text_and_the_stop(model_folders: dict[str, Path]) -> None:
    import torch

    tokenizer = load_model(model_folders["gpt2"], device="cpu").tokenizer
    rows = [tokenizer(text)["input_ids"] for text in ("\n\n", "ab", "a\n", "\na")]
    width = max(map(len, rows))
    ids = torch.tensor([[5] * 3 + row + row[-1:] * (width - len(row)) for row in rows])
    rule = tasks_module._StopText(tokenizer, "\n", prompt_length=3)
    assert rule(ids, None).tolist() == [False, False, True, False]


def test_long_prompts_lose_their_beginning(model_folders: dict[str, Path]) -> None:
    loaded = load_model(model_folders["llama"], device="cpu")
    task = Task("long", ["zyx" * 100 + " end", "short"], ["a", "b"])
    prompts, truncated = tasks_module._encode_prompts(loaded, task, max_new_tokens=8)
    assert truncated == 1
    assert [len(ids) <= 96 - 8 for ids in prompts] == [True, True]
    assert prompts[0][0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.decode(prompts[0]).endswith("end")
    with pytest.raises(ConfigError, match="does not fit"):
        tasks_module._encode_prompts(loaded, task, max_new_tokens=96)


@needs_bbh
def test_big_bench_hard_files_with_worked_prompts(model_folders: dict[str, Path]) -> None:
    config = EvalConfig(
        tasks=[str(BBH)], prompt_prefix_folder=str(BBH / "cot-prompts"), limit=2, max_new_tokens=4, device="cpu"
    )
    tasks = load_tasks(config)
    assert len(tasks) == 27
    by_name = {task.name: task for task in tasks}
    prompt = by_name["word_sorting"].prompts[0]
    assert prompt.startswith("Sort a list of words.\n\nQ: ")
    assert "canary" not in prompt
    assert by_name["boolean_expressions"].prompts[0].endswith("\n\nQ: not ( True ) and ( True ) is\nA:")
    loaded = load_model(model_folders["gpt2"], device="cpu")
    result = run_task(loaded, by_name["boolean_expressions"], config)
    assert (len(result.correct), result.truncated) == (2, 2)
