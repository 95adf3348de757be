"""Conversations as a model's own chat template writes them, and which of its tokens are the answer's.

Every model sees its own rendering of a conversation; what all renderings have in common are the bytes of the answer,
the assistant's last message. So an answer is to a conversation what a text is to itself: its tokens' ends count bytes
of the answer, and everything before it, whose ends are 0, is context, as a BOS is of a text. Where the conversations
come from is `precompute.corpus.conversations`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.encoding import Encoding, exact_ends, offset_ends
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import plain_backend

CHAT = "chat"
"""The value of `format` in the config of chunks that are conversations."""
ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, str]
"""`role` (one of `ROLES`) and `content`."""

_STAND_IN = "\ue000answer\ue001"
"""Takes the answer's place to find where a template writes it; no text has these characters."""
_DATE = "26 Jul 2024"
"""What templates that write the day are told, so that equal conversations are equal tokens on every day; Llama 3's own
templates take it where nobody tells them."""
_ALWAYS_THAT_DAY = f"{{% macro strftime_now(format) %}}{_DATE}{{% endmacro %}}"
"""Takes the place of the function that templates ask for the day."""
_PROBES: dict[str, list[str]] = {
    "user": ["user", "assistant"],
    "system": ["system", "user", "assistant"],
    "tool": ["user", "assistant", "tool", "assistant"],
}
"""The plainest conversation with each role."""


