"""The walk itself, compiled: every position's distribution in one pass over a part, and what it will have to look up.

Sources and target tokenize the same text. At each target position the walk starts from the last source position that
has consumed no more, follows the text's own source tokens to the end of the next target token, and says on the way
where every other token that the source held possible would have led (DESIGN: docs/concepts.md, "The walk").

Terms: b, e: the bytes where the next target token x begins and ends. Step j: the source position j on the way; its
entries u. `spent`: bytes of an entry that lie before b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba import njit
compiled=njit(cache=True,_nrt=False)
from fusionx.align.walk.byte_trie import ByteTrie

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NOT_ALIGNED, EXACT_BOUNDARY, INSIDE_TOKEN, NOTHING_COMPATIBLE = 0, 1, 3, 4
"""`align.positions.Status`, whose members a kernel cannot read."""


class Tokens(NamedTuple):
    """One side's tokens, row after row: ids and ends int32 [T]; rows: int64 [rows + 1], where each row begins."""

    ids: Int32
    ends: Int32
    rows: Int64


class Said(NamedTuple):
    """What a model says at T positions: those of position t are entries starts[t] to starts[t + 1].

    starts: int64 [T + 1]. ids: int32, probs: float32, best first. tail: float32 [T].
    """

    starts: Int64
    ids: Int32
    probs: Float32
    tail: Float32


class OwnPath(NamedTuple):
    """The source's own next token at its S positions.

    prob: float64 [S], its exact probability. entry: int64 [S], where it stands among the entries, -1 where it does not.
    tail: float32 [S], what is outside the entries and is not the own token's.
    """

    prob: Float64
    entry: Int64
    tail: Float32


class Tables(NamedTuple):
    """Of Vs source and Vt target tokens.

    written, written_ids: the target tokens of every source token, those of token s from written[s] to written[s + 1]; a
        special token's is the target's of the same role.
    to_target: int32 [Vs, 2], the first of them (-1 for none), and how many target tokens have this one as `first`.
    first: int32 [Vt], the first of the several source tokens that the source writes a target token with; -1 where it is
        one token for the source, and where the target itself would not write it.
    source_lengths, target_lengths: int32 [Vs] and [Vt], bytes.
    source, target: all beginnings of their tokens.
    """

    written: npt.NDArray[np.int64]
    written_ids: Int32
    to_target: Int32
    first: Int32
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
    -1 for the text's own path. mass: float32, of 1. size: int64 [1], rows filled so far.
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


@compiled
def _slot(keys, key):  # type: ignore[no-untyped-def]
    """Where `key` stands or belongs in a table of open addressing."""
    mask = len(keys) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(20)) & mask
    while keys[slot] != key and keys[slot] >= 0:
        slot = (slot + 1) & mask
    return slot


@compiled
def insert(keys, row_of, new_keys, new_rows):  # type: ignore[no-untyped-def]
    """Enters new keys into a table that has room for them."""
    for at in range(len(new_keys)):
        slot = _slot(keys, new_keys[at])
        keys[slot], row_of[slot] = new_keys[at], new_rows[at]


@compiled
def _child(trie, node, byte):  # type: ignore[no-untyped-def]
    """The node that `byte` leads to, -1 where no token goes on so."""
    low, high = trie.child_start[node], trie.child_start[node + 1]
    while low < high:
        middle = (low + high) >> 1
        if trie.label[middle] < byte:
            low = middle + 1
        else:
            high = middle
    if low < trie.child_start[node + 1] and trie.label[low] == byte:
        return low
    return -1


@compiled
def _follow(trie, node, data, start, stop):  # type: ignore[no-untyped-def]
    """Follows data[start:stop] from `node`: the last node reached (-1 if it was left) and whether a token ended on
    the way."""
    hit = False
    for at in range(start, stop):
        node = _child(trie, node, data[at])
        if node < 0:
            return -1, hit
        hit = hit or trie.token[node] >= 0
    return node, hit


@compiled
def _begins(tables, y, skip, u, spent):  # type: ignore[no-untyped-def]
    """Whether target token y, from byte `skip`, begins with source token u from byte `spent`, and is longer."""
    length = tables.source_lengths[u] - spent
    if tables.target_lengths[y] - skip <= length:
        return False
    left, right = tables.target.starts[y] + skip, tables.source.starts[u] + spent
    for at in range(length):
        if tables.target.bytes[left + at] != tables.source.bytes[right + at]:
            return False
    return True


