"""Which source position's distribution stands for which target position of the same text.

The distribution stored at position l predicts token l + 1, given everything up to the end of token l. Two positions
are the same place exactly where both tokenizations have consumed the same bytes.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from fusionx.align.vocabulary.edit_distance import text_of, token_distance
from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.contract.tokens.boundaries import agreeing_positions
from fusionx.contract.tokens.token_table import TokenTable

Int32Array = npt.NDArray[np.int32]

_MATCH, _SKIP_SOURCE, _SKIP_TARGET = range(3)
_MOST_PAIRS = 1 << 22
"""Source times target tokens of the longest span that is matched: seconds of time, and a byte each."""


class Status(IntEnum):
    """How a target position was aligned.

    NOT_ALIGNED: the source says nothing there. EXACT_BOUNDARY: both have consumed the same bytes. MINED_MATCH: matched
    by the paper's edit costs. INSIDE_TOKEN: the target has consumed a piece of a source token. NOTHING_COMPATIBLE:
    inside a token, and of the source's entries only the text's own agrees with that piece.
    """

    NOT_ALIGNED = 0
    EXACT_BOUNDARY = 1
    MINED_MATCH = 2
    INSIDE_TOKEN = 3
    NOTHING_COMPATIBLE = 4


def align_positions(
    source_ends: Int32Array,
    source_ids: Int32Array,
    target_ends: Int32Array,
    target_ids: Int32Array,
    source_table: TokenTable,
    target_table: TokenTable,
    vocab_map: VocabMap | None = None,
) -> tuple[Int32Array, npt.NDArray[np.uint8]]:
    """Source position and `Status` of every target position of one chunk.

    Positions with equal `ends` are aligned (`contract.tokens.boundaries`).

    With a `vocab_map` (the paper's procedure, section 3.1), each disagreeing span between two agreeing boundaries is
    also matched by `_match_span`. Such a match joins places that have consumed different bytes; without a map these
    positions stay not aligned. So do those of a span of more than 2048 x 2048 tokens, which no block of that size has.

    Args:
        source_ends, target_ends: int32 [Ls] and [Lt], bytes consumed after each token, never decreasing.
        source_ids, target_ids: int32 [Ls] and [Lt]; they, and the tables, matter only with a `vocab_map`.

    Returns:
        source_index int32 [Lt], -1 where not aligned, and status uint8 [Lt].
    """
    source_index = np.full(len(target_ends), -1, np.int32)
    status = np.full(len(target_ends), Status.NOT_ALIGNED, np.uint8)
    source_at, target_at = agreeing_positions(source_ends, target_ends)
    source_index[target_at] = source_at
    status[target_at] = Status.EXACT_BOUNDARY
    if vocab_map is not None:
        agreed = target_ends[target_at]
        source_free = _tokens(source_ids, source_table, ~np.isin(source_ends, agreed))
        target_free = _tokens(target_ids, target_table, ~np.isin(target_ends, agreed))
        for source_span, target_span in _spans(source_at, target_at, len(source_ends), len(target_ends)):
            source_tokens = [(at, source_free[at]) for at in source_span if at in source_free]
            target_tokens = [(at, target_free[at]) for at in target_span if at in target_free]
            for source, target in _match_span([t for _, t in source_tokens], [t for _, t in target_tokens]):
                source_position, target_position = source_tokens[source][0], target_tokens[target][0]
                if vocab_map.target_ids[source_ids[source_position]] == target_ids[target_position]:
                    source_index[target_position] = source_position
                    status[target_position] = Status.MINED_MATCH
    return source_index, status


def _spans(
    source_at: npt.NDArray[np.int64], target_at: npt.NDArray[np.int64], source_length: int, target_length: int
) -> list[tuple[range, range]]:
    """The positions strictly between neighbouring agreeing boundaries, where both sides have some."""
    sources = [-1, *source_at.tolist(), source_length]
    targets = [-1, *target_at.tolist(), target_length]
    spans = [
        (range(sources[boundary] + 1, sources[boundary + 1]), range(targets[boundary] + 1, targets[boundary + 1]))
        for boundary in range(len(sources) - 1)
    ]
    return [(source, target) for source, target in spans if source and target]


def _tokens(ids: Int32Array, table: TokenTable, free: npt.NDArray[np.bool_]) -> dict[int, bytes]:
    """Position -> bytes of the tokens that may take part in a span's matching: no special ones, no boundary's."""
    found = ((int(at), table.token_bytes[ids[at]]) for at in np.flatnonzero(free))
    return {at: piece for at, piece in found if piece}


def _match_span(source: list[bytes], target: list[bytes]) -> list[tuple[int, int]]:
    """One-to-one, order-keeping matches of minimum total edit cost between the tokens of one span.

    Matching two tokens costs their edit distance (`align.vocabulary.edit_distance`), leaving a token unmatched costs
    its length in characters (in bytes where it is no valid UTF-8). This is the paper's and FuseLLM's program with
    explicit costs for unmatched tokens, so that a token takes part in one match at most. Read from the end, ties prefer
    a match, then an unmatched source token, then an unmatched target token. A span of more than `_MOST_PAIRS` has no
    matches.
    """
    if not 0 < len(source) * len(target) <= _MOST_PAIRS:
        return []
    moves = _span_moves(source, target)
    matches = []
    row, column = len(source), len(target)
    while row and column:
        move = moves[row - 1, column - 1]
        if move == _MATCH:
            matches.append((row - 1, column - 1))
        row -= move != _SKIP_TARGET
        column -= move != _SKIP_SOURCE
    return matches[::-1]


def _span_moves(source: list[bytes], target: list[bytes]) -> npt.NDArray[np.uint8]:
    """How the cheapest way to every pair of non-empty prefixes ends, uint8 [len(source), len(target)].

    The costs themselves are kept of one row only, so that a long span takes a byte a pair.
    """
    distinct = {piece: rank for rank, piece in enumerate(dict.fromkeys(target))}  # a long span repeats few tokens
    rank_of = np.array([distinct[piece] for piece in target])
    skipped = np.array([0, *accumulate(map(_length, target))])
    moves = np.empty((len(source), len(target)), np.uint8)
    cost = skipped
    for row, piece in enumerate(source):
        matching = cost[:-1] + np.array([token_distance(piece, other) for other in distinct])[rank_of]
        skipping_source = cost + _length(piece)
        best = np.append(skipping_source[0], np.minimum(matching, skipping_source[1:]))
        cost = np.minimum.accumulate(best - skipped) + skipped  # with any number of target tokens skipped after it
        moves[row] = np.where(cost[1:] == skipping_source[1:], _SKIP_SOURCE, _SKIP_TARGET)
        moves[row, cost[1:] == matching] = _MATCH
    return moves


def _length(piece: bytes) -> int:
    text = text_of(piece)
    return len(piece) if text is None else len(text)
