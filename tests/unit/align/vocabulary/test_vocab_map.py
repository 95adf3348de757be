"""The vocabulary map against a brute-force oracle, and its rules one by one."""

import base64
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

import fusionx.align.vocabulary.nearest_token as module
from fusionx.align.vocabulary.edit_distance import bytes_as_text, text_of, token_distance
from fusionx.align.vocabulary.nearest_token import nearest
from fusionx.align.vocabulary.vocab_map import (
    MapKind,
    Mode,
    VocabMap,
    build_vocab_map,
    equally_near,
    identity_map,
)
from fusionx.contract.errors import DataError
from fusionx.contract.jit import compiled
from fusionx.contract.tokens.token_table import TokenTable


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


def all_nearest(piece: bytes, target: TokenTable) -> tuple[int, list[int]]:
    """Distance and ids of the nearest target tokens by the rule in words over every id, the preferred one first."""
    ranked = set()
    for other in set(target.token_bytes):
        if other:
            same = [token for token, bytes_ in enumerate(target.token_bytes) if bytes_ == other]
            chosen = min(same, key=lambda token: (token in target.byte_fallback, token))
            ranked.add((plain_distance(piece, other), -common_prefix(piece, other), chosen))
    least = min(distance for distance, _, _ in ranked)
    return least, [chosen for distance, _, chosen in sorted(ranked) if distance == least]


def brute_force(piece: bytes, target: TokenTable) -> tuple[int, int]:
    distance, ids = all_nearest(piece, target)
    return distance, ids[0]


PIECE = st.one_of(
    st.text(st.sampled_from("ab é你😀"), min_size=1, max_size=6).map(str.encode),
    st.lists(st.sampled_from([0x61, 0xC3, 0xA9, 0xE4, 0xBD, 0xFF]), min_size=1, max_size=5).map(bytes),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).map(str.encode),
    # More characters than a signature has bits, and lengths about those of a machine word.
    st.text(st.sampled_from([chr(code) for code in range(0x400, 0x460)]), min_size=1, max_size=9).map(str.encode),
    st.integers(60, 70).flatmap(lambda n: st.text(st.sampled_from("= -a"), min_size=n, max_size=n).map(str.encode)),
)


@st.composite
def tables(draw: st.DrawFn) -> TokenTable:
    pieces: list[bytes | None] = list(draw(st.lists(PIECE, min_size=1, max_size=30)))
    fallback = [draw(st.sampled_from([b"a", b"\xc3", b"\xff", b"b"])) for _ in range(draw(st.integers(0, 3)))]
    at = draw(st.integers(0, len(pieces)))
    pieces[at:at] = fallback
    return table([*pieces, None, b"x"], {}, set(range(at, at + len(fallback))))


@settings(max_examples=200, deadline=None)
@given(source=tables(), target=tables(), block=st.sampled_from([1, 3, 16]), keep=st.sampled_from([1, 2, 8]))
def test_mined_map_equals_brute_force(source: TokenTable, target: TokenTable, block: int, keep: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = build_vocab_map(source, target, "mined")
    for token, piece in enumerate(source.token_bytes):
        if piece is None:
            assert (found.target_ids[token], found.kind[token]) == (-1, MapKind.DROPPED)
            continue
        distance, ids = all_nearest(piece, target)
        assert (found.distance[token], found.target_ids[token]) == (distance, ids[0])
        assert (found.kind[token] == MapKind.EDITED) == (distance > 0)
        assert equally_near(source, target, [token], keep) == [(ids[:keep], len(ids))]


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


LLAMA3 = ("llama_models", "llama3", "tokenizer.model")
TEKKEN = ("mistral_common", "data", "tekken_240911.json")
MISTRAL = ("mistral_common", "data", "tokenizer.model.v1")


@cache
def real_pieces(package: str, *path: str) -> list[bytes]:
    """The tokens of a tokenizer file that a development package brings, as bytes, without special ones."""
    file = installed_file(package, *path)
    if path[-1].endswith(".json"):
        return [base64.b64decode(entry["token_bytes"]) for entry in json.loads(file.read_bytes())["vocab"]]
    if package == "llama_models":
        return [base64.b64decode(line.split()[0]) for line in file.read_bytes().splitlines()]
    model = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(file))
    pieces = [model.id_to_piece(token) for token in range(259, model.vocab_size())]
    return [*(bytes([byte]) for byte in range(256)), *(piece.replace("▁", " ").encode() for piece in pieces)]


