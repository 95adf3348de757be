"""Cutting conversations: one chunk per answer, which is the conversation up to and with it.

Nothing of an answer is cut off. Where a conversation does not fit the block under every model's tokenizer and template,
its oldest turns are left out, system messages kept, until it does; an answer that does not fit with the question before
it alone is left out itself. All of it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fusionx.contract.tokens.chat import AnswerError, ChatEncoder, Message, conversation_text, messages_of

ANSWERS = "answers"
SHORTENED = "oldest turns left out"
TOO_LONG = "too long, with its question alone"


@dataclass(frozen=True)
class AnswerChunker:
    """Cuts conversations for one block size and the models of the run."""

    encoders: Sequence[ChatEncoder]
    block_size: int

    def cut(self, text: str) -> tuple[list[str], Counter[str]]:
        """A conversation's chunks, and how many of its answers there are (`ANSWERS`), were `SHORTENED`, and are left
        out for which other reason. Empty answers are none.

        Raises:
            ConfigError: a model's template cannot write a role that occurs.
        """
        messages = messages_of(text)
        chunks: list[str] = []
        found: Counter[str] = Counter()
        first = 0
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or not message["content"]:
                continue
            found[ANSWERS] += 1
            try:
                fitting = self._fitting(messages[: place + 1], first)
            except AnswerError as error:
                found[str(error)] += 1
                continue
            if fitting is None:
                found[TOO_LONG] += 1
                continue
            first, kept = fitting
            found[SHORTENED] += len(kept) <= place
            chunks.append(conversation_text(kept))
        return chunks, +found

    def _fitting(self, messages: list[Message], first: int) -> tuple[int, list[Message]] | None:
        """The conversation from the earliest turn at or after `first` on with which it fits, and that turn's place;
        None if none does."""
        system = next((place for place, message in enumerate(messages) if message["role"] != "system"), 0)
        turns = [place for place in range(system + 1, len(messages) - 1) if messages[place]["role"] == "user"]
        for start in [system, *turns]:
            kept = [*messages[:system], *messages[start:]]
            if start >= first and all(encoder.length(kept) <= self.block_size for encoder in self.encoders):
                return start, kept
        return None
