"""What a model writes after the beginnings of a few held-out documents, beside what stands there: to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusionx.contract.tokens.chat import CHAT
from fusionx.eval.models.loaded_model import LoadedModel
from fusionx.eval.tasks.exact_match import generate_greedily
from fusionx.eval.text.perplexity import Chunk

NEW_TOKENS = 48
_LONGEST_PROMPT = 280
_LONGEST_TEXT = 200
"""Characters."""


@dataclass(frozen=True)
class Beginning:
    """A document's first words, and `text`, those that follow."""

    domain: str
    doc_id: int
    prompt: str
    text: str


def beginnings(chunks: Sequence[Chunk], count: int) -> list[Beginning]:
    """Of `count` domains, spread over all of them in the order of their names, the first document that has two words.

    None of conversations: they have no middle to go on from.
    """
    found: dict[str, Beginning] = {}
    for chunk in sorted(chunks, key=lambda chunk: (int(chunk["doc_id"]), int(chunk.get("chunk", 0)))):
        if chunk.get("format") != CHAT and chunk["domain"] not in found and not chunk.get("chunk", 0):
            prompt, text = _halves(chunk["text"])
            if prompt.strip() and text.strip():
                found[chunk["domain"]] = Beginning(chunk["domain"], int(chunk["doc_id"]), prompt, text)
    domains = sorted(found)
    count = min(count, len(domains))
    return [found[domains[place * len(domains) // count]] for place in range(count)]


def _halves(text: str) -> tuple[str, str]:
    """Cut behind the last word that ends before the middle, or before where a prompt is long enough."""
    middle = min(len(text) // 2, _LONGEST_PROMPT)
    cut = next((place for place in range(middle, 0, -1) if text[place].isspace() and not text[place - 1].isspace()), 0)
    return text[:cut], text[cut : cut + _LONGEST_TEXT]


def continuations(loaded: LoadedModel, of: Sequence[Beginning], batch_tokens: int) -> list[dict[str, Any]]:
    """`domain`, `doc_id`, `prompt`, `text`, and `written`: the likeliest next tokens, at most 48.

    Of a beginning that leaves no room in the model's context the first tokens are dropped.
    """
    bos = [loaded.tokenizer.bos_token_id] if loaded.adds_bos else []
    room = None if loaded.max_positions is None else max(loaded.max_positions - NEW_TOKENS - len(bos), 1)
    encoded = [loaded.tokenizer(one.prompt, add_special_tokens=False)["input_ids"] for one in of]
    prompts = [bos + (ids if room is None else ids[-room:]) for ids in encoded]
    written = generate_greedily(loaded, prompts, NEW_TOKENS, None, batch_tokens)
    return [{**vars(one), "written": text} for one, text in zip(of, written, strict=True)]
