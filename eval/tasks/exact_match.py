"""Benchmark tasks in BIG-Bench-Hard's format: prompts, greedy answers, exact match."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import ConfigError, DataError
from fusionx.eval.config import EvalConfig
from fusionx.eval.models.generation import StopRule, greedy, padding_id
from fusionx.eval.models.loaded_model import LoadedModel, batches_by_length

if TYPE_CHECKING:
    import torch

ANSWER_MARK = "the answer is"
STOP_WINDOW = 8
"""New tokens that are decoded when looking for the stop text; it must lie within so many."""


@dataclass(frozen=True)
class Task:
    """One task's scored items: what the model is shown and what it must answer."""

    name: str
    prompts: list[str]
    targets: list[str]

    def digest(self) -> str:
        """Digest of the prompts and targets."""
        return digest_of([self.prompts, self.targets])


@dataclass(frozen=True)
class TaskResult:
    """`correct` holds 0 or 1 per item; `truncated` counts prompts whose beginning did not fit the context."""

    correct: list[int]
    truncated: int

    def figures(self) -> dict[str, float]:
        """n, score (share of items answered correctly) and its standard error."""
        n = len(self.correct)
        score = sum(self.correct) / n
        return {"n": n, "score": score, "stderr": (score * (1 - score) / n) ** 0.5, "truncated": self.truncated}


def load_tasks(config: EvalConfig) -> list[Task]:
    """Reads every task file named by the config, sorted by name; names are file stems.

    Raises:
        ConfigError: a path is missing, two files share a name, or a worked prompt is missing.
        DataError: a file is not in BIG-Bench-Hard's format or has no items.
    """
    files: dict[str, Path] = {}
    for path in _task_files(config.tasks):
        if path.stem in files:
            raise ConfigError("Two task files share a name.", field="tasks", found=f"{files[path.stem]} and {path}")
        files[path.stem] = path
    return [_load_task(files[name], config) for name in sorted(files)]


def _task_files(places: Sequence[str]) -> list[Path]:
    files = []
    for place in map(Path, places):
        if place.is_dir():
            found = sorted(place.glob("*.json"))
            if not found:
                raise ConfigError("A task folder holds no task.", field="tasks", file=place, expected="*.json")
            files.extend(found)
        elif place.is_file():
            files.append(place)
        else:
            raise ConfigError("There is no such task file or folder.", field="tasks", file=place)
    return files


def _load_task(path: Path, config: EvalConfig) -> Task:
    examples = _read_examples(path)
    shots, scored = examples[: config.few_shot], examples[config.few_shot :][: config.limit]
    if not scored:
        raise DataError(
            "A task has no items to score.",
            file=path,
            found=f"{len(examples)} examples, {config.few_shot} of them shown as few-shot examples",
            expected="at least one more",
        )
    prefix = _worked_prompt(path.stem, config.prompt_prefix_folder)
    prefix += "".join(f"{_question(config, text)} {target}\n\n" for text, target in shots)
    return Task(path.stem, [prefix + _question(config, text) for text, _ in scored], [target for _, target in scored])


def _question(config: EvalConfig, text: str) -> str:
    # Not str.format: questions and templates may hold braces of their own.
    return config.task_template.replace("{input}", text)


