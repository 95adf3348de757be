"""What a person is told about a map: where tokens go and why, and how two tokenizations lie beside each other."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.explain import describe_map, description_lines, explain_positions, explain_text, mapped_tokens, shown
from fusionx.align.vocabulary.vocab_map import Mode, build_vocab_map, identity_map
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.token_table import TokenTable

Pair = tuple[Encoder, Encoder]


@pytest.fixture(scope="module")
def pair(make_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    large = make_tokenizer(folder / "large", 420, bos=True)
    small = make_tokenizer(folder / "small", 300)
    return load_encoder(str(large)), load_encoder(str(small))


def table(*pieces: bytes | None, roles: dict[int, str] | None = None) -> TokenTable:
    return TokenTable(list(pieces), roles or {}, frozenset(), "f")


def whys(source: TokenTable, target: TokenTable, mode: Mode = "mined") -> list[str]:
    vocab_map = build_vocab_map(source, target, mode)
    return [row.why for row in mapped_tokens(source, target, vocab_map, range(source.size))]


def test_why_names_the_rule() -> None:
    source = table(b"a", None, None, None, None, b"abcd", roles={1: "eos", 2: "pad", 3: "special"})
    target = table(b"a", b"abc", b"abd", None, b"xbcd", roles={3: "eos"})
    found = whys(source, target)
    assert found[:5] == [
        "equal bytes",
        "special tokens of the same role",
        "dropped: the target has no pad",
        "dropped: a special token without a role",
        "dropped: stands for no bytes",
    ]
    assert found[5] == "edit distance 1 character, common prefix 3 bytes; also as near: 'abd', 'xbcd'"
    assert whys(source, target, "exact")[5] == "dropped: no equal token"
    assert whys(table(b"zz"), table(None)) == ["dropped: the target has no token with bytes"]


def test_why_counts_the_ties_that_it_does_not_name() -> None:
    targets = [bytes([97 + number]) for number in range(12)]
    (why,) = whys(table(b"zz"), table(*targets))
    assert why == "edit distance 2 characters, common prefix 0 bytes; also as near: 'b', 'c', 'd' and 8 more"
    (why,) = whys(table(b"\xff"), table(b"\xfe"))
    assert why == "edit distance 1 byte, common prefix 0 bytes"


def test_tokens_are_shown_as_a_person_reads_them() -> None:
    both = table(b" a\n", b"\xe4\xbd", None, None, b"", roles={2: "eos"})
    assert [shown(both, token) for token in range(5)] == [
        "' a\\n'",
        "b'\\xe4\\xbd'",
        "<eos>",
        "<no bytes>",
        "<no bytes>",
    ]


def test_text_is_explained_token_by_token(pair: Pair) -> None:
    source, target = pair
    vocab_map = build_vocab_map(source.table, target.table, "mined")
    text = "The quick brown fox, naïve 你好"
    lines = explain_text(source, target, vocab_map, text)
    tokens = lines[1 : lines.index("")]
    assert len(tokens) == len(source.encode([text])[0].ids)
    assert tokens[0].split(maxsplit=6) == ["0", "<bos>", "-", "-", "dropped", "-", "dropped: the target has no bos"]
    assert any(" exact " in line and "equal bytes" in line for line in tokens)
    assert any(" edited " in line and "edit distance" in line for line in tokens)
    assert explain_text(source, target, vocab_map, "")[0].startswith("id")


def test_a_map_of_other_tokenizers_is_refused(pair: Pair) -> None:
    source, target = pair
    with pytest.raises(ValueError, match="not of"):
        explain_text(source, target, build_vocab_map(target.table, source.table, "exact"), "a")


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_positions_cover_the_text_once(pair: Pair, text: str) -> None:
    source, target = pair
    lines = explain_positions(source, target, text)
    spans = [tuple(map(int, line.split()[0].split("-"))) for line in lines[1:-1]]
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    if text:
        assert (spans[0][0], spans[-1][1]) == (0, len(text.encode()))
    count = len(target.encode([text])[0].ids)
    assert lines[-1].endswith(f" of {count} target positions take a source position.")


def test_positions_stop_where_both_agree(pair: Pair) -> None:
    source, target = pair
    assert explain_positions(source, target, "The sun") == [
        "bytes  text    source       target",
        "0-3    'The'   <bos> 'The'  'The'",
        "3-7    ' sun'  ' sun'       ' s' 'u' 'n'",
        "2 of 4 target positions take a source position.",
    ]


def test_a_map_in_numbers_is_json_and_adds_up(pair: Pair) -> None:
    source, target = pair
    for vocab_map in (
        build_vocab_map(source.table, target.table, "mined"),
        build_vocab_map(source.table, target.table, "exact"),
        identity_map(source.table, "mined"),
    ):
        found = json.loads(json.dumps(describe_map(vocab_map)))
        assert sum(found["kinds"].values()) == found["tokens"] == source.table.size
        assert sum(found["distances"].values()) == found["tokens"] - found["kinds"]["dropped"]
        assert any(line.startswith("0 ") and "#" in line for line in description_lines(vocab_map))


def test_the_histogram_gathers_far_tokens() -> None:
    source = table(b"a" * 5, b"b" * 15, b"c" * 25, b"c" * 40)
    lines = description_lines(build_vocab_map(source, table(b"z"), "mined"))
    assert [line.split()[:2] for line in lines[-3:]] == [["5", "1"], ["11-20", "1"], ["above", "20"]]
    assert lines[-1].split()[2] == "2"
