"""All stages over many times the demo's text: whether memory, open files or the time per part grow with it.

The text is the demo's training text again and again, so that the last parts are as the first ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.benchmarks.documents.world import stages_of
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.watch import Watch, WatchedExecutor, WatchedTrainer
from fusionx.contract.errors import DataError
from fusionx.contract.shards.manifest import read_manifest
from fusionx.eval.models.loaded_model import load_model
from fusionx.eval.text.perplexity import score_chunks
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob
from fusionx.train.distributed.collectives import process_group

_MODELS = ("target", "coder", "writer", "scribe")
_BLOCK = 256
_SHARES = 10
_BATCH_TOKENS = 4096


def figures(times: int = 20, data: str = "data/demo") -> Iterator[Figure]:
    """Chunk, for each of the demo's models precompute and the walk, a training of the target with all of them, and the
    evaluation of its training text; the last tenth of the parts or steps against the first.

    Raises:
        DataError: the demo's models or corpus are not there.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    models = {name: Path(data, "models", name).absolute() for name in _MODELS}
    if not all(path.is_dir() for path in models.values()):
        raise DataError("The demo's models are missing.", file=f"{data}/models", remedy="run `make demo-inputs`")
    text, held_out = (pq.read_table(Path(data, "corpus", f"{split}.parquet")) for split in ("train", "validation"))
    with TemporaryDirectory(prefix="fusionx-load-") as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        pq.write_table(pa.concat_tables([text] * times), folder / "corpus" / "train.parquet")
        pq.write_table(held_out, folder / "corpus" / "validation.parquet")
        megabytes = times * sum(len(each.encode()) for each in text.column("text").to_pylist()) / 1e6
        yield Figure("load", "all", "text", megabytes, "MB", "the demo's", times)
        stages, outputs = stages_of(folder, models, _BLOCK, ["train", "validation"], ("train", "validation"))
        for stage, group in stages.items():
            executor = WatchedExecutor()
            run_stages(group(), executor)
            executor.close()
            yield from executor.watch.figures("load", stage, _SHARES, megabytes)
        target = models[_MODELS[0]]
        yield from _trained(target, outputs, folder / "out").figures("load", "train", _SHARES, megabytes)
        yield from _evaluated(target, outputs["chunk"]).figures("load", "evaluate", _SHARES, megabytes)


def _trained(target: Path, outputs: Mapping[str, Path], output: Path) -> Watch:
    """One pass of `fusionx`, as `fusionx train` makes it, checkpoints and export included."""
    aligned = {
        name.removeprefix("aligned/"): str(path) for name, path in outputs.items() if name.startswith("aligned/")
    }
    job = TrainJob(
        method_name="fusionx",
        method=PRESETS["fusionx"],
        seed=0,
        optimizer=OptimizerConfig(learning_rate=0.001, batch_size=4, epochs=1),
        run=RunConfig(device="cpu", validate_every=500),
        target="target",
        target_path=str(target),
        target_weights="",
        tokens=str(outputs["tokens"]),
        aligned=aligned,
        inputs={},
        output=str(output),
    )
    with process_group(job.run.device) as world:
        trainer = WatchedTrainer(job, world)
        trainer.run()
    return trainer.watch


def _evaluated(target: Path, chunks: Path) -> Watch:
    """Bits per byte of the training text, part by part."""
    loaded, watch = load_model(target, "cpu"), Watch()
    for part in read_manifest(str(chunks), "chunks", "chunk").parts:
        if part.split == "train":
            score_chunks(loaded, pq.read_table(chunks / part.name).to_pylist(), _BATCH_TOKENS)
            watch.look()
    return watch
