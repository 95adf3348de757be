"""The vocabulary map against a brute-force oracle, and its rules one by one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import align.vocab_map as module
from align.edit import token_distance
from align.vocab_map import MapKind, VocabMap, build_vocab_map, first_token_encoder, identity_map
from contract.errors import DataError
from contract.tokenization import TokenTable, token_table


def table(
    pieces: list[bytes | None],
    roles: dict[int, str] | None = None,
    byte_fallback: set[int] | None = None,
    fingerprint: str = "f",
) -> TokenTable:
    roles = roles or {}
    pieces = [None if token in roles else piece for token, piece in enumerate(pieces)]
    return TokenTable(pieces, roles, frozenset(byte_fallback or ()), fingerprint)


def levenshtein(first: str | bytes, second: str | bytes) -> int:
    """The textbook O(nm) programme."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        above, row = row, [i]
        for j, right in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def plain_distance(first: bytes, second: bytes) -> int:
    try:
        return levenshtein(first.decode(), second.decode())
    except UnicodeDecodeError:
        return levenshtein(first, second)


def common_prefix(first: bytes, second: bytes) -> int:
    length = 0
    while first[length : length + 1] == second[length : length + 1] != b"":
        length += 1
    return length


def brute_force(piece: bytes, target: TokenTable) -> tuple[int, int]:
    """Distance and id of the nearest target token by the rule in words, over every target id."""
    ranked = []
    for token, other in enumerate(target.token_bytes):
        if other:
            same = [t for t, bytes_ in enumerate(target.token_bytes) if bytes_ == other]
            chosen = min(same, key=lambda t: (t in target.byte_fallback, t))
            ranked.append((plain_distance(piece, other), -common_prefix(piece, other), chosen, token))
    distance, _, chosen, _ = min(ranked)
    return distance, chosen


PIECE = st.one_of(
    st.text(st.sampled_from("ab é你😀"), min_size=1, max_size=6).map(str.encode),
    st.lists(st.sampled_from([0x61, 0xC3, 0xA9, 0xE4, 0xBD, 0xFF]), min_size=1, max_size=5).map(bytes),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).map(str.encode),
)


@st.composite
def tables(draw: st.DrawFn) -> TokenTable:
    pieces: list[bytes | None] = list(draw(st.lists(PIECE, min_size=1, max_size=30)))
    fallback = [draw(st.sampled_from([b"a", b"\xc3", b"\xff", b"b"])) for _ in range(draw(st.integers(0, 3)))]
    at = draw(st.integers(0, len(pieces)))
    pieces[at:at] = fallback
    return table([*pieces, None, b"x"], {}, set(range(at, at + len(fallback))))


@settings(max_examples=200, deadline=None)
@given(source=tables(), target=tables(), block=st.sampled_from([1, 7, 1 << 20]))
def test_mined_map_equals_brute_force(source: TokenTable, target: TokenTable, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_PAIRS", block)
        found = build_vocab_map(source, target, "mined")
    for token, piece in enumerate(source.token_bytes):
        if piece is None:
            assert (found.target_ids[token], found.kind[token]) == (-1, MapKind.DROPPED)
            continue
        distance, chosen = brute_force(piece, target)
        assert (found.distance[token], found.target_ids[token]) == (distance, chosen)
        assert (found.kind[token] == MapKind.EDITED) == (distance > 0)


def test_long_tokens_keep_exact_distances() -> None:
    """Distances beyond 255 do not fit the fast path's uint8."""
    source = table([b" " * 400, b"ab" * 300, b"xyz", b"\xff" * 300])
    target = table([b"-" * 300, b"ba" * 299, b"q", b"\xfe" * 290 + b"\xff"])
    found = build_vocab_map(source, target, "mined")
    for token, piece in enumerate(source.token_bytes):
        assert (found.distance[token], found.target_ids[token]) == brute_force(piece or b"", target)


def test_random_vocabularies_of_realistic_lengths() -> None:
    generator = np.random.default_rng(0)

    def words(count: int) -> list[bytes | None]:
        lengths = generator.integers(1, 12, count)
        return [bytes(generator.choice(list(b"etaoins r"), length).tolist()) for length in lengths]

    source, target = table(words(80)), table(words(300))
    found = build_vocab_map(source, target, "mined")
    for token, piece in enumerate(source.token_bytes):
        assert (found.distance[token], found.target_ids[token]) == brute_force(piece or b"", target)


def test_text_and_byte_tokens_compare_byte_by_byte() -> None:
    assert token_distance("你".encode(), "好".encode()) == 1
    assert token_distance("你".encode(), b"\xe4\xbd") == 1
    assert token_distance("é".encode(), b"e") == 1
    assert token_distance("é".encode(), b"\xff") == 2


def test_ties_prefer_the_longer_common_prefix_then_the_lower_id() -> None:
    source = table([b"abcd"])
    assert build_vocab_map(source, table([b"bcd", b"abc", b"abd", b"abce"]), "mined").target_ids.tolist() == [1]
    assert build_vocab_map(source, table([b"xbcd", b"ybcd"]), "mined").target_ids.tolist() == [0]


def test_equal_bytes_prefer_a_normal_token_then_the_lowest_id() -> None:
    source = table([b"a", b"\n", b"\xe4", b"\xe4"], byte_fallback={3})
    target = table([b"a", b"\n", b"\xe4", b"a", b"a"], byte_fallback={0, 1, 2})
    found = build_vocab_map(source, target, "exact")
    assert found.target_ids.tolist() == [3, 1, 2, 2]
    assert found.kind.tolist() == [MapKind.EXACT, MapKind.BYTE, MapKind.BYTE, MapKind.BYTE]
    assert found.distance.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["mined", "exact", "first-token"])
