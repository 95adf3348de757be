"""Every kind of file that the program reads back, written and read by the program's own functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.benchmarks.measuring.random_shards import Shape, random_shards
from fusionx.contract.files import done_marks
from fusionx.contract.files.sealed import FOLDER_SEAL, seal_folder, write_sealed
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.weights import check_model_files
from fusionx.eval.results.benchmark_scores import BenchmarkScores, ModelIdentity, TaskScore
from fusionx.eval.results.evaluation import Evaluation
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.timings import read_timings, timed
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, SelectionConfig, TrainJob
from fusionx.train.loop.optimization import trained
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.checkpoint import Checkpointer, TrainState
from fusionx.train.state.result import LOG, RESULT, finished_result, read_log, write_result


@dataclass(frozen=True)
class Kind:
    """Files that are read together.

    read: what the program makes of them, as something that can be compared; raises a `FusionXError` where it refuses
    them, and returns None where it would make them anew.
    """

    name: str
    files: list[Path]
    read: Callable[[], Any]


def kinds(folder: Path) -> Iterator[Kind]:
    """One of each, in folders of their own."""
    yield from _shards(folder / "shards")
    yield _vocab_map(folder / "vocab_map.parquet")
    yield _checkpoint(folder / "checkpoints")
    yield _training(folder / "training")
    yield _export(folder / "best")
    yield _evaluation(folder / "evaluation.json")
    yield _benchmarks(folder / "benchmarks.json")
    yield _timings(Layout(str(folder / "run")))
    yield _marked(folder / "piece")


def _shards(folder: Path) -> Iterator[Kind]:
    tokens, aligned = random_shards(folder, Shape(64, 1, 500, 8), ["train"], rows=8)
    for kind, place in (("tokens", tokens), ("aligned", aligned["source-0"])):
        (entry,) = read_manifest(place, kind, "align").parts
        part = Path(place, entry.name)

        def read(kind: str = kind, part: Path = part, sha256: str = entry.sha256) -> Any:
            table, provenance = read_part(str(part), kind, sha256=sha256)
            return table.to_pydict(), provenance

        yield Kind(f"{kind} part", [part], read)
    yield Kind("manifest", [Path(tokens, "manifest.json")], lambda: read_manifest(tokens, "tokens", "align"))


def _vocab_map(path: Path) -> Kind:
    rng = np.random.default_rng(0)
    made = VocabMap(
        rng.integers(-1, 900, 700).astype(np.int32),
        rng.integers(0, 5, 700).astype(np.uint8),
        rng.integers(-1, 9, 700).astype(np.int32),
        "mined",
        "source",
        "target",
    )
    made.save(path)

    def read() -> Any:
        found = VocabMap.load(path)
        return [value.tolist() if isinstance(value, np.ndarray) else value for value in vars(found).values()]

    return Kind("vocabulary map", [path], read)


def _checkpoint(folder: Path) -> Kind:
    """Read by name, as `--resume` does; without a name a damaged one is passed over."""

    def checkpointer() -> tuple[torch.nn.Module, torch.optim.Optimizer, Checkpointer, BackgroundWriter]:
        torch.manual_seed(0)
        network = SelectionNetwork(3, SelectionConfig())
        optimizer = torch.optim.AdamW(trained(network), lr=1e-3)
        writer = BackgroundWriter()
        return network, optimizer, Checkpointer(folder, {"seed": 0}, {"asn": (network, optimizer)}, 2, writer), writer

    network, optimizer, checkpoints, writer = checkpointer()
    sum(parameter.square().sum() for parameter in trained(network)).backward()  # type: ignore[union-attr]
    optimizer.step()
    with writer:
        checkpoints.save(TrainState(step=3, tokens=500, window={"target": [0.5, 1.5]}))
    place = folder / "step-00000003"

    def read() -> Any:
        network, optimizer, checkpoints, _ = checkpointer()
        state = checkpoints.load(place)
        assert state is not None
        moments = optimizer.state_dict()["state"].values()
        tensors = [*network.state_dict().values(), *(moment[name] for moment in moments for name in sorted(moment))]
        return asdict(state), [tensor.tolist() for tensor in tensors], optimizer.param_groups[0]["lr"]

    return Kind("checkpoint", sorted(place.iterdir()), read)


def _training(folder: Path) -> Kind:
    job = TrainJob(
        method_name="ct",
        method=PRESETS["ct"],
        seed=0,
        optimizer=OptimizerConfig(),
        run=RunConfig(),
        target="target",
        target_path="models/target",
        target_weights="0123",
        tokens="tokens",
        aligned={},
        inputs={"tokens": "abc"},
        output=str(folder),
    )
    folder.mkdir()
    records = [{"event": "step", "step": step, "loss": 2.5 / step} for step in range(1, 40)]
    (folder / LOG).write_text("".join(json.dumps(record) + "\n" for record in records))
    write_result(folder, {"job": job.digest(), "config": job.content(), "steps": 39, "best_bits_per_byte": 1.25})
    return Kind("result and log", [folder / RESULT, folder / LOG], lambda: (finished_result(job), read_log(folder)))


def _export(folder: Path) -> Kind:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    seal_folder(folder)
    files = sorted(folder.iterdir())

    def read() -> Any:
        check_model_files(folder)
        return [file.read_bytes() for file in files if file.name != FOLDER_SEAL]

    return Kind("exported model", files, read)


def _evaluation(path: Path) -> Kind:
    domains = {name: {"nll": 12.5, "tokens": 9, "bytes": 40, "bits_per_byte": 0.45} for name in ("code", "prose")}
    content = {"model": "best", "weights_digest": "0a", "config_digest": "1b", "data_digest": "2c", "domains": domains}
    write_sealed(path, {**content, "overall": {"bits_per_byte": 0.45}, "documents": {"code": [[12.5, 40]]}})
    return Kind("evaluation", [path], lambda: Evaluation.load(path))


def _benchmarks(path: Path) -> Kind:
    scores = BenchmarkScores()
    scores.begin("best", ModelIdentity("0a", "1b", "float32"))
    scores.tasks["best"]["boolq"] = TaskScore("cs", "acc", 3, 2 / 3, 0.3, 0, {"acc": 2 / 3}, "1.0", "3d", [1, 0, 1])
    scores.save(path)
    return Kind("benchmark scores", [path], lambda: BenchmarkScores.load(path))


def _timings(layout: Layout) -> Kind:
    for stage in ("chunk", "align"):
        with timed(layout, stage, stage) as numbers:
            numbers |= {"seconds": 12.5, "parts": 3}
    return Kind("timings", [Path(layout.timings)], lambda: read_timings(layout) or None)


def _marked(piece: Path) -> Kind:
    """As the demos' inputs and fetched models are."""
    piece.mkdir()
    files = [piece / "train.parquet", piece / "model.safetensors"]
    for file in files:
        file.write_bytes(np.random.default_rng(0).bytes(500))
    done_marks.write_mark(piece, "digest", files, {"by": "make"})
    mark = done_marks.mark_path(piece)

    def read() -> Any:
        if not done_marks.is_done(piece, "digest"):
            return None
        return done_marks.read_mark(piece), [file.read_bytes() for file in files]

    return Kind("marked piece", [*files, mark], read)