@compiled
def _meant(tables, y, at, u):  # type: ignore[no-untyped-def]
    """Whether the source, which wrote u, may have meant target token y, whose bytes from `at` come after u: not if it
    has a longer token for them."""
    node = tables.source.path[tables.source.starts[u + 1] - 1]
    for byte in range(tables.target.starts[y] + at, tables.target.starts[y + 1]):
        node = _child(tables.source, node, tables.target.bytes[byte])
        if node < 0:
            return True
        if tables.source.token[node] >= 0:
            return False
    return True


@compiled
def _key(tables, node, u):  # type: ignore[no-untyped-def]
    return np.int64(node) * len(tables.written) + u  # written has Vs + 1 values: u is below it, Vs stands for none


@compiled
def _continuation(tables, known, node, u, which):  # type: ignore[no-untyped-def]
    """The target token number `which` of beginning `node` and source token `u`, -1 where there is none."""
    if node == 0:
        at = tables.written[u] + which
        return tables.written_ids[at] if at < tables.written[u + 1] else -1
    slot = _slot(known.keys, _key(tables, node, u))
    if known.keys[slot] < 0:
        return -1
    at = known.starts[known.row[slot]] + which
    return known.ids[at] if at < known.starts[known.row[slot] + 1] else -1


@compiled
def _first_question(tables, node, u):  # type: ignore[no-untyped-def]
    """What has to be asked for the first target token of beginning `node` and source token u: the key, or -1 and the
    answer."""
    source = tables.source
    reached, hit = _follow(tables.target, node, source.bytes, source.starts[u], source.starts[u + 1])
    if reached >= 0 and tables.target.token[reached] >= 0:
        return np.int64(-1), tables.target.token[reached]
    # No token goes on from this beginning as u does: the token is among those of the beginning alone.
    return _key(tables, node, u if hit else len(tables.written) - 1), np.int32(-1)


@compiled
def _beginning(tables, target, position, length):  # type: ignore[no-untyped-def]
    """The node of the first `length` bytes of the target's token at `position`; -1 where it is not so long."""
    x = target.ids[position]
    if length > tables.target_lengths[x] or length < 0:
        return -1
    return tables.target.path[tables.target.starts[x] + length - 1] if length else 0


class Scratch(NamedTuple):
    """What a walk works with; made outside, because the kernel does without reference counts.

    Of target tokens, [Vt]: `place`, where one stands in `ids` and `mass`, plus a position's offset; `fill`, what the
    fill-in says of it at position `filled`. entry_of: int64 [Vs], where a source token was last seen among entries.
    rate, candidates, weights, stays: of a position's entries at a time. ranking: of the k best. alternatives: two lists
    of the source tokens that led elsewhere than the text's own but agree with the target so far: rows of (source token,
    node of the target's beginning before it, target tokens since, byte where it begins, step), and their mass.
    numbers: int64, see the constants below.
    """

    place: Int64
    ids: Int32
    mass: Float64
    fill: Float32
    filled: Int64
    entry_of: Int64
    rate: Float64
    candidates: Int64
    weights: Float64
    stays: Float64
    ranking: npt.NDArray[np.uint64]
    rounded: Float32
    bits: npt.NDArray[np.uint32]
    alternatives: Int64
    alternative_mass: Float64
    numbers: Int64
    unknown: Float64

    @classmethod
    def of(cls, said: Said, fill: Said, tables: Tables, k: int) -> Scratch:
        entries = 1 + int(max(np.diff(said.starts).max(initial=0), np.diff(fill.starts).max(initial=0)))
        targets, rounded = len(tables.target_lengths), np.zeros(1, np.float32)
        return cls(
            np.full(targets, -1, np.int64),
            np.zeros(_MOST_MET, np.int32),
            np.zeros(_MOST_MET, np.float64),
            np.zeros(targets, np.float32),
            np.full(targets, -2, np.int64),
            np.full(len(tables.source_lengths), -1, np.int64),
            np.zeros(entries, np.float64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.float64),
            np.ones(entries, np.float64),
            np.zeros(k + 1, np.uint64),
            rounded,
            rounded.view(np.uint32),
            np.zeros((2 * _MOST_ALTERNATIVES, 5), np.int64),
            np.zeros(2 * _MOST_ALTERNATIVES, np.float64),
            np.zeros(4, np.int64),
            np.zeros(4, np.float64),
        )


