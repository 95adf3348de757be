"""The walk itself, compiled: every position's distribution in one pass over a part, and what it will have to look up.

Sources and target tokenize the same text. At each target position the walk starts from the last source position that
has consumed no more, follows the text's own source tokens to the end of the next target token, and says on the way
where every other token that the source held possible would have led (docs/concepts.md, "The walk").

Terms: b, e: the bytes where the next target token x begins and ends. Step j: the source position j on the way; its
entries u. `spent`: bytes of an entry that lie before b.
"""

from __future__ import annotations

import numpy as np

from fusionx.align.walk.look_up import beginning, key_of, may_extend, reach
from fusionx.align.walk.state import (
    EXACT_BOUNDARY,
    FIRST_SURVIVOR,
    INSIDE_TOKEN,
    LEAST,
    MET,
    MOST_ALTERNATIVES,
    NO_TOKEN,
    NOT_ALIGNED,
    NOTHING_COMPATIBLE,
    OFFSET,
    SURVIVORS,
)
from fusionx.align.walk.steps import (
    at_the_end,
    fill_in,
    fill_in_word,
    from_boundary,
    give,
    go_on,
    likeliest,
    look_over,
    on_the_way,
    own_as_others,
)
from fusionx.contract.jit import inlined, uncounted


@inlined
def _rank(mass, token):  # type: ignore[no-untyped-def]
    """Orders by mass, then by falling id: a positive float's bits grow with it."""
    return (np.uint64(np.float32(mass).view(np.uint32)) << np.uint64(32)) | np.uint64(~np.uint32(token))


@inlined
def _keep(scratch, walked, x, k, at):  # type: ignore[no-untyped-def]
    """Writes the k largest of what a position met to `walked` from entry `at` on, x always among them; how many, and by
    what all was multiplied: what agrees may be so little that the shards' rounding shows and more than 1 is met."""
    ranking = scratch.ranking
    kept, total, own = 0, 0.0, _rank(LEAST, x)
    least = ~np.uint64(0)  # of those kept; most come in order, and then nothing has to be read again
    for met in range(scratch.numbers[MET]):
        mass, token = scratch.mass[met], scratch.ids[met]
        total += mass
        if token == x:
            own = _rank(max(mass, LEAST), x)
            continue
        if np.float32(mass) <= 0.0:
            continue
        rank = _rank(mass, token)
        if rank <= least:
            if kept < k - 1:
                ranking[kept] = rank
                kept += 1
                least = rank
        elif kept:
            kept = min(kept + 1, k - 1)
            to = kept - 1
            while to > 0:
                other = ranking[to - 1]
                if other >= rank:
                    break
                ranking[to] = other
                to -= 1
            ranking[to] = rank
            least = ranking[kept - 1]
    scale = 1.0 / max(total, 1.0)
    better = 0
    while better < kept and ranking[better] > own:
        better += 1
    for place in range(better):
        _write(walked, at + place, ranking[place], scale)
    _write(walked, at + better, own, scale)
    for place in range(better, kept):
        _write(walked, at + place + 1, ranking[place], scale)
    return kept + 1, scale


@inlined
def _write(walked, at, rank, scale):  # type: ignore[no-untyped-def]
    walked.ids[at] = np.int32(~np.uint32(rank))
    walked.probs[at] = np.uint32(rank >> np.uint64(32)).view(np.float32) * scale


@inlined
def _begin_so(tables, source, position, end):  # type: ignore[no-untyped-def]
    """The part of the source's vocabulary that begins as its token after `position` does up to byte `end`."""
    s = source.ids[position + 1]
    length = tables.source_lengths[s]
    left = source.ends[position + 1] - end
    if not 0 <= left < length:
        return 0.0
    node = tables.source.path[tables.source.starts[s] + length - left - 1]
    return tables.source.passing[node] / tables.source.passing[0]