def test_special_tokens_map_by_role_only(mode: str) -> None:
    source = table([None, None, None, None, b"<s>", b"z"], {0: "bos", 1: "eos", 2: "pad", 3: "special"})
    target = table([None, None, None, b"<s>x", b"y"], {0: "eos", 1: "bos", 2: "special"})
    found = build_vocab_map(source, target, mode)  # type: ignore[arg-type]
    assert found.target_ids[:4].tolist() == [1, 0, -1, -1]
    assert not set(found.target_ids[4:].tolist()) & set(target.special_role)


def test_exact_drops_what_has_no_equal() -> None:
    found = build_vocab_map(table([b"a", b"b"]), table([b"b"]), "exact")
    assert found.target_ids.tolist() == [-1, 0]
    assert found.counts() == {"dropped": 1, "exact": 1, "special": 0, "byte": 0, "edited": 0, "first_token": 0}


def test_targets_without_any_token_drop_everything() -> None:
    for mode in ("mined", "exact", "first-token"):
        found = build_vocab_map(table([b"a"]), table([None], {0: "eos"}), mode)  # type: ignore[arg-type]
        assert found.target_ids.tolist() == [-1]


def test_first_token_without_a_tokenizer_is_the_longest_prefix() -> None:
    source = table([b"hello", b"hel", b"\xe4\xbd\xa0", b"\xe4\xbd", b"zzz"])
    target = table([b"h", b"hell", b"\xe4", b"hello!", b"hel"])
    found = build_vocab_map(source, target, "first-token")
    assert found.target_ids.tolist() == [1, 4, 2, 2, -1]
    assert found.distance.tolist() == [1, 0, 2, 1, -1]
    assert found.kind.tolist()[:2] == [MapKind.FIRST_TOKEN, MapKind.EXACT]


def small_bpe(corpus: list[str], prefix_space: bool) -> tuple:
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return tokenizer, token_table(tokenizer)


def test_first_token_is_how_the_target_begins_the_text() -> None:
    _, source = small_bpe(["international internship  internally\n\n an intern"] * 9, False)
    target_tokenizer, target = small_bpe(["the nation in interim terms  in turn\n an inn"] * 9, True)
    found = build_vocab_map(source, target, "first-token", target_tokenizer)
    firsts = np.flatnonzero(found.kind == MapKind.FIRST_TOKEN)
    assert len(firsts) > 10
    for token in firsts:
        assert (source.token_bytes[token] or b"").startswith(target.token_bytes[found.target_ids[token]] or b"?")
    encoder = first_token_encoder(target_tokenizer, target)
    spaced, bare = encoder([" intern", "intern"])
    assert (target.token_bytes[spaced] or b"").startswith(b" in")
    assert (target.token_bytes[bare] or b"").startswith(b"in")  # no dummy prefix space


def test_identity_map_keeps_every_id() -> None:
    both = table([None, b"a", None, b"a", None], {0: "bos", 4: "special"})
    found = identity_map(both, "mined")
    assert found.target_ids.tolist() == [0, 1, -1, 3, 4]
    assert found.counts()["special"] == 2


def test_save_and_load(tmp_path: Path) -> None:
    source, target = table([b"a", b"bc", None], fingerprint="s"), table([b"a", b"b"], fingerprint="t")
    made = build_vocab_map(source, target, "mined")
    path = tmp_path / "map.parquet"
    made.save(path)
    loaded = VocabMap.load(path)
    for name in ("target_ids", "kind", "distance"):
        assert np.array_equal(getattr(loaded, name), getattr(made, name))
        assert getattr(loaded, name).dtype == getattr(made, name).dtype
    assert (loaded.mode, loaded.source_fingerprint, loaded.target_fingerprint) == ("mined", "s", "t")
    assert [file.name for file in tmp_path.iterdir()] == ["map.parquet"]

    assert VocabMap.load_if_valid(path, source, target, "mined") is not None
    assert VocabMap.load_if_valid(path, source, target, "exact") is None
    assert VocabMap.load_if_valid(path, table([b"a"], fingerprint="new"), target, "mined") is None
    assert VocabMap.load_if_valid(tmp_path / "none", source, target, "mined") is None

    path.write_bytes(path.read_bytes()[:-9])
    assert VocabMap.load_if_valid(path, source, target, "mined") is None
    with pytest.raises(DataError, match=r"map\.parquet"):
        VocabMap.load(path)
