"""The chain rule for the label: what a target token is worth that a source spells in several tokens of its own.

At a place where both tokenizations agree, the source predicts its own next token only. Where the target's next token
spans several of the source's and ends where one of them ends, the source has said how probable that whole text is: the
product of its probabilities along these tokens. This mass is the target token's; it is part of what the source gave to
the first of its tokens, and leaves whatever that one is mapped to.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusionx.align.projection import Moves
from fusionx.contract.shards.parts import Ragged


def chain_rule_moves(
    source_index: npt.NDArray[np.integer],
    target_ids: Ragged,
    source_ids: npt.NDArray[np.int32],
    token_nll: npt.NDArray[np.floating],
    map_ids: npt.NDArray[np.int32],
) -> Moves:
    """Moves of every target position; none where the next target token is one source token, or ends inside one.

    Args:
        source_index: int [L], the source's position (in the part's flat arrays) that has consumed the same bytes, -1
            where there is none. target_ids: int32, chunk by chunk, L in all.
        source_ids, token_nll: [S], the source's tokens and, at each, the NLL (nats) of its next token.
        map_ids: int32 [Vs], the target id of every source id, -1 where it is dropped.
    """
    size = len(source_index)
    moves = Moves.none(size)
    before = np.append(0.0, np.cumsum(token_nll, dtype=np.float64))
    has_next = np.ones(size, bool)
    has_next[target_ids.offsets[1:][target_ids.lengths() > 0] - 1] = False
    at = np.flatnonzero(has_next & (source_index >= 0))
    at = at[source_index[at + 1] - source_index[at] > 1]
    start, stop = source_index[at].astype(np.int64), source_index[at + 1].astype(np.int64)
    moves.mass[at] = np.exp(before[start] - before[stop])
    first = source_ids[start + 1]
    known = first < len(map_ids)
    moves.giver[at[known]] = map_ids[first[known]]
    moves.taker[at] = target_ids.values[at + 1]
    return moves