_MET, _OFFSET, _SURVIVORS, _FIRST_SURVIVOR = 0, 1, 2, 3
"""Of `Scratch.numbers`: target tokens met, the offset of `place`, alternatives that agree with x, their first row."""
_LOST, _OTHERS, _AGREED = 0, 1, 2
"""Of `Scratch.unknown`: mass that agrees with x and of which the source says no more; mass of all entries that led
elsewhere than the own path, and of it what agrees with x."""
_MOST_MET = 1 << 13
"""Target tokens that one position can meet; what comes after them joins the tail."""
_MOST_ALTERNATIVES = 1 << 11
_NO_MASS = 1e-7
"""Alternatives of less mass are not followed."""


@compiled
def _give(scratch, trail, position, step, u, y, mass):  # type: ignore[no-untyped-def]
    """Target token y receives mass."""
    offset, met = scratch.numbers[_OFFSET], scratch.numbers[_MET]
    if scratch.place[y] >= offset:
        scratch.mass[scratch.place[y] - offset] += mass
    elif met < _MOST_MET:
        scratch.place[y] = offset + met
        scratch.ids[met], scratch.mass[met] = y, mass
        scratch.numbers[_MET] = met + 1
    row = trail.size[0]
    if row < len(trail.mass):
        trail.position[row], trail.step[row], trail.source[row] = position, step, u
        trail.target[row], trail.mass[row] = y, mass
        trail.size[0] = row + 1


@compiled
def _agrees(scratch, tables, u, node, which, begin, step, end, mass):  # type: ignore[no-untyped-def]
    """So much of source token u, which begins at byte `begin`, led to x, which ends at byte `end`."""
    scratch.unknown[_AGREED] += mass
    row = scratch.numbers[_FIRST_SURVIVOR] + scratch.numbers[_SURVIVORS]
    full = scratch.numbers[_SURVIVORS] == _MOST_ALTERNATIVES
    if full or mass < _NO_MASS or begin + tables.source_lengths[u] <= end:
        scratch.unknown[_LOST] += mass
        return
    scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2] = u, node, which
    scratch.alternatives[row, 3], scratch.alternatives[row, 4] = begin, step
    scratch.alternative_mass[row] = mass
    scratch.numbers[_SURVIVORS] += 1


@compiled
def _filled(scratch, position, y, unstored):  # type: ignore[no-untyped-def]
    """What the fill-in says of target token y."""
    return scratch.fill[y] if scratch.filled[y] == position else unstored


@compiled
def _divide(tables, scratch, trail, fill, place, u, spent, skip, node, token, mass, x):  # type: ignore[no-untyped-def]
    """Source token u led to target token `token`, or to a longer one that goes on with what it says: divides its mass
    by what the fill-in says of these, and returns the mass of x.

    place: target position, step, where the fill-in's entries begin and end, and its probability of all others. spent:
    bytes of u that the target has consumed. skip: bytes of the target's token before u, which lead to `node`.
    """
    position, step, start, stop, unstored = place
    total, size = 0.0, 0
    length = tables.source_lengths[u] - spent
    for entry in range(start, stop):
        y = fill.ids[entry]
        if skip and (
            tables.target_lengths[y] <= skip or tables.target.path[tables.target.starts[y] + skip - 1] != node
        ):
            continue
        if _begins(tables, y, skip, u, spent) and _meant(tables, y, skip + length, u):
            scratch.candidates[size], scratch.weights[size] = y, fill.probs[entry]
            total += fill.probs[entry]
            size += 1
    weight = _filled(scratch, position, token, unstored)
    total += weight
    if size == 0 or total <= 0.0:
        _give(scratch, trail, position, step, u, token, mass)
        return mass if token == x else 0.0
    of_x = 0.0
    for at in range(size):
        part = mass * scratch.weights[at] / total
        _give(scratch, trail, position, step, u, scratch.candidates[at], part)
        if scratch.candidates[at] == x:
            of_x += part
    part = mass * weight / total
    _give(scratch, trail, position, step, u, token, part)
    return of_x + part if token == x else of_x


