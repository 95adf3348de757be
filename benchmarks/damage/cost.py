"""What it costs that everything is checked: the share of each stage's time, over a small run in this process.

The run's models are tiny, so that a stage's own work per token is far below what it is for any model worth having,
while what is checked per token is the same: the shares are upper bounds.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fusionx.benchmarks.measuring.figure import Figure, interleaved_seconds
from fusionx.contract.errors import IncompleteError
from fusionx.contract.files import sealed
from fusionx.contract.shards import parts

BOUND = 0.05
"""The most that checking may take of a stage's time."""
_SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}
_DOCUMENT = 2000
"""Characters."""
_OVERRIDES = (
    "train.methods=[fusionx]",
    "align.methods=[walk]",
    "precompute.k=32",
    "chunk.part_bytes=50000",
    "eval.tasks=[]",
)


@dataclass
class Cost:
    """Seconds of CPU that checking took, and that finding this out took on top."""

    checking: float = 0.0
    measuring: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is all of it checking."""

        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self._add(time.thread_time() - started, 0.0)

        return call

    def beside_plain(self, read_whole: Callable[..., Any]) -> Callable[..., Any]:
        """Reading a part with every check, whose time beyond plain reading is checking."""

        def call(data: bytes, path: str, sha256: str | None, columns: Any) -> Any:
            import pyarrow as pa
            import pyarrow.parquet as pq

            started = time.thread_time()
            found = read_whole(data, path, sha256, columns)
            checked = time.thread_time() - started
            pq.ParquetFile(pa.BufferReader(data)).read(columns=list(columns) if columns else None)
            plain = time.thread_time() - started - checked
            self._add(max(0.0, checked - plain), plain)
            return found

        return call

    def _add(self, checking: float, measuring: float) -> None:
        with self._lock:
            self.checking += checking
            self.measuring += measuring


@contextmanager
def watched() -> Iterator[Cost]:
    """What the program checks in this process, from now on: parts, files that a seal lists, and what is sealed."""
    cost = Cost()
    with ExitStack() as patches:
        for module, name in ((sealed, "_hash"), (sealed, "_remembered_hash"), (sealed, "digest_of"), (parts, "_entry")):
            patches.enter_context(patch.object(module, name, cost.timed(getattr(module, name))))
        patches.enter_context(patch.object(parts, "_read_whole", cost.beside_plain(parts._read_whole)))
        yield cost


def shares(folder: Path, kilobytes: int) -> Iterator[Figure]:
    """Checking as a share of every stage's time, all in seconds of CPU.

    Raises:
        IncompleteError: at the end, where it is more than `BOUND`.
    """
    from fusionx.benchmarks.crash.world import make_world
    from fusionx.pipelines.layout import Layout
    from fusionx.pipelines.pipeline import open_pipeline
    from fusionx.pipelines.training.training_jobs import planned_jobs
    from fusionx.train.loop.trainer import run_job

    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    config = make_world(folder, {"run": {"validate_every": 100, "checkpoint_every": 100}})
    _write_corpus(folder / "corpus", kilobytes)
    with open_pipeline(config, _OVERRIDES) as pipeline:

        def train() -> None:
            for job in planned_jobs(pipeline.config, Layout(pipeline.config.output)):
                run_job(job)

        stages: dict[str, Callable[[], object]] = {
            "chunk": pipeline.chunk,
            "precompute": pipeline.precompute,
            "align": pipeline.align,
            "train": train,
            "eval": pipeline.eval,
        }
        most = 0.0
        for name, work in stages.items():
            with watched() as cost:
                started = time.process_time()
                work()
                seconds = time.process_time() - started - cost.measuring
            most = max(most, cost.checking / seconds)
            yield Figure("damage", name, "checking", cost.checking, "s", "the stage", cost.checking / seconds)
    if most > BOUND:
        raise IncompleteError(
            "Checking takes too much of a stage's time.", found=f"{most:.1%}", expected=f"{BOUND:.0%}"
        )


def _write_corpus(folder: Path, kilobytes: int) -> None:
    from fusionx.benchmarks.chunk import installed_documents

    texts = [text[:_DOCUMENT] for text in installed_documents(1 + kilobytes / 100)]  # some are a hundred times as long
    first = 0
    for split, share in _SPLITS.items():
        count = max(1, round(1000 * kilobytes / _DOCUMENT * share))
        lines = (json.dumps({"text": text, "domain": "code"}) for text in texts[first : first + count])
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        first += count


def hashing(file: Path, megabytes: int) -> Iterator[Figure]:
    """A hash beside what is done with a file anyway: writing it to the disk."""
    file.write_bytes(os.urandom(megabytes << 20))

    def hash_it() -> None:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, "sha256").digest()

    def write() -> None:
        data = file.read_bytes()
        with file.with_suffix(".copy").open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    seconds = interleaved_seconds({"hash": hash_it, "write": write}, 5)
    rate = megabytes * 1.048576 / seconds["hash"]
    yield Figure("damage", "sha256", "hashed", rate, "MB/s", "writing and fsync", seconds["hash"] / seconds["write"], 5)
