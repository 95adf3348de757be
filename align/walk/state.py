"""What the walk's kernels read, write and keep, as tuples of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.align.walk.byte_trie import ByteTrie

Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NOT_ALIGNED, EXACT_BOUNDARY, INSIDE_TOKEN, NOTHING_COMPATIBLE = 0, 1, 3, 4
"""`align.positions.Status`, whose members a kernel cannot read."""


class Tokens(NamedTuple):
    """One side's tokens, row after row: ids uint32 [T], ends int32 [T]; rows: int64 [rows + 1], where each begins."""

    ids: UInt32
    ends: Int32
    rows: Int64


class Said(NamedTuple):
    """What a model says at T positions: those of position t are entries starts[t] to starts[t + 1].

    starts: int64 [T + 1]. ids: uint32 (of a signed index numba asks each time whether it counts from the end), probs:
    float32, best first. tail: float32 [T].
    """

    starts: Int64
    ids: UInt32
    probs: Float32
    tail: Float32


class OwnPath(NamedTuple):
    """The source's own next token at its S positions.

    prob: float64 [S], its exact probability. entry: int64 [S], where it stands among the entries, -1 where it does not.
    tail: float32 [S], what is outside the entries and is not the own token's.
    leads: int32, one for every entry of the source's: within a target token and at its end, the first token that the
        target writes for its bytes so far and the entry; `NO_TOKEN`; `NOT_MET` for an entry that says nothing there.
    """

    prob: Float64
    entry: Int64
    tail: Float32
    leads: Int32


class Tables(NamedTuple):
    """Of Vs source and Vt target tokens.

    written, written_ids: the target tokens of every source token, those of token s from written[s] to written[s + 1]; a
        special token's is the target's of the same role.
    leads_to: int32 [Vs], the first of them, -1 for none.
    begun_by: int32 [Vt], the first of the several source tokens that the source writes a target token with; -1 where it
        is one token for the source, and where the target itself would not write it.
    begins: int32 [Vs], how many target tokens a source token has begun so.
    followed_by: uint8 [Vs], `LETTER` or `SPACE`: what comes after a token that ends in white space; 0 for the others.
    source_byte, target_byte: uint8 [Vs] and [Vt], the first byte, 0 for none.
    goes_on: uint64 [Vt, 4], a bit for every byte that follows a target token in a longer one.
    source_lengths, target_lengths: int32 [Vs] and [Vt], bytes.
    source, target: all beginnings of their tokens.
    """

    written: npt.NDArray[np.int64]
    written_ids: Int32
    leads_to: Int32
    begun_by: Int32
    begins: Int32
    followed_by: npt.NDArray[np.uint8]
    source_byte: npt.NDArray[np.uint8]
    target_byte: npt.NDArray[np.uint8]
    goes_on: npt.NDArray[np.uint64]
    source_lengths: Int32
    target_lengths: Int32
    source: ByteTrie
    target: ByteTrie


class Continuations(NamedTuple):
    """The target's tokens for a beginning of a target token and a source token after it, in a table of open addressing.

    keys: int64 [2^n], node * (Vs + 1) + source token (Vs for none), -1 where empty. row: int32 [2^n]. starts: int64,
    ids: int32; the tokens of row r are ids[starts[r] : starts[r + 1]].
    """

    keys: npt.NDArray[np.int64]
    row: Int32
    starts: npt.NDArray[np.int64]
    ids: Int32


class Walked(NamedTuple):
    """What comes out at L target positions.

    ids: int32, probs: float32, counts: uint16 [L]: a position's entries, best first. label: float64 [L], the
    probability of the next token, NaN where nothing is known. status: uint8 [L].
    """

    ids: Int32
    probs: Float32
    counts: npt.NDArray[np.uint16]
    label: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]


class Trail(NamedTuple):
    """Where mass went, for a person: [n] each. position: of the target. step: the source position. source, target: ids,
    -1 for the text's own path and for what is filled in, -2 for the tail. mass: float32, of 1.
    size: int64 [1], rows filled so far.
    """

    position: Int64
    step: Int64
    source: Int32
    target: Int32
    mass: Float32
    size: Int64

    @classmethod
    def of(cls, rows: int) -> Trail:
        whole, small = np.zeros(rows, np.int64), np.zeros(rows, np.int32)
        return cls(whole, whole.copy(), small, small.copy(), np.zeros(rows, np.float32), np.zeros(1, np.int64))


class Scratch(NamedTuple):
    """What a walk works with; made outside, because the kernel does without reference counts.

    place: int64 [Vt], where a target token stands in `ids` and `mass`, plus a position's offset.
    filled: int64 [Vt], the last of the fill-in's entries that was a target token's; head: int64 [Vs], the first whose
    target token a source token begins. At a position both say something only where they are among its entries.
    longer: such entries of a position. begun, beginners, rate: of every head, what the fill-in expects of all that its
    source token begins, how many they are, and what each gets per expectation.
    chosen, candidates, weights, stays: of a position's entries at a time. ranking: of the k best. alternatives: two
    lists of the source tokens that led elsewhere than the text's own but agree with the target so far: rows of (source
    token, node of the target's beginning before it, target tokens since, byte where it begins, step), and their mass.
    numbers: int64, see the constants below.
    lost: float64 [2], mass that agrees with x and of which the source says no more: spelled the same text as the own
        path, and within a token that no distribution is known of.
    """

    place: Int64
    ids: Int32
    mass: Float64
    filled: Int64
    head: Int64
    longer: Int64
    begun: Float64
    beginners: Int64
    rate: Float64
    candidates: Int64
    chosen: Int64
    weights: Float64
    stays: Float64
    ranking: npt.NDArray[np.uint64]
    alternatives: Int64
    alternative_mass: Float64
    numbers: Int64
    lost: Float64

    @classmethod
    def of(cls, said: Said, fill: Said, tables: Tables, k: int) -> Scratch:
        entries = 1 + int(max(np.diff(said.starts).max(initial=0), np.diff(fill.starts).max(initial=0)))
        targets, sources = len(tables.target_lengths), len(tables.source_lengths)
        return cls(
            np.full(targets, -1, np.int64),
            np.zeros(MOST_MET, np.int32),
            np.zeros(MOST_MET, np.float64),
            np.full(targets, -1, np.int64),
            np.full(sources, -1, np.int64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.float64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.float64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.float64),
            np.ones(entries, np.float64),
            np.zeros(k + 1, np.uint64),
            np.zeros((2 * MOST_ALTERNATIVES, 5), np.int64),
            np.zeros(2 * MOST_ALTERNATIVES, np.float64),
            np.zeros(5, np.int64),
            np.zeros(2, np.float64),
        )


MET, OFFSET, SURVIVORS, FIRST_SURVIVOR, LONGER = 0, 1, 2, 3, 4
"""Of `Scratch.numbers`: target tokens met, the offset of `place`, alternatives that agree with x, their first row, the
fill-in's entries in `longer`."""
LETTER, SPACE = 1, 2
"""Of `Tables.followed_by`."""
WHITE_SPACE = 32
"""The highest byte of it."""
NOT_MET, NO_TOKEN = -1, -2
"""Of `OwnPath.leads`."""
LEAST = 1e-37
"""A probability that fp16 logarithms and float32 still hold; no next token gets less."""
MOST_MET = 1 << 13
"""Target tokens that one position can meet; what comes after them joins the tail."""
MOST_ALTERNATIVES = 1 << 11
SMALL = 1e-3
"""An entry of less mass goes whole to the first token of its own text, unless the fill-in knows a longer one."""
NO_MASS = 1e-7
"""Alternatives of less mass are not followed."""