@compiled
def _from_boundary(tables, scratch, trail, said, own, fill, place, x, end, begin, mass):  # type: ignore[no-untyped-def]
    """The entries of a step at which the boundaries agree: each leads to the first target token of its text, or to a
    longer one that the source writes beginning with it. mass: of the own path; `scratch.stays`: the part of each entry
    that has not left already."""
    position, step, start, stop, unstored = place
    first, last = said.starts[step], said.starts[step + 1]
    longer = False
    for at in range(start, stop):
        longer = longer or tables.first[fill.ids[at]] >= 0
    if longer:
        longer = False
        for entry in range(first, last):
            scratch.entry_of[said.ids[entry]] = entry
            scratch.rate[entry - first], scratch.candidates[entry - first] = 0.0, 0
        for at in range(start, stop):
            u = tables.first[fill.ids[at]]
            if u >= 0 and first <= scratch.entry_of[u] < last and said.ids[scratch.entry_of[u]] == u:
                scratch.rate[scratch.entry_of[u] - first] += fill.probs[at]
                scratch.candidates[scratch.entry_of[u] - first] += 1
                longer = True
    for entry in range(first, last):
        u, shown = said.ids[entry], entry - first
        weight, others = 0.0, np.int64(0)
        if longer:
            weight, others = scratch.rate[shown], scratch.candidates[shown]
            scratch.rate[shown] = 0.0
        if entry == own.entry[step]:
            continue
        here = said.probs[entry] * mass * scratch.stays[shown]
        scratch.unknown[_OTHERS] += here
        token = tables.to_target[u, 0]
        if token < 0:
            continue
        if tables.to_target[u, 1] == 0:
            _give(scratch, trail, position, step, u, token, here)
            if token == x:
                _agrees(scratch, tables, u, 0, 1, begin, step, end, here)
            continue
        own_weight = _filled(scratch, position, token, unstored)
        total = weight + own_weight + (tables.to_target[u, 1] - others) * unstored
        if total <= 0.0:
            _give(scratch, trail, position, step, u, token, here)
            if token == x:
                _agrees(scratch, tables, u, 0, 1, begin, step, end, here)
            continue
        scratch.rate[shown] = here / total
        part = here * own_weight / total
        _give(scratch, trail, position, step, u, token, part)
        if tables.first[x] == u:
            part = here * _filled(scratch, position, x, unstored) / total
            if scratch.filled[x] != position:
                _give(scratch, trail, position, step, u, x, part)
        if token == x or tables.first[x] == u:
            _agrees(scratch, tables, u, 0, 1, begin, step, end, part)
    if longer:
        for at in range(start, stop):
            y = fill.ids[at]
            u = tables.first[y]
            if u >= 0 and first <= scratch.entry_of[u] < last and said.ids[scratch.entry_of[u]] == u:
                rate = scratch.rate[scratch.entry_of[u] - first]
                if rate > 0.0:
                    _give(scratch, trail, position, step, u, y, rate * fill.probs[at])


@compiled
def _go_on(tables, known, scratch, trail, fill, place, x, b, end, first, size):  # type: ignore[no-untyped-def]
    """The alternatives from earlier positions: rows first to first + size."""
    position, _, start, stop, unstored = place
    for row in range(first, first + size):
        u, node, which = scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2]
        begin, step, mass = scratch.alternatives[row, 3], scratch.alternatives[row, 4], scratch.alternative_mass[row]
        scratch.unknown[_OTHERS] += mass
        token = _continuation(tables, known, node, u, which)
        if token < 0:
            continue
        here = (position, step, start, stop, unstored)
        of_x = _divide(tables, scratch, trail, fill, here, u, b - begin, 0, 0, token, mass, x)
        if of_x > 0.0:
            _agrees(scratch, tables, u, node, which + 1, begin, step, end, of_x)


