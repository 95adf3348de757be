"""What a source foretells without a look at how the text goes on: its likeliest next token of the target.

The walk makes the text's own next token right by construction. Here the source's own next token is an entry like any
other, and a source token that reaches over the position one of those that agree with the text so far. Only where the
source and the target cut the text still comes from the whole of it.

Terms: see `align.walk.kernel`.
"""

from __future__ import annotations

import numpy as np

from fusionx.align.jit import uncounted
from fusionx.align.walk.look_up import follow
from fusionx.align.walk.state import MET, OFFSET, SURVIVORS
from fusionx.align.walk.steps import choose, divide

_ROUNDING = 1e-6


@uncounted
def own_as_others(tables, scratch, trail, fill, place, x, b, e, s, end, mass):  # type: ignore[no-untyped-def]
    """The source token s, which ends at byte `end`, and in which the position lies: an alternative as any other."""
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


@uncounted
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
