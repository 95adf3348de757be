"""Cutting documents on one core under four real tokenizers, against one bare encoding pass and encoding every chunk.

The text is what every installation has: the standard library's sources and the descriptions of installed packages.
`mb_per_s` starts with nothing remembered; `mb_per_s_remembered` cuts the same text once more, which a long run nears.
"""

from __future__ import annotations

import os
import random
import statistics
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import distributions
from itertools import accumulate
from pathlib import Path
from typing import Any

from fusionx.benchmarks.map import byte_bpe_50k, llama_128k, mistral_32k, tekken_131k
from fusionx.benchmarks.measuring.figure import Figure, cpu_seconds
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table
from fusionx.contract.tokens.tokenizer import adds_bos
from fusionx.precompute.chunks.chunker import Chunker, boundary, chunker_of

BLOCKS = (2048, 256)
TEXT_MB = 12.0
REFERENCE_MB = 0.5
ROUNDS = 3
TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "mistral_32k": mistral_32k,
    "byte_bpe_50k": byte_bpe_50k,
    "llama_128k": llama_128k,
    "tekken_131k": tekken_131k,
}


def figures(
    text_mb: float = TEXT_MB,
    reference_mb: float = REFERENCE_MB,
    rounds: int = ROUNDS,
    tokenizers: Mapping[str, Callable[[], Any]] = TOKENIZERS,
) -> Iterator[Figure]:
    """Megabytes of text per CPU second of one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    documents = installed_documents(text_mb)
    encoders = {name: _encoder(make()) for name, make in tokenizers.items()}
    bare = 0.0
    for name, encoder in encoders.items():
        seconds, _ = cpu_seconds(partial(encoder.count, documents), rounds)
        bare += seconds
        yield Figure("chunk", name, "bare_mb_per_s", _megabytes(documents) / seconds, "MB/s", n=rounds)
    bare_speed = _megabytes(documents) / bare
    yield Figure("chunk", "all", "bare_mb_per_s", bare_speed, "MB/s", n=rounds)
    sample = documents[: max(1, round(len(documents) * reference_mb / text_mb))]
    for block in BLOCKS:
        yield from _figures_at(block, list(encoders.values()), documents, sample, rounds, bare_speed)


def _figures_at(
    block: int, encoders: list[Encoder], documents: list[str], sample: list[str], rounds: int, bare_speed: float
) -> Iterator[Figure]:
    """With blocks of so many tokens; the straightforward way cuts only the `sample`, for it takes long."""
    case, against = f"block-{block}", "one bare encoding pass of all tokenizers"
    seconds, chunks = cpu_seconds(partial(_cut_anew, encoders, block, documents), rounds)
    speed = _megabytes(documents) / seconds
    yield Figure("chunk", case, "mb_per_s", speed, "MB/s", against, speed / bare_speed, rounds)
    chunker = chunker_of(encoders, block)
    _cut(chunker, documents)
    again, _ = cpu_seconds(partial(_cut, chunker, documents), rounds)
    yield Figure("chunk", case, "mb_per_s_remembered", _megabytes(documents) / again, "MB/s", n=rounds)
    straight, _ = cpu_seconds(partial(_cut_straightforward, encoders, block, sample), 1)
    reference = _megabytes(sample) / straight
    yield Figure("chunk", case, "mb_per_s_straightforward", reference, "MB/s", "mb_per_s", reference / speed)
    tokens = [max(counts) for counts in zip(*(encoder.count(chunks) for encoder in encoders), strict=True)]
    assert max(tokens) <= block, max(tokens)
    yield Figure("chunk", case, "median_fill", statistics.median(tokens) / block, "of the block", n=len(tokens))


def installed_documents(megabytes: float) -> list[str]:
    """Sources of the standard library and descriptions of installed packages, in a fixed random order."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    texts = [path.read_bytes().decode("utf-8", "replace") for path in sources if "site-packages" not in path.parts]
    texts += sorted(found.read_text("METADATA") or "" for found in distributions())
    random.Random(0).shuffle(texts)
    sizes = accumulate(_megabytes([text]) for text in texts)
    return [text for text, size in zip(texts, sizes, strict=True) if text and size <= megabytes]


def straightforward(text: str, encoders: Sequence[Encoder], block_size: int) -> Iterator[str]:
    """Encodes a window that is surely too long, cuts where the last token that fits ends, and encodes the result."""
    start = 0
    while start < len(text):
        window = text[start : start + 6 * block_size]
        limit = len(window)
        for encoder in encoders:
            ends = encoder.encode([window])[0].ends
            if len(ends) > block_size:
                limit = min(limit, len(window.encode()[: ends[block_size - 1]].decode(errors="ignore")))
        end = limit
        while True:
            end = boundary(window, 0, end) if end < len(window) or limit < len(window) else end
            if all(len(encoder.encode([window[:end]])[0].ends) <= block_size for encoder in encoders):
                break
            end = min(end - 1, int(end * 0.95))
        yield window[:end]
        start += end


def _encoder(tokenizer: Any) -> Encoder:
    return Encoder.of(tokenizer, token_table(tokenizer), adds_bos(tokenizer))


def _cut(chunker: Chunker, documents: Sequence[str]) -> list[str]:
    return [chunk for text in documents for chunk in chunker.cut(text)]


def _cut_anew(encoders: Sequence[Encoder], block_size: int, documents: Sequence[str]) -> list[str]:
    return _cut(chunker_of(encoders, block_size), documents)


def _cut_straightforward(encoders: Sequence[Encoder], block_size: int, documents: Sequence[str]) -> list[str]:
    return [chunk for text in documents for chunk in straightforward(text, encoders, block_size)]


def _megabytes(documents: Sequence[str]) -> float:
    return sum(len(text.encode("utf-8", "replace")) for text in documents) / 1e6
