"""What the tokens of a source and of the target are in each other's tokens: all that the walk has to look up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fusionx.align.walk.byte_trie import ByteTrie, byte_trie
from fusionx.align.walk.look_up import first_continuations, insert
from fusionx.align.walk.state import NOT_MET, Continuations, Tables
from fusionx.align.walk.written import FOLLOWING, Writer
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import ROLES

Int32 = npt.NDArray[np.int32]

_MOST_CONTINUATIONS = 1 << 22
"""Continuations that are remembered, some 40 bytes each."""


class Lexicon:
    """The tables of one pair of tokenizers, and the continuations that were asked for so far."""

    def __init__(self, source: Encoder, target: Encoder) -> None:
        self.source, self.target = source, target
        self._writer = Writer(target)
        self.tables = _identity(source.table) if source.fingerprint == target.fingerprint else self._tables()
        self._keys, self._row, self._starts, self._ids = _no_continuations()

    def _tables(self) -> Tables:
        source, target = self.source.table, self.target.table
        source_writer = Writer(self.source)
        followed_by = source_writer.follows_white_space()
        written = self._written(source.filled_bytes, followed_by)
        rows = {token: role for token, role in source.special_role.items() if role in ROLES}
        ids = {token: target.role_id(role) for token, role in rows.items()}
        nothing = np.zeros(0, np.int32)
        written = _with_rows(
            written, {token: nothing if id_ is None else np.array([id_], np.int32) for token, id_ in ids.items()}
        )

        own = self._writer.written(target.filled_bytes)
        alone = own.lengths() == 1
        by_target = np.zeros(target.size, bool)
        by_target[alone] = own.values[own.offsets[:-1][alone]] == np.flatnonzero(alone)
        by_source = source_writer.written(target.filled_bytes)
        several = by_target & (by_source.lengths() > 1)
        first = np.full(target.size, -1, np.int32)
        first[several] = by_source.values[by_source.offsets[:-1][several]]
        trie = byte_trie(target, by_target)
        return Tables(
            written=written.offsets.astype(np.int64),
            written_ids=written.values,
            leads_to=_leads_to(written),
            begun_by=first,
            begins=np.bincount(first[several], minlength=source.size).astype(np.int32),
            followed_by=followed_by,
            source_byte=_first_bytes(source),
            target_byte=_first_bytes(target),
            goes_on=_goes_on(trie, target),
            source_lengths=source.byte_lengths,
            target_lengths=target.byte_lengths,
            source=byte_trie(source, _with_bytes(source)),
            target=trie,
        )

    def _written(self, pieces: Sequence[bytes], followed_by: npt.NDArray[np.integer]) -> Ragged:
        """What the target writes for every piece, by what comes after it (`Tables.followed_by`)."""
        replaced: dict[int, Int32] = {}
        for what, following in FOLLOWING.items():
            which = np.flatnonzero(followed_by == what).tolist()
            rows = self._writer.written_before([pieces[index] for index in which], following)
            replaced |= {index: rows.row(row) for row, index in enumerate(which)}
        return _with_rows(self._writer.written(pieces), replaced)

    @property
    def continuations(self) -> Continuations:
        """Those known so far."""
        return Continuations(self._keys, self._row, self._starts, self._ids)

    def first_continuations(self, keys: npt.NDArray[np.int64]) -> Int32:
        """The first target token of every key, `NO_TOKEN` where there is none; of those not known yet the target's
        tokenizer is asked."""
        tokens = np.empty(len(keys), np.int32)
        first_continuations(self.continuations, keys, tokens)
        if (tokens == NOT_MET).any():
            self._learn(np.unique(keys[tokens == NOT_MET]))
            first_continuations(self.continuations, keys, tokens)
        return tokens

    def _learn(self, keys: npt.NDArray[np.int64]) -> None:
        nodes, tokens = np.divmod(keys, self.source.table.size + 1)
        pieces = [*self.source.table.filled_bytes, b""]
        beginning = self.tables.target.beginning
        asked = [beginning(node) + pieces[token] for node, token in zip(nodes.tolist(), tokens.tolist(), strict=True)]
        answers = self._written(asked, np.append(self.tables.followed_by, 0)[tokens])
        rows = np.arange(len(keys), dtype=np.int32) + len(self._starts) - 1
        self._starts = np.append(self._starts, self._starts[-1] + answers.offsets[1:])
        self._ids = np.append(self._ids, answers.values)
        known = self._keys >= 0
        all_keys, all_rows = np.append(self._keys[known], keys), np.append(self._row[known], rows)
        self._keys, self._row = _hashed(all_keys, all_rows)

    def tidy(self) -> None:
        """Forgets all continuations when they are many, so that memory stays flat; called between parts."""
        if len(self._starts) > _MOST_CONTINUATIONS:
            self._keys, self._row, self._starts, self._ids = _no_continuations()


def _no_continuations() -> Continuations:
    return Continuations(np.full(2, -1, np.int64), np.zeros(2, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32))


def _identity(table: TokenTable) -> Tables:
    """Of a tokenizer and itself: every token is itself, special ones and such as it would never write too."""
    kept = _with_bytes(table)
    kept[list(table.special_role)] = True
    written = Ragged(np.flatnonzero(kept).astype(np.int32), np.append(0, np.cumsum(kept, dtype=np.int64)))
    trie = byte_trie(table, _with_bytes(table))
    return Tables(
        written=written.offsets,
        written_ids=written.values,
        leads_to=_leads_to(written),
        begun_by=np.full(table.size, -1, np.int32),
        begins=np.zeros(table.size, np.int32),
        followed_by=np.zeros(table.size, np.uint8),
        source_byte=_first_bytes(table),
        target_byte=_first_bytes(table),
        goes_on=_goes_on(trie, table),
        source_lengths=table.byte_lengths,
        target_lengths=table.byte_lengths,
        source=trie,
        target=trie,
    )


def _leads_to(written: Ragged) -> Int32:
    firsts = np.append(written.values, -1)[written.offsets[:-1]]
    return np.where(written.lengths() > 0, firsts, -1).astype(np.int32)


def _first_bytes(table: TokenTable) -> npt.NDArray[np.uint8]:
    return np.array([piece[0] if piece else 0 for piece in table.filled_bytes], np.uint8)


def _goes_on(trie: ByteTrie, table: TokenTable) -> npt.NDArray[np.uint64]:
    """Of every token the labels of its node's children, as bits."""
    bits = np.zeros((len(trie.depth), 4), np.uint64)
    children = np.diff(trie.child_start)
    parent, label = np.repeat(np.arange(len(children)), children), trie.label[1:].astype(np.uint64)
    np.bitwise_or.at(bits, (parent, label >> np.uint64(6)), np.uint64(1) << (label & np.uint64(63)))
    has_bytes = table.byte_lengths > 0
    found = np.zeros((table.size, 4), np.uint64)
    found[has_bytes] = bits[trie.path[trie.starts[1:][has_bytes] - 1]]
    return found


def _with_bytes(table: TokenTable) -> npt.NDArray[np.bool_]:
    return table.byte_lengths > 0


def _with_rows(rows: Ragged, replaced: Mapping[int, Int32]) -> Ragged:
    """`rows` with others in place of some of them."""
    split = np.split(rows.values, rows.offsets[1:-1])
    for row, ids in replaced.items():
        split[row] = ids
    return Ragged(np.concatenate(split).astype(np.int32), np.append(0, np.cumsum([len(row) for row in split])))


def _hashed(keys: npt.NDArray[np.int64], rows: Int32) -> tuple[npt.NDArray[np.int64], Int32]:
    """A table of open addressing, at most half full."""
    size = 1 << max(1, int(2 * len(keys)).bit_length())
    table, row_of = np.full(size, -1, np.int64), np.zeros(size, np.int32)
    insert(table, row_of, keys, rows)
    return table, row_of
