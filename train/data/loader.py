"""The batches of every step, made ahead of the trainer by worker processes.

What a step's batches are follows from its number alone: resuming needs nothing else, and on another number of devices
the same steps take the same chunks.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from fusionx.contract.errors import ConfigError, FusionXError, IncompleteError
from fusionx.contract.shapes import EXACT, Shapes
from fusionx.train.data.block_order import BlockOrder
from fusionx.train.data.collate import Batch, collate_blocks
from fusionx.train.data.shard_stream import Sample, ShardSet
from fusionx.train.distributed.stop_signals import STOP_SIGNALS, held_back

_STEPS_AHEAD = 4
"""Per worker; it bounds what waits in memory."""


_TOKENS_AT_ONCE = 2**14
"""Enough to fill a card with a small model; a large one has to say less, or recompute its activations."""


def blocks_at_once(share: int, block_tokens: int, device_type: str) -> int:
    """Blocks per forward pass where nobody says how many, a divisor of `share`, so that all passes have one shape."""
    if device_type == "cpu":
        return share
    even = (blocks for blocks in range(share, 0, -1) if share % blocks == 0)
    return next(blocks for blocks in even if blocks == 1 or blocks * block_tokens <= _TOKENS_AT_ONCE)


def workers_for(device_type: str) -> int:
    """Processes that make batches where nobody says how many.

    To read, decode and collate 16,384 tokens with five candidates at k = 32 takes a core some 0.17 s, which is several
    times what a card needs to train a small model on them. Each holds its parts in memory.
    """
    if device_type == "cpu":
        return 0
    return max(2, min(6, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count()) - 1))


class StepBatches(Dataset[list[Batch]]):
    """The micro-batches of one device at every step: `batches[step]`.

    A step takes the next `batch_size` blocks of the order; device `rank` of `world` has the rank-th equal share of
    them, in micro-batches of `micro_batch` blocks (None: all at once). Rows are padded as `shapes` says, to `longest`
    tokens at most.

    Raises:
        ConfigError: the batch does not divide evenly among the devices.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: BlockOrder,
        batch_size: int,
        pad_id: int,
        *,
        document_mask: bool = False,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
        shapes: Shapes = EXACT,
        longest: int | None = None,
    ) -> None:
        if batch_size % world:
            raise ConfigError(
                "A batch cannot be shared out evenly among the devices.",
                field="optimizer.batch_size",
                found=f"{batch_size} blocks for {world} devices",
                expected=f"a multiple of {world}",
                remedy="change optimizer.batch_size, or the number of devices",
            )
        self._shards, self._order = shards, order
        self._batch_size, self._share = batch_size, batch_size // world
        self._first = rank * self._share
        self._micro_batch = micro_batch or self._share
        self._collated = partial(
            collate_blocks,
            pad_id=pad_id,
            document_mask=document_mask,
            domains=sorted(shards.domains),
            shapes=shapes,
            longest=longest,
        )

    def __getitem__(self, step: int) -> list[Batch]:
        """
        Raises:
            DataError: a part is missing, damaged, or of another text.
        """
        first = step * self._batch_size + self._first
        blocks = range(first, first + self._share)
        parts = [blocks[start : start + self._micro_batch] for start in range(0, self._share, self._micro_batch)]
        batches = [self._collated(list(map(self._block, part))) for part in parts]
        self._shards.prefetch(self._order.parts_ahead(blocks[-1]))
        return batches

    def _block(self, index: int) -> list[Sample]:
        return [self._shards.sample(*place) for place in self._order.block(index)]


def loader(
    batches: StepBatches, start: int, stop: int, workers: int, pin_memory: bool = False
) -> Iterator[list[Batch]]:
    """`batches[step]` of the steps from `start` to before `stop`, made ahead by `workers` processes; 0: in this one.

    Each worker makes every workers-th step and keeps the parts it needs for itself, so memory grows with their number.

    Raises:
        DataError: as `batches` raises it, wherever that happened.
        IncompleteError: a worker was killed.
    """
    made = DataLoader(
        _Outcomes(batches),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        # A forked worker would inherit locks of threads that it lacks: pyarrow's, the store's client's, CUDA's.
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=_STEPS_AHEAD if workers else None,
        worker_init_fn=_settle,
        generator=torch.Generator(),  # the global one is the trainer's: a resumed run must find it as it was
        pin_memory=pin_memory,
    )
    if workers:
        atexit.register(_kill_workers)  # after multiprocessing's own, so it runs before
        with held_back():  # they come to whole groups, and the server has no handlers for them
            forkserver.ensure_running()
    outcomes = iter(made)
    while True:
        try:
            outcome = next(outcomes)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):  # an error in a worker names it further on
                raise
            raise IncompleteError(
                "A process that makes batches died.",
                field="run.loader_workers",
                found=str(error).splitlines()[0],
                remedy="if memory ran out, lower run.loader_workers; the same command goes on from the last checkpoint",
            ) from None
        if outcome.error is not None:
            raise outcome.error
        yield outcome.batches


@dataclass
class _Outcome:
    """A step's batches, or the error: DataLoader would turn one of ours into text, without its details.

    It crosses to another process as arrays in a pipe. Torch's own way, shared memory, takes a file descriptor per
    tensor and more room than containers give.
    """

    batches: list[Batch]
    error: FusionXError | None = None

    def pin_memory(self) -> _Outcome:
        """As the DataLoader's own thread asks for it."""
        return _Outcome([batch.in_one_piece() for batch in self.batches], self.error)

    def __getstate__(self) -> tuple[list[Batch], FusionXError | None]:
        return [batch.map(lambda tensor: tensor.numpy()) for batch in self.batches], self.error

    def __setstate__(self, state: tuple[list[Batch], FusionXError | None]) -> None:
        arrays, self.error = state
        self.batches = [batch.map(torch.from_numpy) for batch in arrays]


@dataclass
class _Outcomes(Dataset[_Outcome]):
    batches: StepBatches

    def __getitem__(self, step: int) -> _Outcome:
        try:
            return _Outcome(self.batches[step])
        except FusionXError as error:
            return _Outcome([], error)


def _settle(worker: int) -> None:
    """A worker's first act. The processes are the parallelism: one thread each; torch sees to its own."""
    # They come to whole groups, and the trainer needs its workers for the step after which it saves.
    for number in STOP_SIGNALS:  # DataLoader has given SIGTERM a handler that ends the worker
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    pa.set_cpu_count(1)


def _end_with_trainer() -> None:
    """torch watches for another parent, which a worker of the fork server never gets: the two keep each other alive."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _kill_workers() -> None:
    """At exit. multiprocessing would send SIGTERM to workers still there (after an error), and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
