"""Checkpoints under DDP and FSDP2 with two processes hold what one process holds, and load the other way round."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from tiny_model import TinyModel
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fusionx.contract.errors import DataError
from fusionx.train.distributed.collectives import leave
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.checkpoint import Checkpointer, TrainState
from fusionx.train.state.state_dicts import full_optimizer_state, full_state_dict

STEPS = 3


class Training:
    """A target, divided as asked, and a replicated second network."""

    def __init__(self, folder: Path, shards: str, seed: int, content: dict[str, Any] | None = None) -> None:
        model = TinyModel(seed)
        self.asn: nn.Module = nn.Linear(4, 3)
        self.model: Any = model
        if shards == "fsdp":
            for layer in model.layers:
                fully_shard(layer)
            fully_shard(model)
        elif shards == "ddp":
            self.model = DistributedDataParallel(model)
        self.optimizers = [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in (self.model, self.asn)]
        parts = {"model": (self.model, self.optimizers[0]), "asn": (self.asn, self.optimizers[1])}
        self.writer = BackgroundWriter()
        self.checkpoints = Checkpointer(folder, content or {"seed": 0}, parts, 2, self.writer)
        self.state = TrainState()

    def step(self) -> None:
        """All processes see the same batch, so that gradients are those of one process up to rounding."""
        torch.manual_seed(self.state.step)
        ids = torch.randint(0, 41, (2, 6))
        (self.model(ids) + self.asn(torch.randn(5, 4)).square().mean()).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.state.step += 1

    def full(self) -> dict[str, torch.Tensor]:
        modules = zip(("model", "asn"), (self.model, self.asn), self.optimizers, strict=True)
        found: dict[str, torch.Tensor] = {}
        for part, module, optimizer in modules:
            with torch.no_grad():  # leaves FSDP2's root whole, which is no part of a checkpoint
                if part == "model":
                    module(torch.zeros(1, 2, dtype=torch.long))
                    inner = getattr(module, "module", module).embedding  # what the root holds, asked for by itself
                    found |= {f"inner.{name}": tensor for name, tensor in full_state_dict(inner).items()}
            whole = full_state_dict(module) | full_optimizer_state(module, optimizer)
            found |= {f"{part}.{name}": tensor for name, tensor in whole.items()}
        return found


def work(rank: int, processes: int, folder: str, shards: str, action: str) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": str(processes)}
        store = torch.distributed.FileStore(f"{folder}/store-{action}", processes)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    checkpoints = Path(folder) / "checkpoints"
    if action == "save":
        training = Training(checkpoints, shards, seed=0)
        for _ in range(STEPS):
            training.step()
        training.checkpoints.save(training.state)
        expected = training.full()
        training.step()
        training.writer.wait()
    else:
        training = Training(checkpoints, shards, seed=1)
        assert training.checkpoints.load() == TrainState(step=STEPS, world_size=3 - processes)
        training.state.step = STEPS
        expected = training.full()
        training.step()
        with pytest.raises(DataError, match="another training"):  # on every rank
            Training(checkpoints, shards, seed=1, content={"seed": 1}).checkpoints.load()
    after = training.full()
    if rank == 0:
        torch.save({"then": expected, "after": after}, f"{folder}/{action}.pt")
    else:
        assert not after
    if processes > 1:
        torch.distributed.barrier()  # nobody leaves while another is still asking
        leave()  # not by torch alone: a freed DistributedDataParallel could wait for ever


def start(processes: int, *arguments: Any) -> None:
    if processes == 1:
        work(0, 1, *arguments)
    else:
        torch.multiprocessing.start_processes(work, (processes, *arguments), processes, start_method="forkserver")


@pytest.mark.parametrize("shards", ["fsdp", "ddp"])
@pytest.mark.parametrize("saving", [2, 1])
def test_what_one_number_of_processes_saves_another_loads(shards: str, saving: int, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    start(saving, str(tmp_path), shards if saving > 1 else "none", "save")
    start(3 - saving, str(tmp_path), shards if saving == 1 else "none", "load")
    torch.set_num_threads(threads)
    saved, loaded = (torch.load(tmp_path / f"{action}.pt", weights_only=True) for action in ("save", "load"))
    assert saved["then"].keys() == loaded["then"].keys()
    assert "model.embedding.weight.exp_avg_sq" in saved["then"]
    for name, tensor in saved["then"].items():
        assert torch.equal(tensor, loaded["then"][name]), name
    for name, tensor in saved["after"].items():  # the next step, by another number of processes
        torch.testing.assert_close(tensor, loaded["after"][name], rtol=1e-4, atol=1e-6, msg=name)
