"""What keeps a GPU busy, counted on the CPU: a step waits for nothing, and does little beside a bare loop's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import ALONE, Make

import fusionx.train.loop.trainer
from fusionx.contract.shapes import EXACT, FEW
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.trainer import Trainer
from fusionx.train.loop.validation import Validation

# What waits for the device, or copies from the host as `torch.tensor` does. Indexing by a mask counts its places first.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "bincount", "unique_dim", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Operations(TorchDispatchMode):
    """Counts what is launched; raises on what waits, where that is asked for."""

    def __init__(self, may_wait: bool = False) -> None:
        super().__init__()
        self.may_wait = may_wait
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
        counts = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if not self.may_wait and (name in WAITING or masks or counts):
            raise AssertionError(f"{func} waits for the device")
        if not func.is_view:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as a GPU gets them."""
    monkeypatch.setattr(fusionx.train.loop.trainer, "shapes_of", lambda device_type: FEW)


def two_steps(trainer: Trainer, counting: Operations) -> Operations:
    """The second has the optimizer's moments; it is the one that is counted."""
    trainer.model.train()
    batches = trainer.batches_from(0)
    trainer.step(next(batches))
    second = next(batches)
    with counting:
        trainer.step(second)
    return counting


@pytest.mark.parametrize("pack", [None, 128])
@pytest.mark.parametrize("method", ["ct", "fusionx-network", "sequence", "fusellm", "fusellm-avgce", "fusionx"])
def test_a_step_waits_for_nothing(method: str, pack: int | None, make: Make, tmp_path: Path, accelerator: None) -> None:
    job = make(tmp_path / "out", method, optimizer={"pack": pack}, run={"log_every": 1000})
    counted = two_steps(Trainer(job, ALONE), Operations())
    assert sum(counted.seen.values()) > 100
    with pytest.raises(AssertionError, match="waits"), Operations():
        torch.ones(3)[torch.ones(3) > 0].sum().item()


def test_a_step_does_little_beside_a_bare_one(make: Make, tmp_path: Path, accelerator: None) -> None:
    """Operations beyond those of a loop with torch's cross-entropy: fixed numbers, whatever the model's depth."""
    bare = bare_step(Trainer(make(tmp_path / "bare", "ct", run={"log_every": 1000}), ALONE))
    beyond = {}
    for method in ("ct", "fusionx-network"):
        job = make(tmp_path / method, method, run={"log_every": 1000, "head_block": 4096})
        beyond[method] = sum((two_steps(Trainer(job, ALONE), Operations()).seen - bare.seen).values())
    assert beyond["ct"] <= 130, beyond
    assert beyond["fusionx-network"] <= 360, beyond


def bare_step(trainer: Trainer) -> Operations:
    """Forward, torch's cross-entropy over whole logits, backward, clipping, AdamW."""
    model: Any = trainer.target.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = trainer.batches[0][0]
    targets = torch.full((batch.input_ids.numel(),), -100)
    targets[batch.positions[batch.labels >= 0]] = batch.labels[batch.labels >= 0]
    counted = Operations(may_wait=True)
    for mode in (Operations(may_wait=True), counted):
        with mode:
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return counted


def gradients(trainer: Trainer) -> Iterator[Tensor]:
    """Of every step's batches of an epoch at the weights as they are, in float64."""
    modules = [trainer.target.model.double().eval(), *([trainer.asn.double()] if trainer.asn is not None else [])]
    for step in range(3):
        batches = [
            batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
            for batch in trainer.batches[step]
        ]
        selections = [trainer._select(batch) for batch in batches]
        totals = trainer._agree(batches, selections)
        scales = fusionx.train.loop.trainer.head_scales(trainer.job.method, totals)
        for pair in zip(batches, selections, strict=True):
            yield trainer._backward(*pair, totals, scales)
        for module in modules:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad
                    parameter.grad = None


@pytest.mark.parametrize("pack", [None, 128])
@pytest.mark.parametrize("method", ["ct", "fusionx-network", "sequence", "fusellm", "paper", "fusionx"])
def test_padding_changes_no_loss_and_no_gradient(
    method: str, pack: int | None, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for shapes in (EXACT, FEW):
        monkeypatch.setattr(fusionx.train.loop.trainer, "shapes_of", lambda device_type, shapes=shapes: shapes)
        job = make(tmp_path / "out", method, optimizer={"pack": pack})
        found.append(list(gradients(Trainer(job, ALONE))))
    assert len(found[0]) > 30
    for exact, few in zip(*found, strict=True):
        torch.testing.assert_close(few, exact, rtol=1e-9, atol=1e-12)


def test_validation_waits_for_nothing_between_its_batches(make: Make, tmp_path: Path, accelerator: None) -> None:
    trainer = Trainer(make(tmp_path / "few", "ct"), ALONE)
    with Operations() as counted:
        few = trainer.validation(trainer.model, ALONE, None, 32)
    assert counted.seen["embedding"] == len(trainer.validation._batches) > 1
    shards = (trainer.job.tokens, 10_000, 0, {"domain-0"})
    exact = Validation(*shards)(trainer.model, ALONE, None, 32)
    assert few["perplexity"] == pytest.approx(exact["perplexity"], rel=1e-6)
    assert few["domains"].keys() == exact["domains"].keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["ct", "fusionx-network"])
def test_a_step_on_a_gpu_never_synchronises(method: str, make: Make, tmp_path: Path) -> None:
    job = make(tmp_path / "out", method, run={"log_every": 1000, "device": "cuda"})
    trainer = Trainer(job, World(0, 1, torch.device("cuda")))
    trainer.model.train()
    batches = trainer.batches_from(0)
    trainer.step(next(batches))
    second = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
