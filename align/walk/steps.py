"""Where the entries of a step lead, and what of them agrees with the target's next token x.

Terms: see `align.walk.kernel`.
"""

from __future__ import annotations

import numpy as np

from fusionx.align.jit import uncounted
from fusionx.align.walk.look_up import begins, continuation, first_question, follow, key_of, meant
from fusionx.align.walk.state import (
    FIRST_SURVIVOR,
    MET,
    MOST_ALTERNATIVES,
    MOST_MET,
    NO_MASS,
    OFFSET,
    SMALL,
    SURVIVORS,
)


@uncounted
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


@uncounted
def agrees(scratch, tables, u, node, which, begin, step, end, mass):  # type: ignore[no-untyped-def]
    """So much of source token u, which begins at byte `begin`, led to x, which ends at byte `end`."""
    row = scratch.numbers[FIRST_SURVIVOR] + scratch.numbers[SURVIVORS]
    full = scratch.numbers[SURVIVORS] == MOST_ALTERNATIVES
    if full or mass < NO_MASS or begin + tables.source_lengths[u] <= end:
        scratch.lost[0] += mass
        return
    scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2] = u, node, which
    scratch.alternatives[row, 3], scratch.alternatives[row, 4] = begin, step
    scratch.alternative_mass[row] = mass
    scratch.numbers[SURVIVORS] += 1


@uncounted
def expected(fill, place, y):  # type: ignore[no-untyped-def]
    """Whether target token y is among the fill-in's entries, and what the fill-in says of it. It is asked of few."""
    _, _, start, stop, unstored = place
    for entry in range(start, stop):
        if fill.ids[entry] == y:
            return True, np.float64(fill.probs[entry])
    return False, unstored


@uncounted
def choose(tables, scratch, fill, place, byte, skip, node, s):  # type: ignore[no-untyped-def]
    """Chooses the fill-in's tokens whose first byte is `byte`, and whose first `skip`, which source token s (-1: none)
    has ended, lead to `node`; how many they are."""
    _, _, start, stop, _ = place
    size = 0
    for entry in range(start, stop):
        if fill.byte[entry] != byte:
            continue
        y = fill.ids[entry]
        if skip:
            if tables.target_lengths[y] <= skip or tables.target.path[tables.target.starts[y] + skip - 1] != node:
                continue
            if s >= 0 and not meant(tables, y, skip, s):
                continue
        scratch.chosen[size] = entry
        size += 1
    return size


@uncounted
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
    weight = expected(fill, place, token)[1] if size else 0.0
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


@uncounted
def from_boundary(tables, scratch, trail, said, own, fill, place, x, end, begin, mass):  # type: ignore[no-untyped-def]
    """The entries of a step at which the boundaries agree: each leads to the first target token of its text, or to a
    longer one that the source writes beginning with it. mass: of the own path; `scratch.stays`: the part of each entry
    that has not left already."""
    position, step, start, stop, unstored = place
    first, last = said.starts[step], said.starts[step + 1]
    longer = False
    for at in range(start, stop):
        longer = longer or fill.first[at] >= 0
    if longer:
        longer = False
        for entry in range(first, last):
            scratch.entry_of[said.ids[entry]] = entry
            scratch.rate[entry - first], scratch.candidates[entry - first] = 0.0, 0
        for at in range(start, stop):
            u = fill.first[at]
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
        token = tables.to_target[u, 0]
        if token < 0:
            continue
        if tables.to_target[u, 1] == 0 or (weight == 0.0 and here < SMALL):
            give(scratch, trail, position, step, u, token, here)
            if token == x:
                agrees(scratch, tables, u, 0, 1, begin, step, end, here)
            continue
        own_weight = expected(fill, place, token)[1]
        total = weight + own_weight + (tables.to_target[u, 1] - others) * unstored
        if total <= 0.0:
            give(scratch, trail, position, step, u, token, here)
            if token == x:
                agrees(scratch, tables, u, 0, 1, begin, step, end, here)
            continue
        scratch.rate[shown] = here / total
        part = here * own_weight / total
        give(scratch, trail, position, step, u, token, part)
        if tables.first[x] == u:
            stored, of_x = expected(fill, place, x)
            part = here * of_x / total
            if not stored:
                give(scratch, trail, position, step, u, x, part)
        if token == x or tables.first[x] == u:
            agrees(scratch, tables, u, 0, 1, begin, step, end, part)
    if longer:
        for at in range(start, stop):
            y, u = fill.ids[at], fill.first[at]
            if u >= 0 and first <= scratch.entry_of[u] < last and said.ids[scratch.entry_of[u]] == u:
                rate = scratch.rate[scratch.entry_of[u] - first]
                if rate > 0.0:
                    give(scratch, trail, position, step, u, y, rate * fill.probs[at])


