"""A whole training step beside that of a bare loop and of plain continued training.

The bare loop is forward, torch's cross-entropy over whole logits, backward, clipping and AdamW, on the batches that the
trainings get, made before. The same target on the same random shards; the steps alternate. Without a GPU one core
computes and its own seconds are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.memory import peak_of_a_process, resident
from fusionx.benchmarks.measuring.random_shards import Shape, random_shards
from fusionx.benchmarks.precompute import random_llama, source_texts, train_tokenizer
from fusionx.contract.errors import DataError
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob
from fusionx.train.data.collate import Batch
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.throughput import flops_per_token, peak_flops
from fusionx.train.loop.trainer import Trainer
from fusionx.train.model.target import load_target
from fusionx.train.objective.fused_head import IGNORED

METHODS = ("ct", "fusionx-network", "fusellm", "paper")
DEMO_TARGET = "data/demo/models/target"


@dataclass(frozen=True)
class Case:
    """A target (a folder, or the sizes of a random Llama), the shards' shape, and blocks per step."""

    name: str
    target: str | tuple[int, int, int, int]
    shape: Shape
    batch_size: int
    pack: int | None = None


def default_cases() -> list[Case]:
    """The demo's target and a small Llama with a full vocabulary; on a GPU, Llamas on texts whose lengths vary."""
    if torch.cuda.is_available():
        return [
            Case("135M, packed", (576, 30, 9, 1536), Shape(1024, 5, 49152, 32, shortest=64), 16, 1024),
            Case("135M, one chunk a row", (576, 30, 9, 1536), Shape(1024, 5, 49152, 32, shortest=64), 16),
            Case("1B, packed", (2048, 16, 32, 8192), Shape(2048, 5, 128256, 32, shortest=64), 8, 2048),
        ]
    demo = Case("demo", DEMO_TARGET, Shape(256, 4, 1000, 32), 4)
    sizes = (256, 4, 4, 1024)
    return [demo, *(Case(f"20M, k={k}", sizes, Shape(2048, 5, 32000, k), 1) for k in (10, 32))]


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
    bare = BareLoop(trainers["ct"], target)
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", *METHODS)}
    waited: list[float] = []
    tokens = 0
    for step in range(n + 1):
        made = bare.inputs(trainers["ct"].batches[step])
        started = clock()
        bare.step(made)
        _finish(device)
        seconds["bare"].append(clock() - started)
        tokens += sum(batch.tokens for batch in trainers["ct"].batches[step])
        for name, trainer in trainers.items():
            started = clock()
            batches = next(streams[name])
            there = clock()
            trainer.step(batches)
            _finish(device)
            seconds[name].append(clock() - started)
            waited += [(there - started) / seconds[name][-1]] if name == "fusionx-network" else []
    torch.set_num_threads(threads)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    tokens //= n + 1
    for name in ("bare", *METHODS):
        yield Figure("train", case.name, f"{name}_tokens_per_s", tokens / median[name], "tokens/s", n=n)
    for name in METHODS[:2]:
        speed = median["bare"] / median[name]
        yield Figure("train", case.name, f"{name}_ratio_to_bare", speed, "x", "a bare loop's tokens/s", speed, n)
    for name in METHODS[1:]:
        metric = "ratio_to_ct" if name == "fusionx-network" else f"{name}_ratio_to_ct"
        ratio = median[name] / median["ct"]
        yield Figure("train", case.name, metric, ratio, "x", "a ct step", ratio, n)
    sizes = (str(folder), target, case.batch_size, astuple(case.shape), case.pack)
    peaks = {name: peak_of_a_process(__name__, "peak_megabytes", *sizes, name) for name in METHODS[:2]}
    ratio = peaks["fusionx-network"] / peaks["ct"]
    yield Figure("train", case.name, "peak_memory", peaks["fusionx-network"], "MB", "a ct step", ratio)
    trainer = trainers["fusionx-network"]
    yield Figure("train", case.name, "waiting_for_data", statistics.median(waited[1:]), "of the step", n=n)
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    if peak is not None:
        mfu = tokens / median["fusionx-network"] * flops_per_token(trainer.target.model, case.shape.length) / peak
        yield Figure("train", case.name, "mfu", mfu, "of peak", n=n)


def peak_megabytes(
    folder: str,
    target: str,
    batch_size: int,
    shape: tuple[int, int, int, int, int | None],
    pack: int | None,
    method: str,
) -> float:
    """Of two steps (the second has the optimizer's moments), over what the loaded target takes."""
    case = Case("memory", target, Shape(*shape), batch_size, pack)
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
        optimizer=OptimizerConfig(batch_size=case.batch_size, epochs=1000, pack=case.pack),
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
    blocks = 1 if case.pack is None else 2  # a block of varied chunks holds about two
    random_shards(folder, case.shape, ["train", "validation"], rows=max(8, 2 * blocks * case.batch_size))
    if isinstance(case.target, str):
        if not Path(case.target).is_dir():
            raise DataError("The demo's target is missing.", file=case.target, remedy="run `make demo-inputs`")
        return case.target
    from transformers import AutoModelForCausalLM

    target = train_tokenizer(folder / "target", 500, source_texts(4))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(random_llama(*case.target, case.shape.vocab)).save_pretrained(target)
    return str(target)


class BareLoop:
    """What a training would be without data, teachers, logs and checkpoints, in the same precision."""

    def __init__(self, trainer: Trainer, target: str) -> None:
        self.device, self.dtype = trainer.world.device, trainer.dtype
        self.model: Any = load_target(target, None, self.device).model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)

    def inputs(self, batches: list[Batch]) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Per micro-batch the model's arguments and int64 [B L] labels, -100 where none is, on the device."""
        made = []
        for batch in (batch.to(self.device) for batch in batches):
            arguments = {"input_ids": batch.input_ids}
            if batch.position_ids is not None:
                arguments["position_ids"] = batch.position_ids
            labels = torch.full((batch.input_ids.numel(),), IGNORED, device=self.device)
            real = batch.labels != IGNORED
            labels[batch.positions[real]] = batch.labels[real]
            made.append((arguments, labels))
        return made

    def step(self, batches: list[tuple[dict[str, Tensor], Tensor]]) -> None:
        for arguments, labels in batches:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                logits = self.model(**arguments, use_cache=False).logits.flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
