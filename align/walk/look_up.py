"""Looking up: what follows in a trie, what the target writes for source tokens, what the source may have meant."""

from __future__ import annotations

import numpy as np

from fusionx.align.walk.state import NO_TOKEN, NOT_MET
from fusionx.contract.jit import inlined, uncounted


@inlined
def slot_of(keys, key):  # type: ignore[no-untyped-def]
    """Where `key` stands or belongs in a table of open addressing."""
    mask = len(keys) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(20)) & mask
    while keys[slot] != key and keys[slot] >= 0:
        slot = (slot + 1) & mask
    return slot


@uncounted
def insert(keys, row_of, new_keys, new_rows):  # type: ignore[no-untyped-def]
    """Enters new keys into a table that has room for them."""
    for at in range(len(new_keys)):
        slot = slot_of(keys, new_keys[at])
        keys[slot], row_of[slot] = new_keys[at], new_rows[at]


@inlined
def child(trie, node, byte):  # type: ignore[no-untyped-def]
    """The node that `byte` leads to, -1 where no token goes on so."""
    at, size = np.int64(trie.child_start[node]), trie.child_start[node + 1] - trie.child_start[node]
    if size == 0:
        return np.int64(-1)
    while size > 1:  # no branch in it depends on the byte, which a processor cannot foresee
        half = size >> 1
        at += half * (trie.label[at + half] <= byte)
        size -= half
    return at if trie.label[at] == byte else np.int64(-1)


@inlined
def follow(trie, node, data, start, stop):  # type: ignore[no-untyped-def]
    """Follows data[start:stop] from `node`: the last node reached (-1 if it was left) and whether a token ended on
    the way."""
    hit = False
    for at in range(start, stop):
        node = child(trie, node, data[at])
        if node < 0:
            return -1, hit
        hit = hit or trie.token[node] >= 0
    return node, hit


@inlined
def begins(tables, y, skip, u, spent):  # type: ignore[no-untyped-def]
    """Whether target token y, from byte `skip`, begins with source token u from byte `spent`, and is longer."""
    length = tables.source_lengths[u] - spent
    if tables.target_lengths[y] - skip <= length:
        return False
    left, right = tables.target.starts[y] + skip, tables.source.starts[u] + spent
    for at in range(length):  # noqa: SIM110 - numba has no all()
        if tables.target.bytes[left + at] != tables.source.bytes[right + at]:
            return False
    return True


@inlined
def meant(tables, y, at, u):  # type: ignore[no-untyped-def]
    """Whether the source, which wrote u, may have meant target token y, whose bytes from `at` come after u: not if it
    has a longer token for them."""
    node = tables.source.path[tables.source.starts[u + 1] - 1]
    for byte in range(tables.target.starts[y] + at, tables.target.starts[y + 1]):
        node = child(tables.source, node, tables.target.bytes[byte])
        if node < 0:
            return True
        if tables.source.token[node] >= 0:
            return False
    return True


@inlined
def key_of(tables, node, u):  # type: ignore[no-untyped-def]
    return np.int64(node) * len(tables.written) + u  # written has Vs + 1 values: u is below it, Vs stands for none


@inlined
def continuation(tables, known, node, u, which):  # type: ignore[no-untyped-def]
    """The target token number `which` of beginning `node` and source token `u`, -1 where there is none."""
    if node == 0:
        at = tables.written[u] + which
        return tables.written_ids[at] if at < tables.written[u + 1] else -1
    slot = slot_of(known.keys, key_of(tables, node, u))
    if known.keys[slot] < 0:
        return -1
    at = known.starts[known.row[slot]] + which
    return known.ids[at] if at < known.starts[known.row[slot] + 1] else -1


@uncounted
def first_continuations(known, keys, tokens):  # type: ignore[no-untyped-def]
    """Fills `tokens`, int32, with the first target token of every key, `NO_TOKEN` where there is none, `NOT_MET` where
    that is not known."""
    for at in range(len(keys)):
        slot = slot_of(known.keys, keys[at])
        tokens[at] = NOT_MET
        if known.keys[slot] >= 0:
            start, stop = known.starts[known.row[slot]], known.starts[known.row[slot] + 1]
            tokens[at] = known.ids[start] if start < stop else NO_TOKEN


@inlined
def reach(tables, node, u):  # type: ignore[no-untyped-def]
    """Follows source token u from a target token's beginning; returns as `follow`."""
    source = tables.source
    return follow(tables.target, node, source.bytes, source.starts[u], source.starts[u + 1])


@inlined
def may_extend(tables, s, u, reached, hit):  # type: ignore[no-untyped-def]
    """Whether u after x, whose last source token is s, makes another, longer target token of it. reached, hit: see
    `reach`, from x on."""
    source = tables.source
    if reached < 0 and not hit:
        return False
    _, written_otherwise = follow(
        source, source.path[source.starts[s + 1] - 1], source.bytes, source.starts[u], source.starts[u + 1]
    )
    return not written_otherwise


@inlined
def beginning(tables, target, position, length):  # type: ignore[no-untyped-def]
    """The node of the first `length` bytes of the target's token at `position`; -1 where it is not so long."""
    x = target.ids[position]
    if length > tables.target_lengths[x] or length < 0:
        return -1
    return tables.target.path[tables.target.starts[x] + length - 1] if length else 0
