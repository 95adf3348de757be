"""Files of a corpus: whole ones in every format, and what is done to them before they are read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: _by_arrow(data, "zstd"),
    ".bz2": bz2.compress,
    ".lz4": lambda data: _by_arrow(data, "lz4"),
    ".xz": lambda data: lzma.compress(data, preset=0),
}
ENDINGS = (*(f".jsonl{ending}" for ending in COMPRESSED), ".parquet")

Expected = Literal["whole", "refused", "refused at its place", "named or whole", "no crash"]
"""What has to become of a file. whole: every document is read. refused: by an error that names it, or its line (its
place). named or whole: one of these. no crash: other text may be read, where a format carries no checksum."""


def _by_arrow(data: bytes, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def content_of(ending: str, texts: Sequence[str], domains: Sequence[str], rng: random.Random) -> bytes:
    """A file of these documents."""
    if ending == ".parquet":
        return _parquet(texts, domains)
    lines = [json_line(text, domain, rng) for text, domain in zip(texts, domains, strict=True)]
    return COMPRESSED[ending.removeprefix(".jsonl")](b"\n".join(lines) + b"\n")


def json_line(text: str, domain: str, rng: random.Random) -> bytes:
    """Characters as themselves or as \\u escapes; a missing text may be null."""
    row = {"text": text if text or rng.random() < 0.5 else None, "domain": domain}
    if rng.random() < 0.5:
        return json.dumps(row).encode()
    written = json.dumps(row, ensure_ascii=False)
    # Bytes that were no UTF-8 are written as they were, other halves of pairs have no bytes but escapes.
    escaped = "".join(
        f"\\u{ord(c):04x}" if "\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" else c for c in written
    )
    return escaped.encode("utf-8", "surrogateescape")


def _parquet(texts: Sequence[str], domains: Sequence[str]) -> bytes:
    """Its strings hold any bytes; lone surrogates are the three that UTF-8 would have for them."""
    raw = pa.array([bytes_of(text) for text in texts], pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": column, "domain": pa.array(domains)}), sink, row_group_size=50)
    return sink.getvalue().to_pybytes()


def bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def as_read(ending: str, text: str) -> str:
    """A document's text once it has been in a file of this kind."""
    return bytes_of(text).decode("utf-8", "surrogateescape") if ending == ".parquet" else text


@dataclass(frozen=True)
class Trial:
    """One file of a corpus of its own.

    expected: what has to become of it. place: what the error has to name.
    """

    kind: str
    path: Path
    expected: Expected
    place: str


_WRONG_ROWS = (
    b"", b"{", b"[1, 2]", b"3", b'"text"', b"null", b"true", b'{"text": 3}', b'{"text": ["a"]}', b'{"text": {"a": 1}}',
    b'{"text": true}', b'{"domain": "a"}', b'{"Text": "a"}', b'{"text": "a"', b'{"text": "a"} {"text": "b"}',
    b'{"text": "a\\x"}', b'{"text": "\\u12"}', b"{'text': 'a'}", b'{"text": "a",}', b"\xff\xfe{\0\"\0", b"\0", b"\x1a",
    b'{"text": "a\x01b"}', b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 200_000, b'{"a":' * 50_000,
    b'{"text": "a", "n": ' + b"9" * 10_000 + b"}", b"# a comment", b"text\ta", b"<html>",
)  # fmt: skip
"""Lines that are no object with a text."""


def trial(folder: Path, number: int, texts: Sequence[str], rng: random.Random) -> Trial:
    """A file of these documents with something wrong, or merely unusual, about it."""
    kinds = list(_TRIALS)
    kind = kinds[number % len(kinds)]
    return _TRIALS[kind](kind, folder, list(texts), rng)


def _written(kind: str, folder: Path, name: str, data: bytes, expected: Expected, place: str = "") -> Trial:
    path = folder / name
    path.write_bytes(data)
    return Trial(kind, path, expected, place or name)


def _whole(ending: str, texts: Sequence[str], rng: random.Random) -> bytes:
    return content_of(ending, texts, ["all"] * len(texts), rng)