@uncounted
def go_on(tables, known, scratch, trail, fill, place, x, b, end, first, size):  # type: ignore[no-untyped-def]
    """The alternatives from earlier positions: rows first to first + size."""
    position, _, start, stop, unstored = place
    for row in range(first, first + size):
        u, node, which = scratch.alternatives[row, 0], scratch.alternatives[row, 1], scratch.alternatives[row, 2]
        begin, step, mass = scratch.alternatives[row, 3], scratch.alternatives[row, 4], scratch.alternative_mass[row]
        token = continuation(tables, known, node, u, which)
        if token < 0:
            continue
        here = (position, step, start, stop, unstored)
        byte = tables.source.bytes[tables.source.starts[u] + b - begin]
        chosen = choose(tables, scratch, fill, place, byte, 0, 0, -1)
        of_x = divide(tables, scratch, trail, fill, here, u, b - begin, 0, chosen, token, mass, x)
        if of_x > 0.0:
            agrees(scratch, tables, u, node, which + 1, begin, step, end, of_x)


@uncounted
def fill_in(scratch, trail, fill, place, x, mass):  # type: ignore[no-untyped-def]
    """What ended before b says nothing more: the fill-in alone knows how it goes on."""
    position, step, start, stop, _ = place
    for at in range(start, stop):
        give(scratch, trail, position, step, -1, fill.ids[at], mass * fill.probs[at])
    stored, of_x = expected(fill, place, x)
    if not stored:
        give(scratch, trail, position, step, -1, x, mass * of_x)
    scratch.lost[0] += mass * of_x


@uncounted
def on_the_way(tables, known, scratch, trail, said, own, fill, place, x, end, begin, mass, node, length, s):  # type: ignore[no-untyped-def]
    """The entries of a step within x, of which the own path has spelled the first `length` bytes, which lead to
    `node`."""
    _, step, _, _, _ = place
    chosen = choose(tables, scratch, fill, place, tables.target.bytes[tables.target.starts[x]], length, node, s)
    alone_key = key_of(tables, node, len(tables.written) - 1)
    alone = continuation(tables, known, node, len(tables.written) - 1, 0)
    for entry in range(said.starts[step], said.starts[step + 1]):
        u = said.ids[entry]
        if entry == own.entry[step] or tables.source_lengths[u] == 0:
            continue
        here = said.probs[entry] * mass
        key, token = first_question(tables, node, u)
        if key == alone_key:
            token = alone
        elif key >= 0:
            token = continuation(tables, known, node, u, 0)
        if token >= 0:
            of_x = divide(tables, scratch, trail, fill, place, u, 0, length, chosen, token, here, x)
            if of_x > 0.0:
                agrees(scratch, tables, u, node, 1, begin, step, end, of_x)


@uncounted
def may_extend(tables, s, u, node):  # type: ignore[no-untyped-def]
    """Whether u after x (at `node`), whose last source token is s, makes another, longer target token of it."""
    source = tables.source
    reached, hit = follow(tables.target, node, source.bytes, source.starts[u], source.starts[u + 1])
    if reached < 0 and not hit:
        return False
    _, written_otherwise = follow(
        source, source.path[source.starts[s + 1] - 1], source.bytes, source.starts[u], source.starts[u + 1]
    )
    return not written_otherwise


@uncounted
def at_the_end(tables, known, scratch, trail, said, own, fill, place, x, mass, s):  # type: ignore[no-untyped-def]
    """The entries of the step where x ends: only what makes a longer target token of it leaves; returns what stays, of
    1, and notes in `scratch.stays` what stays of every entry.

    Everything else, the stored tail too, is mass of x.
    """
    position, step, _, _, _ = place
    target = tables.target
    node = target.path[target.starts[x + 1] - 1]
    first, last = said.starts[step], said.starts[step + 1]
    left, chosen = 0.0, -1
    for entry in range(first, last):
        u = said.ids[entry]
        follows = tables.to_target[u, 2]
        if not (tables.goes_on[x, follows >> 6] >> np.uint64(follows & 63)) & np.uint64(1):
            continue
        if entry == own.entry[step] or tables.source_lengths[u] == 0 or not may_extend(tables, s, u, node):
            continue
        key, token = first_question(tables, node, u)
        if key >= 0:
            token = continuation(tables, known, node, key - key_of(tables, node, 0), 0)
        if token < 0 or tables.target_lengths[token] <= tables.target_lengths[x]:
            token = x
        here = said.probs[entry] * mass
        if here <= 0.0:
            continue
        if chosen < 0:
            byte = target.bytes[target.starts[x]]
            chosen = choose(tables, scratch, fill, place, byte, tables.target_lengths[x], node, s)
        of_x = divide(tables, scratch, trail, fill, place, u, 0, tables.target_lengths[x], chosen, token, here, x)
        if of_x > 0.0:
            give(scratch, trail, position, step, u, x, -of_x)  # it is among what stays
        scratch.stays[entry - first] = of_x / here
        left += said.probs[entry] * (1.0 - of_x / here)
    return max(1.0 - left, own.prob[step])  # the own next token stays