@compiled
def _fill_in(scratch, trail, fill, place, x, mass):  # type: ignore[no-untyped-def]
    """What ended before b says nothing more: the fill-in alone knows how it goes on."""
    position, step, start, stop, unstored = place
    for at in range(start, stop):
        _give(scratch, trail, position, step, -1, fill.ids[at], mass * fill.probs[at])
    if scratch.filled[x] != position:
        _give(scratch, trail, position, step, -1, x, mass * unstored)
    scratch.unknown[_LOST] += mass * _filled(scratch, position, x, unstored)


@compiled
def _on_the_way(tables, known, scratch, trail, said, own, fill, place, x, end, begin, mass, node, length):  # type: ignore[no-untyped-def]
    """The entries of a step within x, of which the own path has spelled the first `length` bytes, which lead to
    `node`."""
    _, step, _, _, _ = place
    for entry in range(said.starts[step], said.starts[step + 1]):
        u = said.ids[entry]
        if entry == own.entry[step] or tables.source_lengths[u] == 0:
            continue
        here = said.probs[entry] * mass
        scratch.unknown[_OTHERS] += here
        key, token = _first_question(tables, node, u)
        if key >= 0:
            token = _continuation(tables, known, node, key - _key(tables, node, 0), 0)
        if token >= 0:
            of_x = _divide(tables, scratch, trail, fill, place, u, 0, length, node, token, here, x)
            if of_x > 0.0:
                _agrees(scratch, tables, u, node, 1, begin, step, end, of_x)


@compiled
def _may_extend(tables, s, u, node):  # type: ignore[no-untyped-def]
    """Whether u after x (at `node`), whose last source token is s, makes another, longer target token of it."""
    source = tables.source
    reached, hit = _follow(tables.target, node, source.bytes, source.starts[u], source.starts[u + 1])
    if reached < 0 and not hit:
        return False
    _, written_otherwise = _follow(
        source, source.path[source.starts[s + 1] - 1], source.bytes, source.starts[u], source.starts[u + 1]
    )
    return not written_otherwise


@compiled
def _at_the_end(tables, known, scratch, trail, said, own, fill, place, x, mass, s):  # type: ignore[no-untyped-def]
    """The entries of the step where x ends: only what makes a longer target token of it leaves; returns what stays, of
    1, and notes in `scratch.stays` what stays of every entry.

    Everything else, the stored tail too, is mass of x.
    """
    position, step, start, stop, unstored = place
    target = tables.target
    node = target.path[target.starts[x + 1] - 1]
    first, last = said.starts[step], said.starts[step + 1]
    left = 0.0
    for entry in range(first, last):
        u = said.ids[entry]
        if entry == own.entry[step] or tables.source_lengths[u] == 0 or not _may_extend(tables, s, u, node):
            continue
        key, token = _first_question(tables, node, u)
        if key >= 0:
            token = _continuation(tables, known, node, key - _key(tables, node, 0), 0)
        if token < 0 or tables.target_lengths[token] <= tables.target_lengths[x]:
            token = x
        here = said.probs[entry] * mass
        if here <= 0.0:
            continue
        of_x = _divide(tables, scratch, trail, fill, place, u, 0, tables.target_lengths[x], node, token, here, x)
        if of_x > 0.0:
            _give(scratch, trail, position, step, u, x, -of_x)  # it is among what stays
        scratch.stays[entry - first] = of_x / here
        left += said.probs[entry] * (1.0 - of_x / here)
    return max(1.0 - left, 0.0)


@compiled
def _keep(scratch, x, k, ids, probs, at):  # type: ignore[no-untyped-def]
    """Writes the k largest of what a position met to ids and probs from `at` on, x always among them; how many."""
    kept, own_rank = 0, np.uint64(0)
    ranking = scratch.ranking
    for met in range(scratch.numbers[_MET]):
        scratch.rounded[0] = scratch.mass[met]
        token = scratch.ids[met]
        if scratch.rounded[0] <= 0.0:
            if token != x:
                continue
            scratch.rounded[0] = 1e-37
        # One integer ranks by probability, then by falling id: a positive float's bits grow with it.
        rank = (np.uint64(scratch.bits[0]) << np.uint64(32)) | np.uint64(~np.uint32(token))
        if token == x:
            own_rank = rank
        if kept == k:
            if ranking[kept - 1] >= rank:
                continue
            kept -= 1
        to = kept
        while to > 0 and ranking[to - 1] < rank:
            ranking[to] = ranking[to - 1]
            to -= 1
        ranking[to] = rank
        kept += 1
    if own_rank < ranking[kept - 1]:
        ranking[kept - 1] = own_rank
    for rank in range(kept):
        scratch.bits[0] = ranking[rank] >> np.uint64(32)
        ids[at + rank], probs[at + rank] = np.int32(~np.uint32(ranking[rank])), scratch.rounded[0]
    return kept


