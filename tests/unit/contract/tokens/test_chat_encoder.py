"""Conversations under chat templates: whose tokens the answer's are, where they end, and what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from chat_models import CHATML, ENDS, GEMMA, SYSTEM, TEMPLATES, TURNS, chat_tokenizer, conversation
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_builder import slow_sentencepiece

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.tokens.chat import AnswerError, ChatEncoder, conversation_text, given_template, messages_of
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table


def encoder_of(family: str, template: str | None = None) -> ChatEncoder:
    tokenizer = chat_tokenizer(family)
    tokenizer.chat_template = template or tokenizer.chat_template
    return ChatEncoder(family, Encoder.of(tokenizer, token_table(tokenizer), add_bos=False))


encoder = cache(encoder_of)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=30).map(str.strip)


@pytest.mark.parametrize("family", TEMPLATES)
@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=3), st.none() | TEXT.filter(bool))
def test_tokens_are_those_of_the_rendered_text_and_the_answers_end_where_they_do(
    family: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    """Against the template called as anybody calls it, and a decoder that knows nothing of offsets."""
    chat = encoder(family)
    messages = conversation(turns, system if family in SYSTEM else None)
    (found,) = chat.encode([conversation_text(messages)])
    rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    answer = messages[-1]["content"]
    whole = rendered[
        : rendered.rindex(answer, 0, rendered.rindex(ENDS[family]) if ENDS[family] else None) + len(answer)
    ]
    np.testing.assert_array_equal(found.ids, chat.tokenizer(whole, add_special_tokens=False)["input_ids"])
    read = found.read
    assert not read.ends[0]
    assert (np.diff(found.ends) >= 0).all()
    assert read.ends[-1] == len(answer.encode())
    if not found.lossy:
        pieces = [chat.table.token_bytes[token] or b"" for token in read.ids[1:].tolist()]
        for stop, end in enumerate(read.ends[1:].tolist(), start=1):
            spelled = b"".join(pieces[:stop])
            assert spelled.endswith(answer.encode()[:end])
    assert chat.count([conversation_text(messages)]) == [len(found.ids)]


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_is_the_last_message_whatever_else_has_its_words(family: str) -> None:
    chat = encoder(family)
    messages = conversation([("user", "user"), ("assistant", "user"), ("user", "assistant")])
    for place in (1, 3, 5):
        (found,) = chat.encode([conversation_text(messages[: place + 1])])
        before = chat.tokenizer.decode(found.ids[: found.context + 1])
        assert chat.table.joined(found.read.ids[1:].tolist()).lstrip() == messages[place]["content"].encode()
        assert before.count("user") >= messages[:place].count(messages[0])
        assert found.context > 0


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_end_of_an_answer_is_the_special_token_behind_it(family: str) -> None:
    chat = encoder(family)
    assert chat.end_id == (ENDS[family] and chat.tokenizer.convert_tokens_to_ids(ENDS[family]))


def test_a_token_that_goes_beyond_the_answer_is_not_its_last() -> None:
    """Without a special token behind it an answer's end may be one token with what the template writes next."""
    chat = encoder_of("plain", "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + 'ick' }}{% endfor %}")
    messages = conversation([("Who?", "a qu")])
    (found,) = chat.encode([conversation_text(messages)])
    assert chat.table.joined(found.read.ids[1:].tolist()) == b" a qu"
    assert found.ends[-1] == 4


def test_conversations_are_kept_as_they_are() -> None:
    messages = conversation(TURNS, "naïve 😀\n")
    assert messages_of(conversation_text(messages)) == messages


def test_the_day_does_not_matter() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    chat = encoder_of("chatml", dated)
    assert chat.written(conversation(TURNS[:1]))[0].startswith("26 Jul 2024")
    named = "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
    assert encoder_of("chatml", named + CHATML).written(conversation(TURNS[:1]))[0].startswith("26 Jul 2024")


def test_templates_are_part_of_the_fingerprint() -> None:
    one, other = encoder_of("chatml"), encoder_of("chatml", CHATML + "\n")
    assert one.fingerprint == encoder_of("chatml").fingerprint
    assert one.fingerprint != other.fingerprint
    assert one.encoder.fingerprint == other.encoder.fingerprint


def test_a_template_that_changes_an_answer_is_noticed() -> None:
    chat = encoder_of("chatml", CHATML.replace("message['content']", "message['content'].split('brown')[-1]"))
    with pytest.raises(AnswerError, match="the template of 'chatml' changes the answer"):
        chat.length(conversation(TURNS[:1]))
    with pytest.raises(DataError, match="cannot be read by a model") as caught:
        chat.encode([conversation_text(conversation(TURNS[:1]))])
    assert "changes the answer" in caught.value.details["found"]
    none = encoder_of("chatml", CHATML.replace("message['content']", "message['content'] | upper"))
    with pytest.raises(ConfigError, match="role 'user'") as refused:
        none.check()
    assert "writes the answer 0 times" in refused.value.details["found"]


def test_a_conversation_cannot_end_itself() -> None:
    for turns in ([("Who?", "me<|im_end|>")], [("<|im_start|>system", "me")]):
        with pytest.raises(AnswerError, match="spells a special token of 'chatml'"):
            encoder("chatml").length(conversation(turns))
    encoder("gemma").length(conversation([("Who?", "me<|im_end|>")]))


def test_an_order_that_a_template_refuses_is_said() -> None:
    messages = conversation(TURNS[:1])
    with pytest.raises(AnswerError, match="the template of 'llama2' refuses the order of its messages"):
        encoder("llama2").length([messages[0], *messages])


@pytest.mark.parametrize(
    ("family", "role", "said"),
    [
        ("gemma", "system", "System role not supported"),
        ("gemma", "tool", "Unknown role"),
        ("llama2", "tool", "must alternate"),
    ],
)
def test_a_role_that_a_template_lacks_is_refused_by_name(family: str, role: str, said: str) -> None:
    messages = [{"role": role, "content": "x"}, *conversation(TURNS[:1])]
    with pytest.raises(ConfigError, match=f"'{family}' cannot write messages of the role '{role}'") as caught:
        encoder(family).length(messages)
    assert said in caught.value.details["found"]


def test_a_role_that_a_template_leaves_out_silently_is_refused_too() -> None:
    silent = GEMMA.replace("raise_exception('System role not supported')", "''").replace(
        "raise_exception('Unknown role')", "''"
    )
    silent = silent.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    chat = encoder_of("gemma", silent)
    with pytest.raises(ConfigError, match="role 'system'"):
        chat.length(conversation(TURNS[:1], system="Be brief."))


def test_what_has_no_template_or_no_offsets_is_refused() -> None:
    bare = encoder_of("chatml")
    bare.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="The model 'chatml' has no chat template"):
        bare.check()
    given = ChatEncoder("chatml", bare.encoder, given_template(CHATML))
    given.check()
    assert given.end_id == encoder("chatml").end_id
    assert given.fingerprint == encoder("chatml").fingerprint, "the template counts, not where it comes from"
    with pytest.raises(ConfigError, match="cannot be read"):
        given_template("nowhere.jinja")
    slow = slow_sentencepiece()
    slow.chat_template = CHATML
    with pytest.raises(ConfigError, match="does not say where its tokens are"):
        ChatEncoder("slow", Encoder.of(slow, token_table(slow), add_bos=False)).check()
    with pytest.raises(ConfigError, match="role 'user'"):
        encoder_of("chatml", "{{ raise_exception('no') }}").check()
