"""How a tokenizer writes given bytes inside a running text.

A tokenizer is asked through an anchor, a byte that takes the place of the preceding text, so that no dummy prefix space
and no rule for the beginning of a text touches the bytes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusionx.align.vocabulary.edit_distance import text_of
from fusionx.align.walk.state import LETTER, SPACE
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.encoding import encode_batch
from fusionx.contract.tokens.tokenizer import plain_ids

_ANCHORS = (("\n", "a"), ("a", "\n"), (")", ")"))
"""Before most texts, and before white space. Where a tokenizer draws no boundary behind one, the next is tried."""
FOLLOWING = {LETTER: "a", SPACE: " a"}
"""What a tokenizer is asked before."""


def ends_in_space(piece: bytes) -> bool:
    text = text_of(piece)
    return text is not None and text[-1:].isspace()


def _anchored(text: str, usual: str = _ANCHORS[0][0], before_space: str = _ANCHORS[0][1]) -> str:
    return (before_space if text[:1].isspace() else usual) + text


class Writer:
    """Answers, in batches, which tokens a tokenizer writes for some bytes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._by_bytes = encoder.table.by_bytes
        self._longest = max(map(len, self._by_bytes), default=0)

    def written(self, pieces: Sequence[bytes]) -> Ragged:
        """int32 token ids of every piece, one after another.

        In this order: the tokenizer's own tokens, where they spell the piece; the longest tokens from left to right (of
        bytes that are no whole characters, and of pieces inside a word, a tokenizer cannot be asked); the tokenizer's
        tokens, where they have the piece's length (it writes another case); else none.
        """
        found: list[npt.NDArray[np.int32] | None] = [None] * len(pieces)
        similar: dict[int, npt.NDArray[np.int32]] = {}
        texts = [text_of(piece) for piece in pieces]
        open_pieces = [index for index, text in enumerate(texts) if text]
        for usual, before_space in _ANCHORS:
            anchored = [_anchored(texts[index] or "", usual, before_space) for index in open_pieces]
            for index, ids in zip(open_pieces, self._behind_anchor(anchored), strict=True):
                if ids is not None and self.encoder.table.joined(ids.tolist()) == pieces[index]:
                    found[index] = ids
                elif ids is not None and self.encoder.table.byte_lengths[ids].sum() == len(pieces[index]):
                    similar.setdefault(index, ids)
            open_pieces = [index for index in open_pieces if found[index] is None]
        for index, piece in enumerate(pieces):
            if found[index] is None:
                longest = self._longest_tokens(piece)
                found[index] = similar.get(index, np.zeros(0, np.int32)) if longest is None else longest
        rows = [row for row in found if row is not None]
        offsets = np.append(0, np.cumsum([len(row) for row in rows], dtype=np.int64))
        return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32), offsets)

    def written_before(self, pieces: Sequence[bytes], following: str) -> Ragged:
        """As `written`, of pieces that end in white space, which many tokenizers divide by what follows it: a letter,
        perhaps behind a space. The last token may take that space; what a word's token takes is written alone, as what
        that token begins with."""
        alone = self.written(pieces)
        rows = np.split(alone.values, alone.offsets[1:-1])
        behind = self._behind_anchor([_anchored((text_of(piece) or "") + following) for piece in pieces])
        divided: dict[int, tuple[npt.NDArray[np.int32], bytes]] = {}
        for index, (ids, piece) in enumerate(zip(behind, pieces, strict=True)):
            if ids is None or not ends_in_space(piece):
                continue
            lengths = self.encoder.table.byte_lengths[ids]
            ends = np.cumsum(lengths)
            kept = ids[(ends < len(piece) + len(following)) & (ends - lengths < len(piece))]
            spelled = self.encoder.table.joined(kept.tolist())
            if spelled and (piece + following.encode()).startswith(spelled):
                divided[index] = kept, piece[len(spelled) :]
        rests = self.written([rest for _, rest in divided.values()])
        for row, (index, (ids, _)) in enumerate(divided.items()):
            rows[index] = np.append(ids, rests.row(row)).astype(np.int32)
        values = np.concatenate([np.zeros(0, np.int32), *rows[: len(pieces)]])
        return Ragged(values, np.append(0, np.cumsum([len(row) for row in rows[: len(pieces)]], dtype=np.int64)))

    def follows_white_space(self) -> npt.NDArray[np.uint8]:
        """What comes after every token of this tokenizer that ends in white space: `LETTER` where it leaves nothing of
        it to a word that follows, `SPACE` where it does, so that more white space follows; 0 for the others."""
        pieces = self.encoder.table.filled_bytes
        tokens = [token for token, piece in enumerate(pieces) if ends_in_space(piece)]
        behind = self._behind_anchor([_anchored(pieces[token].decode() + FOLLOWING[LETTER]) for token in tokens])
        found = np.zeros(len(pieces), np.uint8)
        for token, ids in zip(tokens, behind, strict=True):
            if ids is not None and len(ids) and ids[0] == token:
                found[token] = LETTER
            elif pieces[token].endswith(b"  "):
                found[token] = SPACE
        return found

    def _behind_anchor(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32] | None]:
        """The tokens behind the first byte of every text, None where no token ends there."""
        if not texts:
            return []
        rows = plain_ids(self.encoder.reader, texts)
        counts = np.array([len(row) for row in rows])
        flat = np.fromiter((token for row in rows for token in row), np.int32, int(counts.sum()))
        stops = np.cumsum(counts)
        lengths = self.encoder.table.byte_lengths[flat]
        ends = np.cumsum(lengths)
        before = np.append(0, ends)[stops - counts]
        extra = np.append(0, ends)[stops] - before - [len(text.encode()) for text in texts]
        behind = np.searchsorted(ends, before + 1 + extra, side="left")
        plain = (extra >= 0) & (extra <= 1) & (behind < stops)
        plain &= np.append(ends, -1)[behind] == before + 1 + extra
        found: list[npt.NDArray[np.int32] | None] = [
            flat[first + 1 : stop] if known else None
            for first, stop, known in zip(behind.tolist(), stops.tolist(), plain.tolist(), strict=True)
        ]
        rest = np.flatnonzero(~plain).tolist()
        encoded = encode_batch(self.encoder.reader, self.encoder.table, [texts[index] for index in rest], False)
        for index, encoding in zip(rest, encoded, strict=True):
            behind_anchor = int(np.searchsorted(encoding.ends, 1, side="right"))
            if behind_anchor and encoding.ends[behind_anchor - 1] == 1:
                found[index] = encoding.ids[behind_anchor:]
        return found

    def _longest_tokens(self, piece: bytes) -> npt.NDArray[np.int32] | None:
        """The longest token that begins the piece, then the longest of the rest, and so on; None where none does."""
        ids, start = [], 0
        while start < len(piece):
            for stop in range(min(len(piece), start + self._longest), start, -1):
                if piece[start:stop] in self._by_bytes:
                    ids.append(self._by_bytes[piece[start:stop]])
                    break
            else:
                return None
            start = stop
        return np.array(ids, np.int32)