@compiled
def walk(target, source, said, own, fill, tables, known, k, trail, walked, scratch):  # type: ignore[no-untyped-def]
    """Walks through all rows and fills `walked`, whose ids and probs have room for L k; returns the entries made.

    target, source: `Tokens`. said: `Said` at the source's positions, own: `OwnPath` along them. fill: `Said` at the
    target's positions, the fill-in; with no entries and tail 1 it knows nothing. k: entries to keep, the next token's
    always among them.

    Between positions there are, of 1 in all: `mass` of the text's own path, the alternatives', `lost`, which agrees with
    the target's tokens and of which the source says no more, and `tail`, what its tails are taken to hold of both.
    """
    size = 0
    for row in range(len(target.rows) - 1):
        first_target, end_target = target.rows[row], target.rows[row + 1]
        first_source, end_source = source.rows[row], source.rows[row + 1]
        if first_target == end_target:
            continue
        # A target without a BOS has no position before its first token, but the source's mass starts there all the same.
        begin = first_target if target.ends[first_target] == 0 else first_target - 1
        i, known_place = first_source - 1, False
        mass, lost, tail, stay = 1.0, 0.0, 0.0, 1.0
        survivors, first = np.int64(0), np.int64(0)
        for position in range(begin, end_target):
            unseen = position < first_target
            b = 0 if unseen else target.ends[position]
            while i + 1 < end_source and source.ends[i + 1] <= b:
                i += 1
            if not unseen:
                walked.counts[position], walked.status[position] = 0, NOT_ALIGNED
                walked.label[position] = np.nan
            if position + 1 >= end_target or target.ends[position + 1] == b:
                continue
            x, e = target.ids[position + 1], target.ends[position + 1]
            inside = i < first_source or source.ends[i] < b
            if i < first_source or i + 1 >= end_source or (inside and not known_place):
                known_place = False
                continue
            s = source.ids[i + 1]
            source_shift = tables.source_lengths[s] - (source.ends[i + 1] - source.ends[i])
            target_shift = tables.target_lengths[x] - (e - b)
            spelled = target_shift == (0 if inside else source_shift)
            if not known_place or not spelled:
                mass, lost, tail, survivors = 1.0, 0.0, 0.0, 0
            known_place = True
            start, stop, unstored = np.int64(0), np.int64(0), 1.0 / len(tables.target_lengths)
            if not unseen:
                start, stop = fill.starts[position], fill.starts[position + 1]
                unstored = fill.tail[position] / max(len(tables.target_lengths) - (stop - start), 1)
                for entry in range(start, stop):
                    scratch.fill[fill.ids[entry]] = fill.probs[entry]
                    scratch.filled[fill.ids[entry]] = position
            scratch.numbers[_OFFSET] += _MOST_MET
            scratch.numbers[_MET], scratch.numbers[_SURVIVORS] = 0, 0
            scratch.numbers[_FIRST_SURVIVOR] = _MOST_ALTERNATIVES - first
            scratch.unknown[:] = 0.0

            if not inside:
                # What led here otherwise has spelled the same text: the source's distribution here goes on with it, too.
                mass, lost, tail = mass / stay + lost, 0.0, 0.0
            alone = survivors == 0 and lost == 0.0
            place = (position, i, start, stop, unstored)
            if survivors:
                _go_on(tables, known, scratch, trail, fill, place, x, b, e, first, survivors)
            if lost > 0.0:
                _fill_in(scratch, trail, fill, place, x, lost)
            if not inside:
                if spelled:
                    tail = own.tail[i] * mass
                    from_byte = b - source_shift
                    _from_boundary(tables, scratch, trail, said, own, fill, place, x, e, from_byte, mass)
                mass *= own.prob[i]
                scratch.stays[:] = 1.0
            stay = 1.0
            j = i
            while source.ends[j + 1] <= e:
                j += 1
                if j + 1 == end_source:
                    break
                if source.ends[j + 1] > source.ends[j]:
                    step = (position, j, start, stop, unstored)
                    if source.ends[j] == e:
                        node = tables.target.path[tables.target.starts[x + 1] - 1]
                        s = source.ids[j]
                        if (
                            spelled
                            and tables.source_lengths[s] > 0
                            and tables.target.child_start[node] < tables.target.child_start[node + 1]
                        ):
                            stay = _at_the_end(tables, known, scratch, trail, said, own, fill, step, x, mass, s)
                            mass *= stay
                        break
                    length = source.ends[j] - b + target_shift
                    node = _beginning(tables, target, position + 1, length)
                    s = source.ids[j + 1]
                    if spelled and node > 0 and tables.source_lengths[s] == source.ends[j + 1] - source.ends[j]:
                        tail += own.tail[j] * mass
                        at = source.ends[j]
                        _on_the_way(
                            tables, known, scratch, trail, said, own, fill, step, x, e, at, mass, node, length
                        )
                mass *= own.prob[j]
            _give(scratch, trail, position, j, -1, x, mass)
            lost, survivors, first = scratch.unknown[_LOST], scratch.numbers[_SURVIVORS], _MOST_ALTERNATIVES - first
            # The tails are taken to agree as much as the entries that led elsewhere do. Where the boundaries agree
            # again, the own path's next distribution says all.
            others, agreed = scratch.unknown[_OTHERS], scratch.unknown[_AGREED]
            tail *= agreed / others if others > 0.0 and source.ends[j] != e else 0.0
            label = scratch.mass[scratch.place[x] - scratch.numbers[_OFFSET]]
            scale = 1.0 / (label + tail) if label + tail > 0.0 else 0.0
            mass, lost, tail = mass * scale, lost * scale, tail * scale
            for row_of in range(first, first + survivors):
                scratch.alternative_mass[row_of] *= scale
            if unseen:
                continue
            walked.status[position] = INSIDE_TOKEN if inside else EXACT_BOUNDARY
            if inside and alone:
                walked.status[position] = NOTHING_COMPATIBLE
            walked.label[position] = label
            kept = _keep(scratch, x, k, walked.ids, walked.probs, size)
            walked.counts[position] = kept
            size += kept
    return size


