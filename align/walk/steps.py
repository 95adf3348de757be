"""Where the entries of a step lead, and what of them agrees with the target's next token x.

Terms: see `align.walk.kernel`.
"""

from __future__ import annotations

import numpy as np

from fusionx.align.walk.look_up import begins, continuation, follow, meant
from fusionx.align.walk.state import (
    FIRST_SURVIVOR,
    LONGER,
    MET,
    MOST_ALTERNATIVES,
    MOST_MET,
    NO_MASS,
    NOT_MET,
    OFFSET,
    SMALL,
    SPACE,
    SURVIVORS,
    WHITE_SPACE,
)
from fusionx.contract.jit import inlined

_ROUNDING = 1e-6


@inlined
def give(scratch, trail, position, step, u, y, mass):  # type: ignore[no-untyped-def]
    """Target token y receives mass."""
    offset, met = scratch.numbers[OFFSET], scratch.numbers[MET]
    if scratch.place[y] >= offset:
        scratch.mass[scratch.place[y] - offset] += mass
    elif met < MOST_MET:
        scratch.place[y] = offset + met
        scratch.ids[met], scratch.mass[met] = y, mass
        scratch.numbers[MET] = met + 1
    row = trail.size[0]
    if row < len(trail.mass):
        trail.position[row], trail.step[row], trail.source[row] = position, step, u
        trail.target[row], trail.mass[row] = y, mass
        trail.size[0] = row + 1


@inlined
def agrees(scratch, tables, u, node, which, begin, step, end, mass):  # type: ignore[no-untyped-def]
    """So much of source token u, which begins at byte `begin`, led to x, which ends at byte `end`."""
    row = scratch.numbers[FIRST_SURVIVOR] + scratch.numbers[SURVIVORS]
    full = scratch.numbers[SURVIVORS] == MOST_ALTERNATIVES
    if full or mass < NO_MASS or begin + tables.source_lengths[u] <= end:
        # Of the space that follows a token x may have taken the first byte: it ends where no source token does.
        within = tables.followed_by[u] == SPACE and begin + tables.source_lengths[u] < end
        scratch.lost[1 if within else 0] += mass
        return
    scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2] = u, node, which
    scratch.alternatives[row, 3], scratch.alternatives[row, 4] = begin, step
    scratch.alternative_mass[row] = mass
    scratch.numbers[SURVIVORS] += 1


@inlined
def look_over(tables, scratch, fill, start, stop):  # type: ignore[no-untyped-def]
    """Notes where the fill-in's tokens stand among its entries start to stop, and of those that the source writes with
    several tokens, by the first of them, what is expected of all."""
    size = np.int64(0)
    ids = fill.ids[start:stop]
    for at in range(len(ids)):
        scratch.filled[ids[at]] = start + at
        scratch.longer[size] = start + at  # stays if it is one: no branch, which a processor cannot foresee
        size += tables.begun_by[ids[at]] >= 0
    scratch.numbers[LONGER] = size
    for which in range(size):
        entry = scratch.longer[which]
        u, at = tables.begun_by[fill.ids[entry]], entry - start
        if scratch.head[u] < start:
            scratch.head[u] = entry
            scratch.begun[at], scratch.beginners[at], scratch.rate[at] = 0.0, 0, 0.0
        scratch.begun[scratch.head[u] - start] += fill.probs[entry]
        scratch.beginners[scratch.head[u] - start] += 1


@inlined
def expected(scratch, fill, place, y):  # type: ignore[no-untyped-def]
    """Whether target token y is among the fill-in's entries, and what the fill-in says of it."""
    _, _, start, stop, unstored = place
    entry = scratch.filled[y]
    if start <= entry < stop:
        return True, np.float64(fill.probs[entry])
    return False, unstored


@inlined
def choose(tables, scratch, fill, place, byte, skip, node, s):  # type: ignore[no-untyped-def]
    """Chooses the fill-in's tokens whose first byte is `byte`, and whose first `skip`, which source token s (-1: none)
    has ended, lead to `node`; how many they are."""
    _, _, start, stop, _ = place
    size = np.int64(0)
    for entry in range(start, stop):
        scratch.chosen[size] = entry
        size += tables.target_byte[fill.ids[entry]] == byte
    if not skip:
        return size
    begin_so = np.int64(0)
    for which in range(size):
        entry = scratch.chosen[which]
        y = fill.ids[entry]
        if tables.target_lengths[y] <= skip or tables.target.path[tables.target.starts[y] + skip - 1] != node:
            continue
        if s >= 0 and not meant(tables, y, skip, s):
            continue
        scratch.chosen[begin_so] = entry
        begin_so += 1
    return begin_so


