"""Shows a vocabulary map to a person: where each token of a text goes and why, and how two tokenizations of it lie
beside each other. Pure functions from encoders and a map to lines or plain values; the walk is `align.walk.explain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from fusionx.align.positions import Status, align_positions
from fusionx.align.vocabulary.edit_distance import text_of
from fusionx.align.vocabulary.vocab_map import DROPPED, MapKind, Mode, VocabMap, equally_near
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import OTHER_SPECIAL, TokenTable

_BAR = 40
_NAMED_TIES = 3
"""Besides the one that the map takes."""
_NOTHING_FOUND: dict[Mode, str] = {
    "exact": "no equal token",
    "mined": "the target has no token with bytes",
}


@dataclass(frozen=True)
class MappedToken:
    """Where one source token goes: `target_id` -1, `target` "" and `distance` -1 where it is dropped.

    `source` and `target` are the tokens as a person reads them, see `shown`.
    """

    source_id: int
    source: str
    target_id: int
    target: str
    kind: str
    distance: int
    why: str


def shown(table: TokenTable, token: int) -> str:
    """A token as a quoted text, as b'...' where its bytes are no valid UTF-8, as <eos> where it is special."""
    if token in table.special_role:
        return f"<{table.special_role[token]}>"
    piece = table.token_bytes[token]
    return "<no bytes>" if not piece else repr(piece if text_of(piece) is None else text_of(piece))


def mapped_tokens(source: TokenTable, target: TokenTable, vocab_map: VocabMap, ids: Sequence[int]) -> list[MappedToken]:
    """What the map does with each of `ids`, in their order."""
    edited = [token for token in dict.fromkeys(ids) if vocab_map.kind[token] == MapKind.EDITED]
    near = dict(zip(edited, equally_near(source, target, edited, keep=_NAMED_TIES + 1), strict=True))
    rows = []
    for token in ids:
        to, kind = int(vocab_map.target_ids[token]), MapKind(vocab_map.kind[token])
        rows.append(
            MappedToken(
                token,
                shown(source, token),
                to,
                "" if to == DROPPED else shown(target, to),
                kind.name.lower(),
                int(vocab_map.distance[token]),
                _why(source, target, vocab_map, token, near.get(token, ([], 0))),
            )
        )
    return rows


def _why(source: TokenTable, target: TokenTable, vocab_map: VocabMap, token: int, near: tuple[list[int], int]) -> str:
    kind, piece = MapKind(vocab_map.kind[token]), source.token_bytes[token]
    if kind == MapKind.EXACT:
        return "equal bytes"
    if kind == MapKind.BYTE:
        return "equal bytes, a byte-fallback token on at least one side"
    if kind == MapKind.SPECIAL:
        return "special tokens of the same role"
    if kind == MapKind.EDITED:
        return _why_edited(source, target, vocab_map, token, near)
    role = source.special_role.get(token)
    if role == OTHER_SPECIAL:
        return "dropped: a special token without a role"
    if role is not None:
        return f"dropped: the target has no {role}"
    if not piece:
        return "dropped: stands for no bytes"
    return f"dropped: {_NOTHING_FOUND[vocab_map.mode]}"


def _why_edited(
    source: TokenTable, target: TokenTable, vocab_map: VocabMap, token: int, near: tuple[list[int], int]
) -> str:
    to = int(vocab_map.target_ids[token])
    first, second = source.token_bytes[token] or b"", target.token_bytes[to] or b""
    unit = "character" if text_of(first) is not None and text_of(second) is not None else "byte"
    distance = _counted(int(vocab_map.distance[token]), unit)
    prefix = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    why = f"edit distance {distance}, common prefix {_counted(prefix, 'byte')}"
    named, ties = near
    others = [shown(target, other) for other in named if other != to][:_NAMED_TIES]
    if others:
        unnamed = ties - 1 - len(others)
        why += "; also as near: " + ", ".join(others) + (f" and {unnamed:,} more" if unnamed else "")
    return why


def mapped_text(source: Encoder, target: Encoder, vocab_map: VocabMap, text: str) -> list[MappedToken]:
    """What the map does with every source token of `text`.

    Raises:
        ValueError: the map is not of these two tokenizers, or the text holds a lone surrogate.
    """
    found = (vocab_map.source_fingerprint, vocab_map.target_fingerprint)
    wanted = (source.fingerprint, target.fingerprint)
    if found != wanted:
        raise ValueError(f"the map is of the tokenizers {found}, not of {wanted}")
    ids = source.encode([text])[0].ids.tolist()
    return mapped_tokens(source.table, target.table, vocab_map, ids)


def explain_text(source: Encoder, target: Encoder, vocab_map: VocabMap, text: str) -> list[str]:
    """Lines: `mapped_text`; then how the two tokenizations lie beside each other (`explain_positions`)."""
    rows = [("id", "source", "id", "target", "kind", "distance", "why")]
    for row in mapped_text(source, target, vocab_map, text):
        to = ("-", "-", "-") if row.target_id == DROPPED else (str(row.target_id), row.target, str(row.distance))
        rows.append((str(row.source_id), row.source, to[0], to[1], row.kind, to[2], row.why))
    return [*_columns(rows), "", *explain_positions(source, target, text)]


def explain_positions(source: Encoder, target: Encoder, text: str) -> list[str]:
    """Lines: `text` cut at every place where both tokenizations have consumed the same bytes, with both sides'
    tokens, and how many target positions take a source position's distribution.

    Where a side has several tokens up to such a place, only its last position is there.
    """
    one, other = source.encode([text])[0], target.encode([text])[0]
    index, status = align_positions(one.ends, one.ids, other.ends, other.ids, source.table, target.table)
    rows = [("bytes", "text", "source", "target")]
    data = text.encode("utf-8")
    for left, right, start, end in _stretches(index, len(one.ids), len(other.ids), one.ends):
        rows.append(
            (
                f"{start}-{end}",
                repr(data[start:end].decode("utf-8", "backslashreplace")),
                " ".join(shown(source.table, token) for token in one.ids[left].tolist()),
                " ".join(shown(target.table, token) for token in other.ids[right].tolist()),
            )
        )
    aligned = int(np.count_nonzero(status == Status.EXACT_BOUNDARY))
    lossy = [name for name, encoding in (("source", one), ("target", other)) if encoding.lossy]
    note = f" The {' and the '.join(lossy)} tokenizer normalises this text." if lossy else ""
    return [*_columns(rows), f"{aligned} of {len(other.ids)} target positions take a source position.{note}"]


def _stretches(
    index: np.ndarray, source_length: int, target_length: int, source_ends: np.ndarray
) -> Iterator[tuple[slice, slice, int, int]]:
    """Source tokens, target tokens and bytes from one agreeing place to the next; a rest without one at the end."""
    left = right = start = 0
    for at in np.flatnonzero(index >= 0).tolist():
        until, end = int(index[at]) + 1, int(source_ends[index[at]])
        yield slice(left, until), slice(right, at + 1), start, end
        left, right, start = until, at + 1, end
    if left < source_length or right < target_length:
        end = int(source_ends[-1]) if source_length else start
        yield slice(left, source_length), slice(right, target_length), start, end


def describe_map(vocab_map: VocabMap) -> dict[str, Any]:
    """The map in numbers, ready for JSON.

    `kinds` counts source ids by `MapKind`; `distances` counts the mapped ones by edit distance, as strings because
    JSON has no other keys; `targets` is the number of distinct target ids that are mapped onto.
    """
    mapped = vocab_map.distance[vocab_map.target_ids != DROPPED]
    distances, counts = np.unique(mapped, return_counts=True)
    return {
        "mode": vocab_map.mode,
        "source_fingerprint": vocab_map.source_fingerprint,
        "target_fingerprint": vocab_map.target_fingerprint,
        "tokens": len(vocab_map.target_ids),
        "targets": len(np.setdiff1d(vocab_map.target_ids, DROPPED)),
        "kinds": vocab_map.counts(),
        "distances": dict(zip(map(str, distances.tolist()), counts.tolist(), strict=True)),
    }


def description_lines(vocab_map: VocabMap) -> list[str]:
    """`describe_map` as lines, the distances as a histogram."""
    found = describe_map(vocab_map)
    total, sizes = max(1, found["tokens"]), _histogram(found["distances"])
    most = max(sizes.values(), default=1)
    kinds = [("kind", "tokens", "")]
    kinds += [(kind, f"{count:,}", f"{count / total:.1%}") for kind, count in found["kinds"].items() if count]
    distances = [("distance", "tokens", "")]
    distances += [(name, f"{count:,}", "#" * round(_BAR * count / most)) for name, count in sizes.items()]
    title = f"map {found['mode']}: {found['tokens']:,} source ids, {found['targets']:,} target ids"
    return [title, "", *_columns(kinds), "", *_columns(distances)]


def _histogram(distances: dict[str, int]) -> dict[str, int]:
    """Counts of the distances 0 to 10 each, 11 to 20, and all above."""
    names = [*map(str, range(11)), *["11-20"] * 10]
    sizes: dict[str, int] = {}
    for distance, count in distances.items():
        name = names[int(distance)] if int(distance) < len(names) else "above 20"
        sizes[name] = sizes.get(name, 0) + count
    return sizes


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
