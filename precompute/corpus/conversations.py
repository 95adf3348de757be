"""Conversations of a corpus in the layouts that people have them in, turned into one: messages of role and content.

Read are `messages` of {role, content} (OpenAI, Hugging Face), `conversations` of {from, value} (ShareGPT), and
`instruction`, `input` and `output` (Alpaca). What a model makes of messages is `contract.tokens.chat`.
"""

from __future__ import annotations

from typing import Any

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.tokens.chat import ROLES, Message
from fusionx.precompute.config import CorpusConfig

_TURNS = ("messages", "conversations", "conversation")
_INSTRUCTION, _INPUT, _OUTPUT = _ALPACA = ("instruction", "input", "output")
_ROLE_OF = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
}


def conversation_columns(names: list[str], config: CorpusConfig, place: str) -> list[str]:
    """The columns of a row or file that hold its conversation: those that the config names, else a known layout's.

    Raises:
        ConfigError: there are none.
    """
    if config.messages is not None:
        return [config.messages]
    for name in _TURNS:
        if name in names:
            return [name]
    if _INSTRUCTION in names and _OUTPUT in names:
        return [name for name in _ALPACA if name in names]
    raise ConfigError(
        "The corpus has no conversations.",
        file=place,
        field="corpus.format",
        found=f"chat, and the columns {', '.join(names)}",
        expected=f"{' or '.join(_TURNS)} (a list of messages), or {_INSTRUCTION} and {_OUTPUT}",
        remedy="name the column that holds the messages as corpus.messages, or set corpus.format to text",
    )


def conversation_of(fields: dict[str, Any], config: CorpusConfig, place: str) -> list[Message]:
    """The messages in the columns that `conversation_columns` named, without white space at their ends, which most
    templates leave out, too.

    Raises:
        DataError: they are no messages, a role is unknown, or a message is more than text.
    """
    if _OUTPUT in fields:
        given = [str(fields.get(name) or "").strip() for name in (_INSTRUCTION, _INPUT)]
        question = "\n\n".join(filter(None, given))
        turns: Any = [("user", question), ("assistant", fields[_OUTPUT])]
    else:
        (name,) = fields
        if not isinstance(fields[name], list):
            raise _no_messages(name, fields[name], "a list of messages", place)
        turns = [_turn(name, message, place) for message in fields[name]]
    messages = [{"role": _role(role, place), "content": _content(content, place)} for role, content in turns]
    return _with_system(messages, config.system)


def _turn(name: str, message: Any, place: str) -> tuple[Any, Any]:
    if isinstance(message, dict):
        if message.get("tool_calls") or message.get("function_call"):
            raise _no_messages(name, "a message that calls a function", "messages of text", place)
        for role, content in (("role", "content"), ("from", "value")):
            if message.get(role) is not None and content in message:
                return message[role], message[content]
    raise _no_messages(name, message, "{role, content} or {from, value}", place)


def _role(role: Any, place: str) -> str:
    if role not in _ROLE_OF:
        raise DataError(
            "A message has an unknown role.",
            file=place,
            field="role",
            found=repr(role),
            expected=", ".join(_ROLE_OF),
            remedy="rename it, or take such conversations out of the corpus",
        )
    return _ROLE_OF[role]


def _content(content: Any, place: str) -> str:
    """Text, or parts of text as OpenAI has them; nothing where there is none."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if content is not None and not isinstance(content, str):
        raise _no_messages("content", content, "text", place)
    return (content or "").strip()


def _with_system(messages: list[Message], system: str) -> list[Message]:
    """System messages as the config wants them: as they are, in front of the next user's message, or not at all."""
    if system == "keep":
        return messages
    made: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and system == "merge":
            content = "\n\n".join(filter(None, [*waiting, message["content"]]))
            made.append({"role": "user", "content": content})
            waiting = []
        else:
            made.append(message)
    return made


def _no_messages(name: str, found: Any, expected: str, place: str) -> DataError:
    return DataError(
        "A conversation cannot be read.",
        file=place,
        field=name,
        found=f"{found!r:.80}" if not isinstance(found, str) else found[:80],
        expected=expected,
        remedy="mend or take out this row, or name another column as corpus.messages",
    )