@inlined
def divide(tables, scratch, trail, fill, place, u, spent, skip, chosen, token, mass, x):  # type: ignore[no-untyped-def]
    """Source token u led to target token `token`, or to a longer one that goes on with what it says: divides its mass
    by what the fill-in says of these, and returns the mass of x.

    place: target position, step, where the fill-in's entries begin and end, and its probability of all others. spent:
    bytes of u that the target has consumed. skip: bytes of the target's token before u. chosen: how many tokens of the
    fill-in begin with them (`choose`).
    """
    position, step, _, _, _ = place
    total, size = 0.0, 0
    length = tables.source_lengths[u] - spent
    for at in range(chosen):
        entry = scratch.chosen[at]
        y = fill.ids[entry]
        if begins(tables, y, skip, u, spent) and meant(tables, y, skip + length, u):
            scratch.candidates[size], scratch.weights[size] = y, fill.probs[entry]
            total += fill.probs[entry]
            size += 1
    weight = expected(scratch, fill, place, token)[1] if size else 0.0
    total += weight
    if total <= 0.0:
        give(scratch, trail, position, step, u, token, mass)
        return mass if token == x else 0.0
    of_x = 0.0
    for at in range(size):
        part = mass * scratch.weights[at] / total
        give(scratch, trail, position, step, u, scratch.candidates[at], part)
        if scratch.candidates[at] == x:
            of_x += part
    part = mass * weight / total
    give(scratch, trail, position, step, u, token, part)
    return of_x + part if token == x else of_x


@inlined
def from_boundary(tables, scratch, trail, said, own, fill, place, x, end, begin, mass):  # type: ignore[no-untyped-def]
    """The entries of a step at which the boundaries agree: each leads to the first target token of its text, or to a
    longer one that the source writes beginning with it. mass: of the own path; `scratch.stays`: the part of each entry
    that has not left already."""
    position, step, start, stop, unstored = place
    first, last = said.starts[step], said.starts[step + 1]
    ids, probs, own_entry = said.ids[first:last], said.probs[first:last], own.entry[step] - first
    stays, begun_by_x = scratch.stays[: last - first], tables.begun_by[x]
    for entry in range(len(ids)):
        u = ids[entry]
        token = tables.leads_to[u]
        if entry == own_entry or token < 0:
            continue
        part = here = probs[entry] * mass * stays[entry]
        head = scratch.head[u]
        in_fill = start <= head < stop
        if in_fill or (here >= SMALL and tables.begins[u] > 0):
            weight, stored = 0.0, np.int64(0)
            if in_fill:
                weight, stored = scratch.begun[head - start], scratch.beginners[head - start]
            own_weight = expected(scratch, fill, place, token)[1]
            total = weight + own_weight + (tables.begins[u] - stored) * unstored
            if total > 0.0 and (weight > 0.0 or here >= SMALL):
                part = here * own_weight / total
                if stored:
                    scratch.rate[head - start] = here / total
                if u == begun_by_x:
                    known, of_x = expected(scratch, fill, place, x)
                    of_x = here * of_x / total
                    if not known:
                        give(scratch, trail, position, step, u, x, of_x)
                    agrees(scratch, tables, u, 0, 1, begin, step, end, of_x)
        give(scratch, trail, position, step, u, token, part)
        if token == x:
            agrees(scratch, tables, u, 0, 1, begin, step, end, part)
    for at in range(scratch.numbers[LONGER]):
        entry = scratch.longer[at]
        u = tables.begun_by[fill.ids[entry]]
        rate = scratch.rate[scratch.head[u] - start]
        if rate > 0.0:
            give(scratch, trail, position, step, u, fill.ids[entry], rate * fill.probs[entry])


@inlined
def go_on(tables, known, scratch, trail, fill, place, x, b, end, first, size):  # type: ignore[no-untyped-def]
    """The alternatives from earlier positions: rows first to first + size."""
    position, _, start, stop, unstored = place
    chosen, chosen_byte = np.int64(0), np.int64(-1)
    for row in range(first, first + size):
        u, node, which = scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2]
        begin, step, mass = scratch.alternatives[row, 3], scratch.alternatives[row, 4], scratch.alternative_mass[row]
        token = continuation(tables, known, node, u, which)
        if token < 0:
            continue
        here = (position, step, start, stop, unstored)
        byte = tables.source.bytes[tables.source.starts[u] + b - begin]
        if byte != chosen_byte:
            chosen, chosen_byte = choose(tables, scratch, fill, place, byte, 0, 0, -1), np.int64(byte)
        of_x = divide(tables, scratch, trail, fill, here, u, b - begin, 0, chosen, token, mass, x)
        if of_x > 0.0:
            agrees(scratch, tables, u, node, which + 1, begin, step, end, of_x)


@inlined
def fill_in(scratch, trail, fill, place, x, mass):  # type: ignore[no-untyped-def]
    """What ended before b says nothing more: the fill-in alone knows how it goes on."""
    position, step, start, stop, _ = place
    for at in range(start, stop):
        give(scratch, trail, position, step, -1, fill.ids[at], mass * fill.probs[at])
    stored, of_x = expected(scratch, fill, place, x)
    if not stored:
        give(scratch, trail, position, step, -1, x, mass * of_x)
    scratch.lost[0] += mass * of_x


