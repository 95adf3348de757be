"""Several devices: joining the others, dividing the target over them, and every collective of the trainer.

The target is wrapped (DDP or FSDP2) and reduces its own gradients in backward. The selection network is small and never
wrapped: every device holds it, and its gradients are averaged here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fusionx.contract.errors import ConfigError, FusionXError, StoppedError
from fusionx.contract.files.lock import SAVING_SECONDS, folder_lock
from fusionx.train.distributed.ranks import MEETING, launched_ranks
from fusionx.train.model.target import Target, decoder_blocks

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, when they meet and in every collective."""


@dataclass(frozen=True)
class World:
    """This process among the `size` that train together, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is to write."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes; the same everywhere."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is set on one of the processes. They ask each other on their hosts, and wait for no device."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag))
        dist.all_reduce(told)
        return bool(told > 0)

    def gather(self, values: list[T]) -> list[T]:
        """All processes' values, in the order of their ranks; the same everywhere."""
        if self.size == 1:
            return values
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, values)
        return [value for part in gathered for value in part]

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Keeps other trainings out of `folder` while the context lasts; one whose command was killed is waited for.

        Raises:
            DataError: another one goes on writing there; on every process, though only the leading one looks.
        """
        with ExitStack() as held:
            by_first_rank(lambda: held.enter_context(folder_lock(folder, wait=SAVING_SECONDS)))
            yield

    def average_gradients(self, module: nn.Module) -> None:
        """For a module that every process holds whole and unwrapped."""
        if self.size == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is None:  # the others may have one
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.size


def by_first_rank(decide: Callable[[], T]) -> T:
    """What `decide` gives or raises on the first rank, on every rank: all of them go the same way.

    Whatever only the first rank does has to go through here; if it failed there alone, the others would wait for it in
    their next collective.
    """
    if not dist.is_initialized():
        return decide()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except Exception as error:
            failure = error
            outcome[1] = error if isinstance(error, FusionXError) else RuntimeError(f"the first process: {error!r}")
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def process_group(wanted: Literal["auto", "cpu", "cuda"]) -> Iterator[World]:
    """This process's world, for as long as the context lasts.

    Raises:
        ConfigError: the launcher did not say where the processes meet, or this machine has fewer GPUs than processes.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    ranks = launched_ranks()
    if ranks is None:
        yield World(0, 1, torch.device(kind))
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            "The processes of this training cannot meet.",
            field=", ".join(missing),
            expected="an environment variable: the first machine's address, a free port",
            remedy="start with torchrun, or as pipelines/cluster/train.sbatch does",
        )
    device = torch.device(kind)
    if kind == "cuda":
        if ranks.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                "This machine has fewer GPUs than processes.",
                field="train.run.devices",
                found=f"process {ranks.local_rank}, {torch.cuda.device_count()} GPUs",
            )
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=_launchers_store(),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=_PATIENCE,
    )
    # After an error the others may be in a collective, and leaving the group could wait for them; the process ends.
    try:
        yield World(ranks.rank, ranks.size, device)
    except StoppedError:  # raised by all
        leave()
        raise
    leave()


def _launchers_store() -> Store | None:
    """This training's part of the store that its launcher serves; None: the first process is to serve one."""
    meeting = os.environ.get(MEETING)
    if meeting is None:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore(meeting, TCPStore(address, port, is_master=False, timeout=_PATIENCE))


_left: list[Any] = []


def leave() -> None:
    """Leaves the group, and keeps it from being freed.

    DistributedDataParallel is freed later, with the frames of the training. If it held the last reference, it would
    wait, and not let go of Python's lock, until gloo's thread ends, which may be waiting for that lock.
    """
    _left.append(dist.group.WORLD)
    dist.destroy_process_group()


def parallelize(target: Target, shards: Literal["none", "fsdp"], dtype: torch.dtype | None, world: World) -> nn.Module:
    """The target as the training step calls it: itself, or wrapped so that its gradients are averaged.

    Args:
        dtype: in which FSDP gathers the weights (bf16 under autocast); None: as they are.
    """
    if shards == "fsdp":
        return _fully_shard(target, dtype, world)
    if world.size == 1:
        return target
    return DistributedDataParallel(target, gradient_as_bucket_view=True)


def _fully_shard(target: Target, dtype: torch.dtype | None, world: World) -> nn.Module:
    if world.size == 1 and not dist.is_initialized():
        return target
    options: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,))}
    if dtype is not None:
        # The inputs are not cast: the teacher's probabilities and the losses' scales are among them.
        options["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in decoder_blocks(target.model):
        fully_shard(block, **options)
    fully_shard(target, **options)  # in place
    return target


@contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Backward passes inside reduce their gradients over the devices only if `wanted`: the last of a step's."""
    if isinstance(model, DistributedDataParallel):
        with nullcontext() if wanted else model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    yield


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clips the gradients in place; returns their norm over all devices before that."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
