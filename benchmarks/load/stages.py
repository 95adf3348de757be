"""The data stages over many times the demo's text: whether memory, open files or the time per part grow with it.

The text is the demo's training text again and again, so that the last parts are as the first ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.benchmarks.documents.world import stages_of
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.watched_executor import WatchedExecutor
from fusionx.contract.errors import DataError
from fusionx.pipelines.execution.stage_runner import run_stages

_MODELS = ("target", "coder", "writer", "scribe")
_BLOCK = 256
_SHARES = 10


def figures(times: int = 20, data: str = "data/demo") -> Iterator[Figure]:
    """Chunk, and for each of the demo's models precompute and the walk; the last tenth of the parts against the first.

    Raises:
        DataError: the demo's models or corpus are not there.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    models = {name: Path(data, "models", name).absolute() for name in _MODELS}
    if not all(path.is_dir() for path in models.values()):
        raise DataError("The demo's models are missing.", file=f"{data}/models", remedy="run `make demo-inputs`")
    text = pq.read_table(Path(data, "corpus", "train.parquet"))
    with TemporaryDirectory(prefix="fusionx-load-") as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        pq.write_table(pa.concat_tables([text] * times), folder / "corpus" / "train.parquet")
        megabytes = times * sum(len(each.encode()) for each in text.column("text").to_pylist()) / 1e6
        yield Figure("load", "all", "text", megabytes, "MB", "the demo's", times)
        stages, _ = stages_of(folder, models, _BLOCK, ["train"])
        for stage, group in stages.items():
            executor = WatchedExecutor()
            run_stages(group(), executor)
            executor.close()
            yield from executor.figures("load", stage, _SHARES, megabytes)