@inlined
def fill_in_word(tables, scratch, trail, fill, place, x, mass):  # type: ignore[no-untyped-def]
    """What ended with the space before a word, as `fill_in`: what comes is no white space."""
    position, step, start, stop, _ = place
    open_ = 1.0
    for at in range(start, stop):
        if tables.target_byte[fill.ids[at]] <= WHITE_SPACE:
            open_ -= fill.probs[at]
    if open_ <= 0.0:
        return
    for at in range(start, stop):
        if tables.target_byte[fill.ids[at]] > WHITE_SPACE:
            give(scratch, trail, position, step, -1, fill.ids[at], mass * fill.probs[at] / open_)
    if tables.target_byte[x] > WHITE_SPACE:
        stored, of_x = expected(scratch, fill, place, x)
        if not stored:
            give(scratch, trail, position, step, -1, x, mass * of_x / open_)
        scratch.lost[0] += mass * of_x / open_


@inlined
def on_the_way(tables, scratch, trail, said, own, fill, place, x, end, begin, mass, node, length, s):  # type: ignore[no-untyped-def]
    """The entries of a step within x, of which the own path has spelled the first `length` bytes, which lead to
    `node`."""
    _, step, _, _, _ = place
    chosen = choose(tables, scratch, fill, place, tables.target.bytes[tables.target.starts[x]], length, node, s)
    for entry in range(said.starts[step], said.starts[step + 1]):
        u, token = said.ids[entry], own.leads[entry]
        here = said.probs[entry] * mass
        if token >= 0:
            of_x = divide(tables, scratch, trail, fill, place, u, 0, length, chosen, token, here, x)
            if of_x > 0.0:
                agrees(scratch, tables, u, node, 1, begin, step, end, of_x)


@inlined
def at_the_end(tables, scratch, trail, said, own, fill, place, x, mass, s):  # type: ignore[no-untyped-def]
    """The entries of the step where x ends: only what makes a longer target token of it leaves; returns what stays, of
    1, and notes in `scratch.stays` what stays of every entry.

    Everything else, the stored tail too, is mass of x.
    """
    position, step, _, _, _ = place
    target = tables.target
    node = target.path[target.starts[x + 1] - 1]
    first, last = said.starts[step], said.starts[step + 1]
    left, chosen = 0.0, -1
    ids, probs, leads = said.ids[first:last], said.probs[first:last], own.leads[first:last]
    for entry in range(len(ids)):
        u, token = ids[entry], leads[entry]
        if token == NOT_MET:
            continue
        if token < 0 or tables.target_lengths[token] <= tables.target_lengths[x]:
            token = np.int32(x)
        here = probs[entry] * mass
        if here <= 0.0:
            continue
        if chosen < 0:
            byte = target.bytes[target.starts[x]]
            chosen = choose(tables, scratch, fill, place, byte, tables.target_lengths[x], node, s)
        of_x = divide(tables, scratch, trail, fill, place, u, 0, tables.target_lengths[x], chosen, token, here, x)
        if of_x > 0.0:
            give(scratch, trail, position, step, u, x, -of_x)  # it is among what stays
        scratch.stays[entry] = of_x / here
        left += probs[entry] * (1.0 - of_x / here)
    return max(1.0 - left, own.prob[step])  # the own next token stays


@inlined
def own_as_others(tables, scratch, trail, fill, place, x, b, e, s, end, mass):  # type: ignore[no-untyped-def]
    """For a walk that is blind to how the text goes on: the source token s, which ends at byte `end` and in which the
    position lies, is an alternative as any other."""
    start, stop = tables.source.starts[s], tables.source.starts[s + 1]
    spent = stop - start - (end - b)
    if not 0 <= spent < stop - start:
        return
    token = np.int64(x)
    if e > end:
        node, _ = follow(tables.target, 0, tables.source.bytes, start + spent, stop)
        token = np.int64(tables.target.token[node]) if node >= 0 else np.int64(-1)
    if token >= 0:
        chosen = choose(tables, scratch, fill, place, tables.source.bytes[start + spent], 0, 0, -1)
        divide(tables, scratch, trail, fill, place, s, spent, 0, chosen, token, mass, x)


@inlined
def likeliest(scratch):  # type: ignore[no-untyped-def]
    """The target token that has received most, of equals the lowest id as where distributions are kept, -1 where none
    has; whatever was received is forgotten."""
    most, token = 0.0, np.int32(-1)
    for met in range(scratch.numbers[MET]):
        mass, y = scratch.mass[met], scratch.ids[met]
        equal = token >= 0 and abs(mass - most) <= _ROUNDING * most  # bf16 models say the same of many tokens
        if y < token if equal else mass > most:
            most, token = mass, y
    scratch.numbers[OFFSET] += scratch.numbers[MET]
    scratch.numbers[MET], scratch.numbers[SURVIVORS] = 0, 0
    scratch.lost[:] = 0.0
    return token
