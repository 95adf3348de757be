"""The nearest candidates where the search takes short cuts, against comparing every pair."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.vocabulary.edit_distance import token_distance
from fusionx.align.vocabulary.nearest_token import nearest

KEEP = 4


def common_prefix(first: bytes, second: bytes) -> int:
    length = 0
    while first[length : length + 1] == second[length : length + 1] != b"":
        length += 1
    return length


def assert_equals_every_pair(tokens: list[bytes], candidates: list[bytes]) -> None:
    found = nearest(tokens, candidates, KEEP)
    for row, token in enumerate(tokens):
        distances = [token_distance(token, candidate) for candidate in candidates]
        near = [index for index, distance in enumerate(distances) if distance == min(distances)]
        near.sort(key=lambda index: (-common_prefix(token, candidates[index]), index))
        assert found.distance[row] == min(distances)
        assert found.ties[row] == len(near)
        assert found.candidates[row].tolist() == (near[:KEEP] + [-1] * KEEP)[:KEEP]


# Characters in two to four bytes that share one, two or three leading ones with another, and some that share none.
FOREIGN = "éêẽ你佡好한😀😁"
TEXT = st.text(st.sampled_from("aab" + FOREIGN), min_size=1, max_size=6).map(str.encode)
RAW = st.sampled_from([b"\xc3", b"\xe4\xbd", b"a\xe4", b"\xf0\x9f\x98", b"\xf0\x9fa", b"\xff"])


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.one_of(TEXT, RAW), min_size=1, max_size=60),
    candidates=st.lists(
        st.one_of(st.text(st.sampled_from("abë你"), min_size=1, max_size=6).map(str.encode), RAW),
        min_size=1,
        max_size=20,
        unique=True,
    ),
)
def test_tokens_with_characters_that_no_candidate_has(tokens: list[bytes], candidates: list[bytes]) -> None:
    assert_equals_every_pair(tokens, candidates)


def test_characters_alike_up_to_their_first_bytes_keep_their_own_ties() -> None:
    """No candidate has the first characters, so all distances are equal; a byte of one of them decides."""
    candidates = [b"xa", "ëa".encode(), "佡a".encode()]
    assert nearest(["한a".encode(), "éa".encode(), "你a".encode(), "êa".encode()], candidates).candidates.tolist() == [
        [0],
        [1],
        [2],
        [1],
    ]


def test_signatures_bound_the_distance_of_tokens_of_unequal_length() -> None:
    """Repeated and rare characters, so that bits of both kinds are set, and lengths far apart."""
    generator = np.random.default_rng(1)
    letters = np.array([chr(code) for code in range(0x61, 0x61 + 70)])

    def words(count: int, most: int) -> list[bytes]:
        skewed = (generator.random((count, most)) ** 3 * len(letters)).astype(int)
        lengths = generator.integers(1, most + 1, count)
        return ["".join(letters[row[:length]]).encode() for row, length in zip(skewed, lengths, strict=True)]

    assert_equals_every_pair(words(150, 40) + words(5, 90), list(dict.fromkeys(words(300, 14) + words(30, 80))))


def test_tokens_alike_to_raw_candidates_keep_what_they_found_among_texts() -> None:
    found = nearest([b"aa", b"bb"], [b"bbd", b"aac", b"\xff"])
    assert found.candidates.tolist() == [[1], [0]]
    assert found.ties.tolist() == [1, 1]
