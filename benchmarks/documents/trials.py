"""The trials: fuzzed documents through chunk, precompute and align; endless texts cut; damaged files read."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fusionx.benchmarks.documents.files import ENDINGS, Trial, as_read, content_of, trial
from fusionx.benchmarks.documents.texts import document, endless, why_lost
from fusionx.benchmarks.documents.world import Tokenizers, make_models, real_tokenizers, stages_of
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.memory import resident
from fusionx.benchmarks.measuring.watch import WatchedExecutor
from fusionx.contract.errors import FusionXError, IncompleteError
from fusionx.contract.shards.codec import read_distributions
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.precompute.chunks.chunker import chunker_of
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.documents import Document, read_corpus

FILE_ROWS = 200
FILE_TEXTS = 24
"""Documents of one damaged file."""
BLOCK = 128


def figures(
    documents: int = 1000,
    cut_only: int = 10_000,
    files: int = 1000,
    word_kb: int = 1000,
    line_mb: int = 50,
    seed: int = 0,
    tokenizers: Tokenizers | None = None,
) -> Iterator[Figure]:
    """What became of all of them, and what memory and time it took.

    Args:
        documents: go through every stage; `cut_only` more through chunk alone, as a split that no source is run over.
        word_kb: length of each text without a place to cut it. line_mb: of a line of JSON.

    Raises:
        IncompleteError: at the end, where one was lost, changed, or ended in something that is no error of ours.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    problems: list[str] = []
    with TemporaryDirectory(prefix="fusionx-documents-") as name:
        folder = Path(name)
        models = make_models(folder / "models", tokenizers or real_tokenizers())
        yield from _through_the_stages(folder / "run", models, documents, cut_only, seed, problems)
        yield from _endless(models, word_kb, problems)
        yield from _long_lines(folder, line_mb, problems)
        yield from _damaged_files(folder / "file", files, seed, problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise IncompleteError("Documents were lost, changed, or ended in a traceback.", found=f"{len(problems)}, above")


# --- Fuzzed documents through every stage ---------------------------------------------------------------------------


def _through_the_stages(
    folder: Path, models: Mapping[str, Path], documents: int, cut_only: int, seed: int, problems: list[str]
) -> Iterator[Figure]:
    documents, tried = _whole_files(documents), _whole_files(documents) + _whole_files(cut_only)
    walked = _write_files(folder / "corpus", "train", range(0, documents, FILE_ROWS), seed) / 1e6
    megabytes = walked + _write_files(folder / "corpus", "test", range(documents, tried, FILE_ROWS), seed) / 1e6
    stages, outputs = stages_of(folder, models, BLOCK, ["train", "test"] if tried > documents else ["train"])
    yield Figure("documents", "fuzzed", "tried", tried, "documents")
    yield Figure("documents", "fuzzed", "text", megabytes, "MB")
    yield Figure("documents", "fuzzed", "through every stage", documents, "documents", "tried", documents / tried)
    yield Figure("documents", "fuzzed", "memory before", resident("VmRSS"), "MB")
    for name, group in stages.items():
        executor = WatchedExecutor()
        try:
            run_stages(group(), executor)
        except FusionXError as error:
            problems.append(f"{name}: {error}")
            return
        executor.close()
        yield from executor.watch.figures("documents", name, 2, megabytes if name == "chunk" else walked)
    found = _account(outputs["chunk"], tried, seed, problems)
    for outcome, count in sorted(found.items()):
        yield Figure("documents", "fuzzed", outcome, count, "documents", "tried", count / tried, tried)
    for name, output in outputs.items():
        if name != "chunk":
            _compare_rows(name, outputs["chunk"], output, problems)


def _whole_files(documents: int) -> int:
    return -(-documents // FILE_ROWS) * FILE_ROWS


def _write_files(folder: Path, split: str, firsts: range, seed: int) -> int:
    """Files of every format in turn, each named by its first document's number; bytes of all texts."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for first in firsts:
        made = [document(seed, number) for number in range(first, first + FILE_ROWS)]
        content = content_of(_ending(first), [m.text for m in made], [m.kind for m in made], random.Random(first))
        (folder / f"{split}-{first:07d}{_ending(first)}").write_bytes(content)
        total += sum(len(m.text.encode("utf-8", "surrogatepass")) for m in made)
    return total


def _ending(number: int) -> str:
    """Of the file that holds the document."""
    return ENDINGS[number // FILE_ROWS % len(ENDINGS)]


def _account(output: Path, tried: int, seed: int, problems: list[str]) -> Counter[str]:
    """How many documents were kept and left out, by reason; every one is looked for, and its chunks put together."""
    manifest = read_manifest(str(output), "chunks", "chunk")
    pieces: dict[int, str] = {}
    for entry in manifest.parts:
        table, _ = read_part(str(output / entry.name), "chunks", ["doc_id", "text"], entry.sha256)
        rows = zip(table.column("doc_id").to_pylist(), table.column("text").to_pylist(), strict=True)
        for number, texts in groupby(rows, key=lambda row: row[0]):
            if number in pieces:
                problems.append(f"document {number} is in two parts")
            pieces[number] = "".join(text for _, text in texts)
    found: Counter[str] = Counter()
    for number in range(tried):
        made = document(seed, number)
        text = as_read(_ending(number), made.text)
        reason = why_lost(text)
        found[f"left out: {reason}" if reason else "kept"] += 1
        if pieces.get(number) != (None if reason else text):
            problems.append(f"document {number} ({made.kind}) is not what it was")
    said = {f"left out: {reason}": count for reason, count in manifest.stats["skipped"].items()}
    said["kept"] = manifest.stats["documents"] - sum(said.values())
    if said != dict(found):
        problems.append(f"the manifest counts {said}, there are {dict(found)}")
    return found


def _compare_rows(name: str, chunks: Path, output: Path, problems: list[str]) -> None:
    """Every chunk is in every later output, and what is said of it are probabilities."""
    kind = name.split("/")[0]
    listed = {entry.name: entry for entry in read_manifest(str(output), kind, "").parts}
    for entry in read_manifest(str(chunks), "chunks", "chunk").parts_of("train"):
        cut, _ = read_part(str(chunks / entry.name), "chunks", ["doc_id", "chunk"], entry.sha256)
        if entry.name not in listed:
            problems.append(f"{name} lacks {entry.name}")
            continue
        table, _ = read_part(str(output / entry.name), kind, sha256=listed[entry.name].sha256)
        if table.select(["doc_id", "chunk"]).to_pydict() != cut.to_pydict():
            problems.append(f"{name}: {entry.name} has other rows than the chunks")
        if kind != "tokens":
            said = read_distributions(table)
            probs = np.exp(said.logprobs.astype(np.float64))
            sums = np.add.reduceat(np.append(probs, 0.0), said.starts[:-1]) if len(probs) else probs
            sums = np.where(said.counts > 0, sums[: len(said)], 0.0) + said.tail
            if not np.isfinite(sums).all() or (sums > 1.01).any() or (probs < 0).any():
                problems.append(f"{name}: {entry.name} holds what are no probabilities")


# --- Texts without a place to cut, and long lines -------------------------------------------------------------------


def _endless(models: Mapping[str, Path], word_kb: int, problems: list[str]) -> Iterator[Figure]:
    from fusionx.contract.tokens.encoder import load_encoder

    encoders = [load_encoder(str(model)) for model in models.values()]
    chunker = chunker_of(encoders, BLOCK)
    for name, text in endless(word_kb * 1000).items():
        started = time.process_time()
        chunks = chunker.cut(text)
        seconds = time.process_time() - started
        yield Figure("documents", name, "time", seconds / len(text.encode()) * 1e6, "s of a core per MB")
        yield Figure("documents", name, "chunks", len(chunks), "chunks")
        if "".join(chunks) != text:
            problems.append(f"{name}: the chunks are not the text")
        longest = max(max(encoder.count(chunks)) for encoder in encoders)
        if longest > BLOCK:
            problems.append(f"{name}: a chunk of {longest} tokens")


def _long_lines(folder: Path, line_mb: int, problems: list[str]) -> Iterator[Figure]:
    """A line whose text is that long, and one whose other field is; both are read."""
    folder = folder / "lines"
    folder.mkdir()
    long = "long line " * (line_mb * 100_000)
    lines = [f'{{"text": "{long}"}}', f'{{"text": "short", "other": "{long}"}}', '{"text": "last"}']
    file = folder / "lines.jsonl"
    file.write_text("\n".join(lines))
    started = time.process_time()
    found = [each.text for each in read_corpus(CorpusConfig(path=str(file)))]
    case, seconds = f"lines of {line_mb} MB", time.process_time() - started
    yield Figure("documents", case, "time", seconds / 2 / line_mb, "s of a core per MB")
    yield Figure("documents", case, "memory", resident("VmHWM"), "MB")
    if found != [long, "short", "last"]:
        problems.append("long lines are not read as they are")


# --- Damaged files --------------------------------------------------------------------------------------------------


def _damaged_files(folder: Path, files: int, seed: int, problems: list[str]) -> Iterator[Figure]:
    counts: dict[str, Counter[str]] = {}
    for number in range(files):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rng = random.Random(f"{seed}:file:{number}")
        texts = [document(seed + 1, rng.randrange(10**6)).text for _ in range(FILE_TEXTS)]
        made = trial(folder, number, texts, rng)
        outcome, wrong = judged(made, texts)
        counts.setdefault(made.kind, Counter())[outcome] += 1
        if wrong:
            problems.append(f"file {number} ({made.kind}, {made.path.name}): {wrong}")
    for kind, outcomes in counts.items():
        tried = sum(outcomes.values())
        yield Figure("documents", kind, "tried", tried, "files")
        for outcome, count in sorted(outcomes.items()):
            yield Figure("documents", kind, outcome, count, "files", "tried", count / tried, tried)


def judged(made: Trial, texts: Sequence[str]) -> tuple[str, str]:
    """What became of a file, and what is wrong with that, if anything."""
    try:
        found: list[Document] = list(read_corpus(CorpusConfig(path=str(made.path))))
    except FusionXError as error:
        if made.place not in str(error):
            return "refused", f"the error does not name {made.place}: {error}"
        return "refused", f"a whole file is refused: {error}" if made.expected == "whole" else ""
    except Exception as error:
        return "traceback", repr(error)
    whole = [each.text for each in found] == [as_read(made.path.suffix, text) for text in texts]
    outcome = "read whole" if whole else "read changed"
    allowed = {"whole": whole, "named or whole": whole, "no crash": True}
    return outcome, "" if allowed.get(made.expected, False) else f"it is {outcome}"
