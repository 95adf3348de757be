"""The spans of text that a candidate and the target have both scored, whatever their tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from fusionx.contract.tokens.boundaries import agreeing_positions

Array = TypeVar("Array")


class Spans(NamedTuple, Generic[Array]):
    """S spans between neighbouring boundaries on which a candidate's tokenization and the target's agree.

    starts, stops: int64 [S]; the target's own NLL of a span is the sum of its label NLLs at the positions from `starts`
    to before `stops`. candidates: int64 [S], whose span it is. nll: float32 [S], the candidate's own, nats.
    """

    starts: Array
    stops: Array
    candidates: Array
    nll: Array


def spans_between(
    source_ends: np.ndarray, target_ends: np.ndarray, token_nll: np.ndarray, candidate: int
) -> Spans[np.ndarray]:
    """All spans of one chunk and candidate, in order.

    A span begins where both sides have consumed a token, so that every token in it has an NLL: what a side without a
    BOS reads first is in none.

    Args:
        source_ends, target_ends: int32 [Ls] and [Lt], bytes consumed after each token, never decreasing.
        token_nll: float32 [Ls], the candidate's NLL of each next token.
    """
    source_at, target_at = agreeing_positions(source_ends, target_ends)
    nll = np.zeros(0)
    if len(source_at) > 1:
        nll = np.add.reduceat(token_nll[: source_at[-1]], source_at[:-1], dtype=np.float64)
    starts, stops = target_at[:-1], target_at[1:]
    return Spans(starts, stops, np.full(len(starts), candidate), nll.astype(np.float32))


def shifted(spans: Spans[np.ndarray], by: int) -> Spans[np.ndarray]:
    """The same spans over positions that are counted from another place."""
    return spans._replace(starts=spans.starts + by, stops=spans.stops + by)


def joined(pieces: Iterable[Spans[np.ndarray]]) -> Spans[np.ndarray]:
    """At least one piece, one after another."""
    return Spans(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