class AnswerError(ValueError):
    """A model's template does not write a conversation, or not as it is; the message says why, and names the model."""


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as chunks hold it: JSON, the same for the same messages."""
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def messages_of(text: str) -> list[Message]:
    """The inverse of `conversation_text`."""
    messages: list[Message] = json.loads(text)
    return messages


@dataclass(frozen=True)
class ChatEncoder:
    """A model's tokenizer and chat template; it is to conversations (`conversation_text`) what `encoder` is to texts.

    `name`: the model's, for errors. `given`: a template that takes the place of the tokenizer's own.
    """

    name: str
    encoder: Encoder
    given: str | None = None

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def table(self) -> TokenTable:
        return self.encoder.table

    @property
    def add_bos(self) -> bool:
        return self.encoder.add_bos

    @property
    def bos(self) -> int | None:
        return self.encoder.bos

    @property
    def vocab_size(self) -> int:
        return self.encoder.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokenizer and the template."""
        template = json.dumps(self.given or self.tokenizer.chat_template, sort_keys=True)
        return f"{self.encoder.fingerprint}-{hashlib.sha256(template.encode()).hexdigest()[:16]}"

    def check(self, roles: Sequence[str] = ("user",)) -> None:
        """Refuses what this model cannot read, whatever the conversation.

        Raises:
            ConfigError: it has no chat template, or a slow tokenizer; the template has no answers, or leaves out or
                refuses one of the `roles`.
        """
        if not (self.given or self.tokenizer.chat_template):
            raise ConfigError(
                f"The model '{self.name}' has no chat template.",
                file=self.tokenizer.name_or_path,
                field="corpus.format",
                found="chat, and a tokenizer without chat_template",
                expected="a template for every model of the run",
                remedy="take its instruction-tuned version, or name a template as the model's chat_template",
            )
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            raise ConfigError(
                f"The tokenizer of '{self.name}' does not say where its tokens are in a conversation.",
                file=self.tokenizer.name_or_path,
                field="corpus.format",
                found=f"chat, and the slow tokenizer {type(self.tokenizer).__name__}",
                expected="a fast tokenizer (tokenizer.json)",
            )
        for role in roles:
            problem = None if role == "assistant" else self._problem_of[role]
            if problem is not None:
                remedy = "set corpus.system to merge or drop" if role == "system" else "take such messages out"
                raise ConfigError(
                    f"The chat template of '{self.name}' cannot write messages of the role '{role}'.",
                    file=self.tokenizer.name_or_path,
                    field="corpus.format",
                    found=problem,
                    expected=f"a template that writes {', '.join(_PROBES[role])}",
                    remedy=f"{remedy}, or leave out this model",
                )

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokens of each conversation up to the end of its answer.

        They are those of the rendered text, in which what the template writes of special tokens is such a token.

        Raises:
            ConfigError: as `check`, for the roles that occur.
            DataError: the template does not write one of the conversations as it is.
        """
        try:
            return self._encoded([self.written(messages_of(text)) for text in texts])
        except AnswerError as error:
            raise DataError(
                "A conversation cannot be read by a model.",
                field=f"chat template of '{self.name}'",
                found=str(error),
                expected="a conversation that every model's template writes as it is",
                remedy="a model or template that came later: run `fusionx chunk --overwrite` with it",
            ) from None

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each conversation; raises as `encode`."""
        return [len(encoding.ids) for encoding in self.encode(texts)]

    def length(self, messages: Sequence[Message]) -> int:
        """Tokens of one conversation.

        Raises:
            AnswerError: the template does not write it as it is.
            ConfigError: as `check`, for the roles that occur.
        """
        return len(self._encoded([self.written(messages)])[0].ids)

    def written(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before the answer, and the answer; raises as `length`."""
        self.check(list(dict.fromkeys(["user", *(message["role"] for message in messages)])))
        answer = messages[-1]["content"]
        for message in messages:
            spelled = self._special.search(message["content"])
            if spelled is not None:
                raise AnswerError(f"it spells a special token of '{self.name}'")
        try:
            before, after = self._around_answer(messages)
            whole = self._render(messages)
        except Exception as error:  # whatever a template raises, and jinja itself
            raise AnswerError(f"the template of '{self.name}' refuses the order of its messages") from error
        if whole != before + answer + after:
            raise AnswerError(f"the template of '{self.name}' changes the answer")
        return before, answer

    @cached_property
    def end_id(self) -> int | None:
        """The special token that the template puts behind an answer, white space between them left out; None if it
        puts none there."""
        after = self._around_answer(_probe("user"))[1].lstrip()
        found = self._special.match(after)
        return None if found is None else int(self.tokenizer.convert_tokens_to_ids(found.group()))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """The spelling of any special token, the longest first."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        spellings = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        longest = sorted(filter(None, spellings), key=lambda spelling: (-len(spelling), spelling))
        return re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    @cached_property
    def _problem_of(self) -> dict[str, str | None]:
        """Why the template cannot write a role; None where it can."""
        return {role: self._problem(role) for role in _PROBES}

    def _problem(self, role: str) -> str | None:
        try:
            self._around_answer(_probe(role))
            written = self._render(_probe(role))
        except AnswerError as error:
            return str(error)
        except Exception as error:  # whatever a template raises, and jinja itself
            return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        lost = [message["role"] for message in _probe(role) if message["content"] not in written]
        return f"it leaves out the message of the role '{lost[0]}'" if lost else None

    def _around_answer(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before and after the last message, which is the assistant's."""
        parts = self._render([*messages[:-1], {"role": "assistant", "content": _STAND_IN}]).split(_STAND_IN)
        if len(parts) != 2:
            raise AnswerError(f"the template of '{self.name}' writes the answer {len(parts) - 1} times")
        return parts[0], parts[1]

    def _render(self, messages: Sequence[Message]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, tokenize=False, date_string=_DATE
            )
        )

    @cached_property
    def _template(self) -> str:
        return _ALWAYS_THAT_DAY + (self.given or str(self.tokenizer.get_chat_template()))

    def _encoded(self, written: Sequence[tuple[str, str]]) -> list[Encoding]:
        backend = self.tokenizer.backend_tokenizer
        with plain_backend(backend, as_text=False):
            found = backend.encode_batch([before + answer for before, answer in written], add_special_tokens=False)
        return [self._placed(*one, encoding) for one, encoding in zip(written, found, strict=True)]

    def _placed(self, before: str, answer: str, encoding: Any) -> Encoding:
        """The tokens of `before + answer` with their ends in the answer. A token that is in both is the answer's."""
        offsets: npt.NDArray[np.int64] = np.array(encoding.offsets, np.int64).reshape(-1, 2) - len(before)
        first = int(np.argmax(offsets[:, 1] > 0)) if len(offsets) else 0
        if not first:
            raise AnswerError(f"the template of '{self.name}' writes nothing before the answer")
        ids, inside = encoding.ids[first:], np.maximum(offsets[first:], 0)
        ends = exact_ends(self.table, ids, answer.encode(), within=True)
        lossy = ends is None
        if ends is None:
            ends = offset_ends(self.table, ids, inside, answer)
        return Encoding(
            np.asarray(encoding.ids, np.int32),
            np.concatenate([np.zeros(first, np.int32), ends]),
            lossy,
            context=first - 1,
        )


def _probe(role: str) -> list[Message]:
    return [{"role": one, "content": f"{one}{place}"} for place, one in enumerate(_PROBES[role])]


def given_template(stated: str | None) -> str | None:
    """The template that a model's `chat_template` states: itself, or the file that holds it.

    Raises:
        ConfigError: there is no such file, or it cannot be read as text.
    """
    if stated is None or "{" in stated:
        return stated
    try:
        return Path(stated).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "The chat template cannot be read.",
            file=stated,
            field="chat_template",
            found=error.strerror if isinstance(error, OSError) else str(error),
            expected="a Jinja file, or a template with {{ }} or {% %} in it",
        ) from None


@lru_cache(maxsize=16)
def load_chat_encoder(
    name: str, path: str, revision: str | None = None, chat_template: str | None = None
) -> ChatEncoder:
    """The tokenizer and chat template of a model, once they are found to be fit for conversations.

    Raises:
        ConfigError: there is no tokenizer at that place, or as `given_template` and `ChatEncoder.check`.
    """
    encoder = ChatEncoder(name, load_encoder(path, revision), given_template(chat_template))
    encoder.check()
    return encoder
