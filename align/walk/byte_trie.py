"""All beginnings of a vocabulary's tokens as one trie over bytes, in flat arrays that a compiled kernel can walk."""

from __future__ import annotations

import builtins
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.contract.tokens.token_table import TokenTable

Int32 = npt.NDArray[np.int32]


class ByteTrie(NamedTuple):
    """N nodes, node 0 the empty beginning, those of one depth and of one parent side by side; V tokens.

    child_start: int32 [N + 1], the children of node n are the nodes child_start[n] to child_start[n + 1].
    label: uint8 [N], the byte that leads to a node; ascending among the children of one parent.
    token: int32 [N], the token that ends at a node, -1 where none does. some_token: int32 [N], one that passes it.
    depth: int32 [N]. passing: int32 [N], how many tokens pass a node or end there.
    bytes: uint8, the tokens' bytes, one after another; starts: int64 [V + 1], where each begins.
    path: int32, laid out as `bytes`: the node that a token has reached with each of its bytes.
    """

    child_start: Int32
    label: npt.NDArray[np.uint8]
    token: Int32
    some_token: Int32
    depth: Int32
    passing: Int32
    bytes: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    path: Int32

    def beginning(self, node: int) -> builtins.bytes:
        """The bytes that lead to a node."""
        start = int(self.starts[self.some_token[node]])
        return self.bytes[start : start + int(self.depth[node])].tobytes()


def byte_trie(table: TokenTable, ending: npt.NDArray[np.bool_]) -> ByteTrie:
    """The trie of all tokens with bytes; `ending` (bool [V]) says which of them may be a node's `token`.

    Of several with the same bytes, one that is no byte-fallback token, then the lowest id, is the node's.
    """
    pieces = table.filled_bytes
    lengths = table.byte_lengths.astype(np.int64)
    starts = np.append(0, np.cumsum(lengths))
    data = np.frombuffer(b"".join(pieces), np.uint8)
    fallback = np.zeros(table.size, bool)
    fallback[list(table.byte_fallback)] = True
    order = np.array(sorted(range(table.size), key=lambda token: (pieces[token], fallback[token], token)), np.int64)
    order = order[lengths[order] > 0]
    path = np.zeros(len(data), np.int32)
    parents, labels, tokens, some, depths = [np.zeros(1, np.int32)], [np.zeros(1, np.uint8)], [], [], [0]
    tokens.append(np.full(1, -1, np.int32))
    some.append(np.zeros(1, np.int32))
    counts, size, depth = [1], 1, 0
    passing = [np.array([len(order)])]
    here, parent = order, np.zeros(len(order), np.int32)
    while len(here):
        byte = data[starts[here] + depth]
        new = np.append(True, (parent[1:] != parent[:-1]) | (byte[1:] != byte[:-1]))
        node = (size - 1 + np.cumsum(new)).astype(np.int32)
        path[starts[here] + depth] = node
        parents.append(parent[new])
        passing.append(np.bincount(node - size))
        labels.append(byte[new])
        some.append(here[new].astype(np.int32))
        depth += 1
        added = int(new.sum())
        ends = np.flatnonzero((lengths[here] == depth) & ending[here])
        at_node = np.full(added, -1, np.int32)
        at_node[(node[ends] - size)[::-1]] = here[ends][::-1]  # the first of equal bytes is written last
        tokens.append(at_node)
        counts.append(added)
        depths.append(depth)
        size += added
        longer = lengths[here] > depth
        here, parent = here[longer], node[longer]
    children = np.bincount(np.concatenate(parents)[1:], minlength=size)
    return ByteTrie(
        child_start=np.append(1, 1 + np.cumsum(children)).astype(np.int32),
        label=np.concatenate(labels),
        token=np.concatenate(tokens),
        some_token=np.concatenate(some),
        depth=np.repeat(depths, counts).astype(np.int32),
        passing=np.concatenate(passing).astype(np.int32),
        bytes=data,
        starts=starts,
        path=path,
    )
