"""The log, speed and use of the devices, the progress line, and the selection's running means."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_builder import make_job
from told_clock import Clock

import fusionx.train.loop.progress_line
import fusionx.train.loop.throughput
from fusionx.contract.errors import DataError
from fusionx.train.config import TrainJob
from fusionx.train.loop.metrics_log import LogMark, MetricsLog, scalars
from fusionx.train.loop.progress_line import ProgressLine
from fusionx.train.loop.selection_log import SelectionLog
from fusionx.train.loop.throughput import TIMED_FIELDS, Throughput, flops_per_token, peak_flops

STEP = {"loss": 2.5, "lm": 2.0, "weight": {"target": 0.25, "prose": 0.75}, "gate_entropy": 0.5, "grad_norm": 1.0}


def job_of(folder: Path, **run: Any) -> TrainJob:
    return make_job(folder, "tokens", {"prose": "p"}, folder, run=run)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        log.write("step", 1, **STEP)
        kept = log.mark()
        log.write("step", 2, loss=1.0)
    with MetricsLog(tmp_path, job, kept, 1) as log:
        log.write("step", 2, loss=1.5)
    assert lines(tmp_path) == [{"event": "step", "step": 1, **STEP}, {"event": "step", "step": 2, "loss": 1.5}]
    with pytest.raises(DataError, match="does not begin with what the checkpoint says") as caught:
        MetricsLog(tmp_path, job, kept._replace(bytes=10_000), 9)
    assert caught.value.details["file"].endswith("log.jsonl")
    with MetricsLog(tmp_path, job, LogMark(), 0):
        pass
    assert lines(tmp_path) == []


def test_only_one_process_writes(tmp_path: Path) -> None:
    with MetricsLog(
        tmp_path / "out", job_of(tmp_path, tensorboard=True, wandb="p"), LogMark(), 0, is_main=False
    ) as log:
        log.write("step", 1, loss=1.0)
        assert log.mark() == LogMark()
    assert not (tmp_path / "out").exists()


def test_names_on_a_dashboard() -> None:
    assert scalars({"event": "step", "step": 3, **STEP, "mfu": None}) == {
        "loss/total": 2.5,
        "loss/lm": 2.0,
        "selection/weight/target": 0.25,
        "selection/weight/prose": 0.75,
        "selection/gate_entropy": 0.5,
        "train/grad_norm": 1.0,
    }
    validation = {"event": "validation", "step": 3, "bits_per_byte": 1.5, "domains": {"code": {"perplexity": 9}}}
    assert scalars(validation) == {"validation/bits_per_byte": 1.5, "validation/domains/code/perplexity": 9}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (fusionx.train.loop.throughput, fusionx.train.loop.progress_line):
        monkeypatch.setattr(module, "time", made)
    return made


def test_speed_leaves_pauses_out(clock: Clock) -> None:
    speed = Throughput(6e6, torch.device("cpu"))
    for _ in range(2):
        with speed.waiting():
            clock.now += 0.5
        clock.now += 1.5
        speed.add(1000)
    with speed.paused():
        clock.now += 60
    found = speed.since_last()
    assert tuple(found) == TIMED_FIELDS
    assert (found["tokens_per_s"], found["waiting_for_data"], found["mfu"]) == (500.0, 0.25, None)
    assert 0.01 < (found["peak_memory_gb"] or 0) < 100
    clock.now += 1
    assert speed.since_last()["tokens_per_s"] == 0


def test_use_of_gpus(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5 * 10**9)
    speed = Throughput(6e9, torch.device("cuda", 0), devices=2)
    clock.now += 2
    speed.add(200_000)
    found = speed.since_last()
    assert found["mfu"] == pytest.approx(6e9 * 1e5 / (2 * 989e12), abs=1e-4)
    assert found["peak_memory_gb"] == 5


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Some Other GPU", None),
    ],
)
def test_peaks(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_llama(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from fusionx.train.config import LoraConfig
    from fusionx.train.model.lora import add_adapters

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes, num_key_value_heads=2, tie_word_embeddings=tied))
    layer = 16 * (16 + 2 * 8 + 16) + 3 * 16 * 24 + 2 * 16
    multiplied = 3 * layer + 16 + 50 * 16
    attention = 12 * 3 * 16 * 100
    assert flops_per_token(model, 100) == 6 * multiplied + attention
    add_adapters(model, LoraConfig(r=2, modules=["q_proj"]))
    assert flops_per_token(model, 100) == 4 * multiplied + 6 * 3 * 2 * 2 * 16 + attention


class Terminal(io.StringIO):
    def __init__(self, is_one: bool) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one


@contextmanager
def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> Iterator[Terminal]:
    made = Terminal(terminal)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", made)
        yield made


def go(progress: ProgressLine, clock: Clock, steps: int) -> None:
    for step in range(1, steps + 1):
        clock.now += 10 if step == 1 else 1
        progress.show(step)


def test_progress_in_a_log(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr(monkeypatch, terminal=False) as out:
        progress = ProgressLine("train/ct/seed-0", 100)
        progress.loss, progress.tokens_per_s = 2.34567, 12345.6
        progress.say("resumed at step 0")
        go(progress, clock, 100)
    printed = out.getvalue().splitlines()
    assert printed[0] == "[train/ct/seed-0] resumed at step 0"
    assert printed[1] == "[train/ct/seed-0] 21 of 100 steps, loss 2.3457, 12,346 tokens/s, 1:19 left"
    assert [line.split()[1] for line in printed[1:]] == ["21", "51", "81", "100"]
    assert printed[-1].endswith("12,346 tokens/s")


def test_progress_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr(monkeypatch, terminal=True) as out:
        progress = ProgressLine("train/ct/seed-0", 4)
        go(progress, clock, 2)
        progress.say("validation")
        clock.now += 3700
        progress.show(3)
        progress.show(4)
    written = out.getvalue()
    assert "\r[train/ct/seed-0] #####............... 1 of 4 steps\x1b[K" in written
    assert "\r\x1b[K[train/ct/seed-0] validation\n" in written
    assert "3 of 4 steps, 30:50 left" in written
    assert written.endswith("#################### 4 of 4 steps\x1b[K\n")


def test_progress_of_the_other_processes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr(monkeypatch, terminal=False) as out:
        progress = ProgressLine("train", 3, is_main=False)
        progress.say("hello")
        go(progress, clock, 3)
    assert out.getvalue() == ""


CANDIDATES, DOMAINS = ["target", "prose", "code"], ["web", "code", "unseen"]


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """weights, entropy, anywhere, chunk_of, domains (by number) of 30 kepts in 4 chunks."""
    torch.manual_seed(seed)
    anywhere = torch.rand(30) > 0.2
    weights = torch.softmax(3 * torch.randn(30, 3), -1)
    weights = torch.where(weights > 0.15, weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True) * anywhere[:, None]
    return weights, torch.rand(30), anywhere, torch.arange(30) // 8, torch.tensor([0, 1, 0, 1])


def test_selection_means_are_over_aligned_kepts() -> None:
    log = SelectionLog(CANDIDATES, DOMAINS)
    batches = [random_batch(seed) for seed in range(3)]
    for batch in batches:
        log.add(*batch)
    assert log.empty
    log.take(log.sums)
    assert not log.empty
    weights, entropy = (torch.cat([batch[i][batch[2]] for batch in batches]).double() for i in (0, 1))
    found = log.since_last_step()
    assert list(found["weight"].values()) == pytest.approx(weights.mean(0).tolist())
    assert list(found["selected"].values()) == pytest.approx((weights > 0).double().mean(0).tolist())
    assert found["gate_entropy"] == pytest.approx(float(entropy.mean()))
    of_code = [b[0][b[2] & (b[4][b[3]] == DOMAINS.index("code"))] for b in batches]
    by_domain = log.by_domain()
    assert list(by_domain["domains"]) == list(by_domain["selected"]) == ["code", "web"]  # the third has no kept
    for said, values in (("domains", torch.cat(of_code)), ("selected", (torch.cat(of_code) > 0).double())):
        assert list(by_domain[said]["code"].values()) == pytest.approx(values.mean(0).tolist())
    assert log.empty
    assert log.since_last_step()["gate_entropy"] == 0


def test_selection_sums_of_several_processes_and_across_a_resume() -> None:
    whole, shares = SelectionLog(CANDIDATES, DOMAINS), [SelectionLog(CANDIDATES, DOMAINS) for _ in range(2)]
    for seed in range(4):
        whole.add(*random_batch(seed))
        shares[seed % 2].add(*random_batch(seed))
        if seed == 1:
            whole.take(whole.sums)
            summed = shares[0].sums + shares[1].sums
            for share in shares:
                share.take(summed)
            resumed = SelectionLog(CANDIDATES, DOMAINS)
            resumed.load(json.loads(json.dumps(shares[0].save())))
            shares[0] = resumed
    whole.take(whole.sums)
    resumed.take(shares[0].sums + shares[1].sums)
    one, other = (json.loads(json.dumps(log.save())) for log in (whole, resumed))
    for window in ("step", "validation"):
        assert torch.allclose(torch.tensor(one[window]), torch.tensor(other[window]), rtol=1e-12)
    for log in (whole, resumed):
        assert sum(log.since_last_step()["weight"].values()) == pytest.approx(1)
    SelectionLog(CANDIDATES, DOMAINS).load({})
    assert math.isfinite(sum(whole.by_domain()["domains"]["web"].values()))