@compiled
def questions(target, source, said, own, tables, known, keys):  # type: ignore[no-untyped-def]
    """The continuations that `walk` will look up and that `known` lacks: fills `keys`, a table of open addressing, as
    far as it is not more than half full, and returns how many there are."""
    found = 0
    for row in range(len(target.rows) - 1):
        first_source, end_source = source.rows[row], source.rows[row + 1]
        j = first_source
        for position in range(target.rows[row], target.rows[row + 1]):
            x, e = target.ids[position], target.ends[position]
            b = 0 if position == target.rows[row] else target.ends[position - 1]
            length = tables.target_lengths[x]
            while j < end_source and source.ends[j] <= b:
                j += 1
            while j + 1 < end_source and source.ends[j] <= e:
                if e > b:
                    ending = source.ends[j] == e
                    spelled = length - (e - source.ends[j])
                    node = _beginning(tables, target, position, spelled) if spelled > 0 else np.int32(0)
                    s = source.ids[j]
                    if node > 0 and (not ending or source.ends[j + 1] > e):
                        for entry in range(said.starts[j], said.starts[j + 1]):
                            u = said.ids[entry]
                            if entry == own.entry[j] or tables.source_lengths[u] == 0:
                                continue
                            if ending and (tables.source_lengths[s] == 0 or not _may_extend(tables, s, u, node)):
                                continue
                            key, _ = _first_question(tables, node, u)
                            if key < 0 or known.keys[_slot(known.keys, key)] == key:
                                continue
                            slot = _slot(keys, key)
                            if keys[slot] < 0 and 2 * found < len(keys):
                                keys[slot] = key
                                found += 1
                j += 1
    return found
