"""Programs that a model writes: nucleus sampling with random numbers that belong to the sample, not to the batch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusionx.contract.errors import ConfigError
from fusionx.eval.code.problems import CodeTask, Problem
from fusionx.eval.config import CodeConfig
from fusionx.eval.models.generation import StopRule, end_ids, greedy
from fusionx.eval.models.loaded_model import LoadedModel

if TYPE_CHECKING:
    import torch


def sample_answers(loaded: LoadedModel, task: CodeTask, config: CodeConfig, batch_size: int) -> list[list[str]]:
    """`config.samples` answers to every problem of the task, each cut at the first of its problem's stop tokens.

    The same model gives the same answers, whatever the batch size, up to the rounding of the model itself.

    Raises:
        ConfigError: the model's context has no room for a prompt and its answer.
    """
    prompts = [_encode(loaded, problem) for problem in task.problems]
    _check_room(loaded, task, prompts, config.max_new_tokens)
    answers = []
    for number, (problem, ids) in enumerate(zip(task.problems, prompts, strict=True)):
        uniforms = _uniforms(task.name, number, config)
        found: list[str] = []
        for start in range(0, config.samples, batch_size):
            found += _sample_batch(loaded, problem, ids, uniforms[start : start + batch_size], config)
        answers.append(found)
    return answers


def cut(text: str, stop_tokens: Sequence[str]) -> str:
    """The text before the first place at which any of the stop tokens begins."""
    return text[: min((place for stop in stop_tokens if (place := text.find(stop)) >= 0), default=len(text))]


def nucleus_choice(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token per row, sampled from the nucleus (Holtzman et al. 2020, section 3.1) by inverting its distribution.

    The nucleus are the likeliest tokens, as few as have probability `top_p` together at that temperature.

    Args:
        logits: [rows, vocabulary].
        uniforms: float64 [rows], each in [0, 1).

    Returns:
        int64 [rows]; for uniforms that are spread evenly, tokens in proportion to their probability in the nucleus.
    """
    import torch

    probabilities, ids = torch.softmax(logits.double() / temperature, -1).sort(stable=True, dim=-1, descending=True)
    cumulated = probabilities.cumsum(-1)
    inside = cumulated - probabilities < top_p
    inside[:, 0] = True
    last = inside.sum(-1, keepdim=True) - 1
    mass = cumulated.gather(-1, last)
    # Not more than the last one: rounding may leave the sum just below the uniform's share of it.
    chosen = (cumulated <= uniforms[:, None] * mass).sum(-1, keepdim=True).minimum(last)
    return ids.gather(-1, chosen)[:, 0]


def _encode(loaded: LoadedModel, problem: Problem) -> list[int]:
    bos = [loaded.tokenizer.bos_token_id] if loaded.adds_bos else []
    return bos + list(loaded.tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])


def _check_room(loaded: LoadedModel, task: CodeTask, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    number = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    needed = len(prompts[number]) + max_new_tokens
    if loaded.max_positions is not None and needed > loaded.max_positions:
        raise ConfigError(
            f"The problem {task.problems[number].name} and its answer do not fit the model's context.",
            file=loaded.folder,
            field="eval.code.max_new_tokens",
            found=f"{len(prompts[number])} tokens of the prompt and {max_new_tokens} of the answer",
            expected=f"at most {loaded.max_positions} together",
            remedy="lower eval.code.max_new_tokens, or leave the benchmark me out",
        )


def _uniforms(name: str, problem: int, config: CodeConfig) -> npt.NDArray[np.float64]:
    """[samples, max_new_tokens]: one random number for every token of every sample, the same for all models."""
    shape = (config.samples, config.max_new_tokens)
    return np.random.default_rng([zlib.crc32(name.encode()), problem]).random(shape)


def _sample_batch(
    loaded: LoadedModel, problem: Problem, prompt: list[int], uniforms: npt.NDArray[np.float64], config: CodeConfig
) -> list[str]:
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    ids = torch.tensor([prompt] * len(uniforms), device=loaded.device)
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            # Greedy, because `_Nucleus` has made the choice.
            generation_config=greedy(loaded, config.max_new_tokens),
            logits_processor=LogitsProcessorList([_Nucleus(uniforms, len(prompt), config)]),
            stopping_criteria=StoppingCriteriaList([_StopTokens(loaded.tokenizer, problem.stop_tokens, len(prompt))]),
        )
    # Decoded with the prompt: some tokenizers drop the space in front of what they decode alone.
    start, ends = len(_decode(loaded, prompt)), end_ids(loaded)
    ends = ends if isinstance(ends, list) else [ends]
    answers = [list(takewhile(lambda token: token not in ends, row[len(prompt) :])) for row in output.tolist()]
    return [cut(_decode(loaded, prompt + answer)[start:], problem.stop_tokens) for answer in answers]


def _decode(loaded: LoadedModel, ids: list[int]) -> str:
    text: str = loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class _Nucleus:
    """Makes the greedy choice of `generate` the sampled one."""

    def __init__(self, uniforms: npt.NDArray[np.float64], prompt_length: int, config: CodeConfig) -> None:
        self.uniforms, self.prompt_length, self.config = uniforms, prompt_length, config

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        step = input_ids.shape[1] - self.prompt_length
        uniforms = torch.from_numpy(self.uniforms[:, step]).to(scores.device)
        chosen = nucleus_choice(scores, uniforms, self.config.temperature, self.config.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0.0)


class _StopTokens(StopRule):
    """A row is done once any of the stop tokens stands in its answer."""

    def __init__(self, tokenizer: Any, stop_tokens: Sequence[str], prompt_length: int) -> None:
        super().__init__(prompt_length)
        self.tokenizer, self.stop_tokens = tokenizer, stop_tokens
        # A token is at least one byte; one more, because the first of a window may lose a space.
        self.window = 1 + max((len(stop.encode()) for stop in stop_tokens), default=0)

    def ends(self, new_ids: torch.Tensor) -> bool:
        tail = self.tokenizer.decode(new_ids[-self.window :], skip_special_tokens=True)
        return any(stop in tail for stop in self.stop_tokens)