def _read_examples(path: Path) -> list[tuple[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        examples = [(item["input"], item["target"]) for item in content["examples"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "A task file is not in BIG-Bench-Hard's format.",
            file=path,
            found=f"{type(error).__name__}: {error}",
            expected='{"examples": [{"input": "...", "target": "..."}]}',
        ) from None
    for number, pair in enumerate(examples):
        if not all(isinstance(text, str) and _is_text(text) for text in pair):
            raise DataError("A task's example is not text.", file=path, field=f"examples.{number}", expected="strings")
    return examples


def _is_text(text: str) -> bool:
    """Without halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _worked_prompt(name: str, folder: str | None) -> str:
    """The task's worked prompt with a blank line after it, without its canary and `-----` lines; empty without one."""
    if folder is None:
        return ""
    path = Path(folder) / f"{name}.txt"
    if not path.is_file():
        raise ConfigError("A task has no worked prompt.", field="prompt_prefix_folder", file=path)
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) >= 2 and "canary" in lines[0] and set(lines[1].strip()) == {"-"}:
        lines = lines[2:]
    return "\n".join(lines).strip() + "\n\n"


def extract_answer(text: str, stop: str, worked: bool) -> str:
    """What counts as the answer in a generated text.

    Cut at `stop` (leading white space is not a stop), then stripped. After a worked prompt (`worked`), what follows
    "the answer is", without a trailing dot, as BIG-Bench-Hard scores it; the whole text where those words are missing.
    """
    answer = text.lstrip().split(stop, 1)[0].strip()
    if worked and ANSWER_MARK in answer:
        answer = answer.split(ANSWER_MARK, 1)[1].strip()
        answer = answer.removesuffix(".").strip()
    return answer


def run_task(loaded: LoadedModel, task: Task, config: EvalConfig) -> TaskResult:
    """Answers every item greedily and compares with its target exactly (both stripped)."""
    prompts, truncated = _encode_prompts(loaded, task, config.max_new_tokens)
    texts = generate_greedily(loaded, prompts, config.max_new_tokens, config.stop_text, config.batch_tokens)
    worked = config.prompt_prefix_folder is not None
    answers = [extract_answer(text, config.stop_text, worked) for text in texts]
    return TaskResult([int(a == t.strip()) for a, t in zip(answers, task.targets, strict=True)], truncated)


def _encode_prompts(loaded: LoadedModel, task: Task, max_new_tokens: int) -> tuple[list[list[int]], int]:
    """Token ids per prompt; of one that leaves no room for an answer the beginning is dropped (BOS kept)."""
    bos = [loaded.tokenizer.bos_token_id] if loaded.adds_bos else []
    room = None if loaded.max_positions is None else loaded.max_positions - max_new_tokens - len(bos)
    if room is not None and room < 1:
        raise ConfigError(
            "An answer of that length does not fit the model's context.",
            field="max_new_tokens",
            found=max_new_tokens,
            expected=f"less than {loaded.max_positions}",
        )
    encoded = [loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in task.prompts]
    for ids, prompt in zip(encoded, task.prompts, strict=True):
        if not ids and not bos:
            raise DataError("A prompt has no tokens.", field=task.name, found=repr(prompt))
    truncated = sum(room is not None and len(ids) > room for ids in encoded)
    return [bos + (ids if room is None else ids[-room:]) for ids in encoded], truncated


def generate_greedily(
    loaded: LoadedModel, prompts: Sequence[list[int]], max_new_tokens: int, stop: str | None, batch_tokens: int
) -> list[str]:
    """The model's most likely continuation of every prompt, as text, special tokens left out.

    Batches hold prompts of similar length, padded on the left. Generation ends at the model's own end of text, once
    `stop` (if there is one) follows some text, or after `max_new_tokens`.
    """
    texts = [""] * len(prompts)
    lengths = [len(ids) for ids in prompts]
    for batch in batches_by_length(
        lengths, lambda items, longest: items * (longest + max_new_tokens), max(batch_tokens, 1)
    ):
        new_ids = _generate_batch(loaded, [prompts[index] for index in batch], max_new_tokens, stop)
        for index, text in zip(batch, loaded.tokenizer.batch_decode(new_ids, skip_special_tokens=True), strict=True):
            texts[index] = text
    return texts


def _generate_batch(
    loaded: LoadedModel, prompts: Sequence[list[int]], max_new_tokens: int, stop: str | None
) -> torch.Tensor:
    """New token ids int64 [prompts, <= max_new_tokens]."""
    import torch
    from transformers import StoppingCriteriaList

    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding_id(loaded), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            generation_config=greedy(loaded, max_new_tokens),
            stopping_criteria=StoppingCriteriaList(
                [] if stop is None else [_StopText(loaded.tokenizer, stop, longest)]
            ),
        )
    return output[:, longest:].cpu()


class _StopText(StopRule):
    """A row is done once the stop text follows some other text."""

    def __init__(self, tokenizer: Any, stop: str, prompt_length: int) -> None:
        super().__init__(prompt_length)
        self.tokenizer, self.stop = tokenizer, stop

    def ends(self, new_ids: torch.Tensor) -> bool:
        if self.stop not in self.tokenizer.decode(new_ids[-STOP_WINDOW:], skip_special_tokens=True):
            return False
        text = self.tokenizer.decode(new_ids, skip_special_tokens=True)
        return self.stop in text.lstrip()