@uncounted
def walk(target, source, said, own, others, fill, tables, known, k, trail, walked, foretold, scratch):  # type: ignore[no-untyped-def]
    """Walks through all rows and fills `walked`, whose ids and probs have room for L k; returns the entries made.

    target, source: `Tokens`. said: `Said` at the source's positions, own: `OwnPath` along them. fill: at the
    target's positions, the fill-in; with no entries and tail 1 it knows nothing. k: entries to keep, the next token's
    always among them. foretold: int32 [L], takes the likeliest tokens of a blind walk, to which the source's own next
    token is an entry like any other; [0] if nobody asks. others: `own` for that, without entries.

    Between positions there are, of 1 in all: `mass` of the text's own path, the alternatives', `lost` and `within`
    (`Scratch.lost`), and what agrees of `tail`, the stored tail of the step that is under way.
    """
    size = 0
    for row in range(len(target.rows) - 1):
        first_target, end_target = target.rows[row], target.rows[row + 1]
        first_source, end_source = source.rows[row], source.rows[row + 1]
        if first_target == end_target:
            continue
        # A target without a BOS has no position before its first token, but the source's mass starts there as well.
        begin = first_target if target.ends[first_target] == 0 else first_target - 1
        i, known_place = first_source - 1, False
        mass, lost, within, tail, stay = 1.0, 0.0, 0.0, 0.0, 1.0
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
                mass, lost, within, tail, stay, survivors = 1.0, 0.0, 0.0, 0.0, 1.0, np.int64(0)
            known_place = True
            start, stop, unstored = np.int64(0), np.int64(0), 1.0 / len(tables.target_lengths)
            if not unseen:
                start, stop = fill.starts[position], fill.starts[position + 1]
                unstored = fill.tail[position] / max(len(tables.target_lengths) - (stop - start), 1)
            scratch.numbers[OFFSET] += scratch.numbers[MET]
            scratch.numbers[MET], scratch.numbers[SURVIVORS] = 0, 0
            scratch.numbers[FIRST_SURVIVOR] = MOST_ALTERNATIVES - first
            scratch.lost[:] = 0.0
            look_over(tables, scratch, fill, start, stop)

            if not inside:
                # What led here otherwise has spelled the same text, and the source's distribution here goes on with it.
                mass, lost, tail = mass / stay + lost, 0.0, 0.0
            alone = survivors == 0 and lost == 0.0 and within == 0.0
            place = (position, i, start, stop, unstored)
            from_byte = b - source_shift
            if len(foretold) and not unseen:
                go_on(tables, known, scratch, trail, fill, place, x, b, e, first, survivors)
                fill_in(scratch, trail, fill, place, x, lost)
                fill_in_word(tables, scratch, trail, fill, place, x, within)
                if inside:
                    own_as_others(tables, scratch, trail, fill, place, x, b, e, s, source.ends[i + 1], mass)
                elif spelled:
                    from_boundary(tables, scratch, trail, said, others, fill, place, x, e, from_byte, mass)
                foretold[position] = likeliest(scratch)
                look_over(tables, scratch, fill, start, stop)
            if survivors:
                go_on(tables, known, scratch, trail, fill, place, x, b, e, first, survivors)
            if lost > 0.0:
                fill_in(scratch, trail, fill, place, x, lost)
            if within > 0.0:
                fill_in_word(tables, scratch, trail, fill, place, x, within)
            if not inside:
                if spelled:
                    tail = own.tail[i] * mass
                    from_boundary(tables, scratch, trail, said, own, fill, place, x, e, from_byte, mass)
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
                            stay = at_the_end(tables, scratch, trail, said, own, fill, step, x, mass, s)
                            mass *= stay
                        break
                    length = source.ends[j] - b + target_shift
                    node = beginning(tables, target, position + 1, length)
                    s = source.ids[j + 1]
                    if spelled and node > 0 and tables.source_lengths[s] == source.ends[j + 1] - source.ends[j]:
                        at = source.ends[j]
                        written = source.ids[j] if tables.source_lengths[source.ids[j]] else np.int64(-1)
                        on_the_way(tables, scratch, trail, said, own, fill, step, x, e, at, mass, node, length, written)
                tail = own.tail[j] * mass
                mass *= own.prob[j]
            # Inside a source token x may have come of the stored tail, too: of as much as of the vocabulary begins so.
            # Where the boundaries agree again, the own path's next distribution says all.
            agreeing = tail * _begin_so(tables, source, j, e) if source.ends[j] < e and j + 1 < end_source else 0.0
            if agreeing > 0.0:
                give(scratch, trail, position, j, -2, x, agreeing)
            give(scratch, trail, position, j, -1, x, mass)
            lost, within = scratch.lost[0], scratch.lost[1]
            survivors, first = scratch.numbers[SURVIVORS], MOST_ALTERNATIVES - first
            label = scratch.mass[scratch.place[x] - scratch.numbers[OFFSET]]
            scale = 1.0 / label if label > 0.0 else 0.0
            mass, lost, within, tail = mass * scale, lost * scale, within * scale, tail * scale
            for row_of in range(first, first + survivors):
                scratch.alternative_mass[row_of] *= scale
            if unseen:
                continue
            walked.status[position] = INSIDE_TOKEN if inside else EXACT_BOUNDARY
            if inside and alone:
                walked.status[position] = NOTHING_COMPATIBLE
            kept, scale = _keep(scratch, walked, x, k, size)
            walked.label[position] = max(label * scale, LEAST)
            walked.counts[position] = kept
            size += kept
    return size


@uncounted
def questions(target, source, said, own, tables, keys):  # type: ignore[no-untyped-def]
    """Fills `own.leads` as far as the tries tell. Where the target's tokenizer has to, it is `NO_TOKEN` so far, and the
    key of what to look up goes to `keys`, int64 with room for every entry; returns how many."""
    size = 0
    for row in range(len(target.rows) - 1):
        first_source, end_source = source.rows[row], source.rows[row + 1]
        j = first_source
        for position in range(target.rows[row], target.rows[row + 1]):
            x, e = target.ids[position], target.ends[position]
            b = 0 if position == target.rows[row] else target.ends[position - 1]
            length, goes_on = tables.target_lengths[x], tables.goes_on[x]
            while j < end_source and source.ends[j] <= b:
                j += 1
            while j + 1 < end_source and source.ends[j] <= e:
                ending, s = source.ends[j] == e, source.ids[j]
                spelled = length - (e - source.ends[j])
                node = beginning(tables, target, position, spelled) if e > b and spelled > 0 else np.int32(0)
                if node > 0 and (not ending or (source.ends[j + 1] > e and tables.source_lengths[s] > 0)):
                    for entry in range(said.starts[j], said.starts[j + 1]):
                        u = said.ids[entry]
                        follows = tables.source_byte[u]
                        if ending and not (goes_on[follows >> 6] >> np.uint64(follows & 63)) & np.uint64(1):
                            continue
                        if entry == own.entry[j] or tables.source_lengths[u] == 0:
                            continue
                        reached, hit = reach(tables, node, u)
                        if ending and not may_extend(tables, s, u, reached, hit):
                            continue
                        if reached >= 0 and tables.target.token[reached] >= 0 and not tables.followed_by[u]:
                            own.leads[entry] = tables.target.token[reached]
                            continue
                        # Where no token goes on as u does, it is among those of the beginning alone.
                        own.leads[entry] = NO_TOKEN
                        keys[size] = key_of(tables, node, u if hit else len(tables.written) - 1)
                        size += 1
                j += 1
    return size