def installed_file(package: str, *path: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent.joinpath(*path)


@pytest.mark.parametrize(("source", "target"), [(LLAMA3, TEKKEN), (TEKKEN, MISTRAL), (MISTRAL, LLAMA3)])
def test_samples_of_real_vocabularies_equal_brute_force(source: tuple[str, ...], target: tuple[str, ...]) -> None:
    """Against another implementation of the distance, over every pair of the sample and the whole target."""
    candidates = list(dict.fromkeys(real_pieces(*target)))
    rest = sorted(set(real_pieces(*source)) - set(candidates))
    sample = [rest[index] for index in np.random.default_rng(5).choice(len(rest), 80, replace=False)]
    sample += [b"\xf0\x9f\x98", b"\xff", "\u00e9".encode() * 40, b" " * 63 + b"|", b" " * 64 + b"|", b"=-" * 60]
    found = nearest(sample, candidates, keep=5)
    is_text = np.array([text_of(candidate) is not None for candidate in candidates])
    texts, raw = [text_of(candidate) or "" for candidate in candidates], list(map(bytes_as_text, candidates))
    for row, piece in enumerate(sample):
        text, of_bytes = text_of(piece), cdist([bytes_as_text(piece)], raw, scorer=Levenshtein.distance)[0]
        of_text = of_bytes if text is None else cdist([text], texts, scorer=Levenshtein.distance)[0]
        distances = np.where(is_text, of_text, of_bytes)
        near = np.flatnonzero(distances == distances.min()).tolist()
        near.sort(key=lambda index: (-common_prefix(piece, candidates[index]), index))
        assert found.distance[row] == distances.min()
        assert found.ties[row] == len(near)
        assert [index for index in found.candidates[row].tolist() if index >= 0] == near[:5]


def test_kernels_compile_where_no_folder_can_keep_them() -> None:
    """A function without a source file has no place for its machine code, like one in a read-only checkout."""
    names: dict[str, Any] = {}
    exec("def double(number):\n    return 2 * number", names)
    assert compiled(names["double"])(21) == 42


def test_modes_without_a_search_do_without_the_compiler() -> None:
    names = ("vocabulary.vocab_map", "explain", "positions")
    code = "import sys; sys.modules['numba'] = None\n" + "".join(f"import fusionx.align.{name}\n" for name in names)
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


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


@pytest.mark.parametrize("mode", get_args(Mode))
def test_special_tokens_map_by_role_only(mode: Mode) -> None:
    source = table([None, None, None, None, b"<s>", b"z"], {0: "bos", 1: "eos", 2: "pad", 3: "special"})
    target = table([None, None, None, b"<s>x", b"y"], {0: "eos", 1: "bos", 2: "special"})
    found = build_vocab_map(source, target, mode)
    assert found.target_ids[:4].tolist() == [1, 0, -1, -1]
    assert not set(found.target_ids[4:].tolist()) & set(target.special_role)


def test_exact_drops_what_has_no_equal() -> None:
    found = build_vocab_map(table([b"a", b"b"]), table([b"b"]), "exact")
    assert found.target_ids.tolist() == [-1, 0]
    assert found.counts() == {"dropped": 1, "exact": 1, "special": 0, "byte": 0, "edited": 0}


@pytest.mark.parametrize("mode", get_args(Mode))
def test_targets_without_any_token_drop_everything(mode: Mode) -> None:
    found = build_vocab_map(table([b"a"]), table([None], {0: "eos"}), mode)
    assert found.target_ids.tolist() == [-1]


@pytest.mark.parametrize("mode", ["first-token", "walk", ""])
def test_an_unknown_mode_is_refused(mode: str, tmp_path: Path) -> None:
    both = table([b"a"])
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        build_vocab_map(both, both, mode)  # type: ignore[arg-type]
    replace(build_vocab_map(both, both, "exact"), mode=mode).save(tmp_path / "map.parquet")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="vocabulary map"):
        VocabMap.load(tmp_path / "map.parquet")


@pytest.mark.parametrize("mode", get_args(Mode))
def test_identity_map_keeps_every_id(mode: Mode) -> None:
    both = table([None, b"a", None, b"a", None], {0: "bos", 4: "special"})
    found = identity_map(both, mode)
    assert found.target_ids.tolist() == [0, 1, -1, 3, 4]
    assert found.counts()["special"] == 2
    assert found.mode == mode


def test_all_that_are_equally_near_are_named_in_the_order_of_preference() -> None:
    source = table([b"abcd", b"abc", None, b"zz"], {2: "eos"})
    target = table([b"xbcd", b"abc", b"abd", None, b"bcd", *(bytes([97 + n]) for n in range(12))], {3: "eos"})
    found = equally_near(source, target, [0, 1, 3], 8)
    assert found == [([1, 2, 0, 4], 4), ([1], 1), ([*range(5, 13)], 12)]  # twelve are two edits from "zz"
    assert build_vocab_map(source, target, "mined").target_ids.tolist() == [1, 1, 3, 5]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_odd_vocabularies(mode: Mode) -> None:
    """Holes, empty pieces, one spelling under several ids, and a special token spelled like an ordinary one."""
    source = table([b"<s>", None, b"", b"ab", b"ab", None, b"<s>"], {1: "bos"})
    target = table([None, b"", b"ab", None, b"<s>", b"ab", b"abc"], {3: "bos"})
    found = build_vocab_map(source, target, mode)
    assert found.target_ids.tolist() == [4, 3, -1, 2, 2, -1, 4]
    assert found.kind[[2, 5]].tolist() == [MapKind.DROPPED] * 2
    assert found.distance.tolist() == [0, 0, -1, 0, 0, -1, 0]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_tokenizers_without_special_tokens(mode: Mode) -> None:
    bare, full = table([b"a", b"b"]), table([None, None, None, b"a"], {0: "unk", 1: "bos", 2: "eos"})
    assert build_vocab_map(full, bare, mode).target_ids.tolist() == [-1, -1, -1, 0]
    assert build_vocab_map(bare, full, mode).target_ids.tolist() == [3, 3 if mode == "mined" else -1]
    assert build_vocab_map(table([]), bare, mode).target_ids.tolist() == []
    assert build_vocab_map(bare, table([]), mode).target_ids.tolist() == [-1, -1]


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
