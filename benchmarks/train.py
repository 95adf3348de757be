"""A whole training step beside that of plain continued training: data, forward, losses, backward, update.

The same target on the same random shards; the trainings' steps alternate. Without a GPU one core computes and its own
seconds are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.memory import peak_of_a_process, resident
from fusionx.benchmarks.measuring.random_shards import Shape, random_shards
from fusionx.benchmarks.precompute import random_llama, source_texts, train_tokenizer
from fusionx.contract.errors import DataError
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.throughput import flops_per_token, peak_flops
from fusionx.train.loop.trainer import Trainer

METHODS = ("ct", "fusionx", "fusellm", "paper")
DEMO_TARGET = "data/demo/models/target"


@dataclass(frozen=True)
class Case:
    """A target (a folder, or the sizes of a random Llama), the shards' shape, and blocks per step."""

    name: str
    target: str | tuple[int, int, int, int]
    shape: Shape
    batch_size: int


def default_cases() -> list[Case]:
    """The demo's target; a small Llama with a full vocabulary; on a GPU, of the paper's smallest size."""
    if torch.cuda.is_available():
        sizes, name, batch_size = (768, 12, 12, 3072), "160M", 16
    else:
        sizes, name, batch_size = (256, 4, 4, 1024), "20M", 1
    demo = Case("demo", DEMO_TARGET, Shape(256, 4, 1000, 32), 4)
    return [demo, *(Case(f"{name}, k={k}", sizes, Shape(2048, 5, 32000, k), batch_size) for k in (10, 32))]


def figures(cases: Sequence[Case] | None = None, n: int = 5) -> Iterator[Figure]:
    for case in default_cases() if cases is None else cases:
        with TemporaryDirectory() as folder:
            yield from _figures_of(case, Path(folder), n)


def _figures_of(case: Case, folder: Path, n: int) -> Iterator[Figure]:
    target = _write_inputs(case, folder)
    device = _device()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    threads = torch.get_num_threads()
    trainers = {name: _trainer(case, folder, target, name) for name in METHODS}
    streams = {name: trainer.batches_from(0) for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    waited: list[float] = []
    for _ in range(n + 1):
        for name, trainer in trainers.items():
            started = clock()
            batches = next(streams[name])
            there = clock()
            trainer.step(batches)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
            waited += [(there - started) / seconds[name][-1]] if name == "fusionx" else []
    torch.set_num_threads(threads)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    tokens = case.batch_size * case.shape.length
    for name in METHODS:
        yield Figure("train", case.name, f"{name}_tokens_per_s", tokens / median[name], "tokens/s", n=n)
    for name in METHODS[1:]:
        metric = "ratio_to_ct" if name == "fusionx" else f"{name}_ratio_to_ct"
        ratio = median[name] / median["ct"]
        yield Figure("train", case.name, metric, ratio, "x", "a ct step", ratio, n)
    sizes = (str(folder), target, case.batch_size, astuple(case.shape))
    peaks = {name: peak_of_a_process(__name__, "peak_megabytes", *sizes, name) for name in METHODS[:2]}
    ratio = peaks["fusionx"] / peaks["ct"]
    yield Figure("train", case.name, "peak_memory", peaks["fusionx"], "MB", "a ct step", ratio)
    trainer = trainers["fusionx"]
    yield Figure("train", case.name, "waiting_for_data", statistics.median(waited[1:]), "of the step", n=n)
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    if peak is not None:
        mfu = tokens / median["fusionx"] * flops_per_token(trainer.target.model, case.shape.length) / peak
        yield Figure("train", case.name, "mfu", mfu, "of peak", n=n)


def peak_megabytes(folder: str, target: str, batch_size: int, shape: tuple[int, int, int, int], method: str) -> float:
    """Of two steps (the second has the optimizer's moments), over what the loaded target takes."""
    case = Case("memory", target, Shape(*shape), batch_size)
    trainer = _trainer(case, Path(folder), target, method)
    on_gpu = trainer.world.device.type == "cuda"
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else resident("VmRSS")
    batches = trainer.batches_from(0)
    for _ in range(2):
        trainer.step(next(batches))
    return (torch.cuda.max_memory_allocated() / 1e6 if on_gpu else resident("VmHWM")) - before


def _trainer(case: Case, folder: Path, target: str, method: str) -> Trainer:
    """As `fusionx train` makes it; it logs nothing, since no step is a multiple of `log_every` or the last."""
    preset = PRESETS[method]
    sources = {f"source-{number}": f"{folder}/source-{number}" for number in range(case.shape.sources)}
    job = TrainJob(
        method_name=method,
        method=preset,
        seed=0,
        optimizer=OptimizerConfig(batch_size=case.batch_size, epochs=1000),
        run=RunConfig(threads=1, log_every=10**9),
        target="target",
        target_path=target,
        target_weights="",
        tokens=f"{folder}/tokens",
        aligned={} if preset.teacher == "none" else sources,
        inputs={},
        output=f"{folder}/out",
    )
    trainer = Trainer(job, World(0, 1, _device()))
    trainer.model.train()
    return trainer


def _write_inputs(case: Case, folder: Path) -> str:
    """The shards and, unless it is there, the target; returns the target's folder."""
    random_shards(folder, case.shape, ["train", "validation"], rows=max(8, 2 * case.batch_size))
    if isinstance(case.target, str):
        if not Path(case.target).is_dir():
            raise DataError("The demo's target is missing.", file=case.target, remedy="run `make demo-inputs`")
        return case.target
    from transformers import AutoModelForCausalLM

    target = train_tokenizer(folder / "target", 500, source_texts(4))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(random_llama(*case.target, case.shape.vocab)).save_pretrained(target)
    return str(target)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