def _cut_short(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """Plain lines can end at any line's end, and nobody can tell."""
    ending = rng.choice([ending for ending in ENDINGS if ending != ".jsonl"])
    data = _whole(ending, texts, rng)
    return _written(kind, folder, f"cut{ending}", data[: rng.randrange(1, len(data))], "refused")


def _flipped(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    ending = rng.choice(ENDINGS)
    data = bytearray(_whole(ending, texts, rng))
    for _ in range(rng.choice((1, 1, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    checked = ending.endswith((".gz", ".bz2", ".xz"))
    return _written(kind, folder, f"flipped{ending}", bytes(data), "named or whole" if checked else "no crash")


def _wrong_row(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    ending = rng.choice(ENDINGS[:-1])
    lines = [json_line(text, "all", rng) for text in texts]
    number = rng.randrange(len(lines) + 1)
    wrong = rng.choice(_WRONG_ROWS)
    lines.insert(number, wrong)
    data = COMPRESSED[ending.removeprefix(".jsonl")](b"\n".join(lines) + b"\n")
    if not wrong:
        return _written(kind, folder, f"empty-line{ending}", data, "whole")
    name = f"wrong{ending}"
    return _written(kind, folder, name, data, "refused at its place", f"{name}:{number + 1}")


def _misnamed(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """A format under another's name."""
    ending, named = rng.sample(ENDINGS, 2)
    return _written(kind, folder, f"misnamed{named}", _whole(ending, texts, rng), "refused")


def _joined(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """Several compressed files one after the other are one, as `cat` makes them."""
    ending = rng.choice(ENDINGS[:-1])
    middle = rng.randrange(1, len(texts))
    data = _whole(ending, texts[:middle], rng) + _whole(ending, texts[middle:], rng)
    return _written(kind, folder, f"joined{ending}", data, "whole")


def _trailing(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    ending = rng.choice([ending for ending in ENDINGS if ending != ".jsonl"])
    return _written(kind, folder, f"trailing{ending}", _whole(ending, texts, rng) + rng.randbytes(40), "named or whole")


def _unusual(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """A byte order mark, Windows' line ends, empty lines, no end of the last line, padding of 50 kB."""
    lines = [json_line(text, "all", rng) for text in texts]
    lines[-1] = lines[-1][:-1] + b', "padding": "' + b"x" * 50_000 + b'"}'
    end = rng.choice((b"\r\n", b"\n\n", b" \n\t\n"))
    mark = rng.choice((b"", b"\xef\xbb\xbf"))
    return _written(kind, folder, "unusual.jsonl", mark + end.join(lines), "whole")


def _encoded(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """Lines in an encoding that JSON does not have."""
    encoding = rng.choice(("utf-16", "utf-16-be", "utf-32", "cp037"))
    text = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    return _written(kind, folder, "encoded.jsonl", text.encode(encoding), "refused at its place", "encoded.jsonl:1")


def _noise(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    name = f"noise{rng.choice(ENDINGS)}"
    return _written(kind, folder, name, rng.randbytes(rng.choice((1, 7, 300, 5000))), "refused")


def _empty(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    """An empty file holds no document; an empty corpus is named by its path."""
    return _written(kind, folder, f"empty{rng.choice(ENDINGS)}", b"", "refused")


def _wrong_columns(kind: str, folder: Path, texts: list[str], rng: random.Random) -> Trial:
    columns = rng.choice(
        (
            {"body": pa.array(texts[:1] and ["a"])},
            {"text": pa.array([1, 2])},
            {"text": pa.array([["a"], None])},
            {"text": pa.array([{"a": 1}])},
            {"text": pa.array([b"\xff\0", b"a"], pa.binary())},
            {"text": pa.array([1.5, float("nan")])},
            {"text": pa.array([True])},
        )
    )
    pq.write_table(pa.table(columns), folder / "columns.parquet")
    return Trial(kind, folder / "columns.parquet", "refused", "columns.parquet")


_TRIALS: dict[str, Callable[[str, Path, list[str], random.Random], Trial]] = {
    "cut short": _cut_short,
    "bits flipped": _flipped,
    "a wrong line": _wrong_row,
    "another format's name": _misnamed,
    "joined": _joined,
    "bytes behind the end": _trailing,
    "unusual": _unusual,
    "another encoding": _encoded,
    "noise": _noise,
    "empty": _empty,
    "wrong columns": _wrong_columns,
}
