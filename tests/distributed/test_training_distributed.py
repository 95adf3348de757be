"""Real trainings in two processes (gloo), also under torchrun: the same as in one, whatever divides the target."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shard_builder import corpus_parts, make_job, write_set, write_tiny_model
from torch.distributed import TCPStore
from training_process import finish, said, start, write_job
from transformers import AutoConfig

from fusionx.contract.errors import EXIT_STOPPED
from fusionx.contract.files.lock import folder_lock
from fusionx.train.config import PRESETS, MethodConfig, SelectionConfig, TrainJob
from fusionx.train.state.result import read_log

CANDIDATES = ["target", "prose", "code"]
Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(output, method, **changed): a job whose model draws no random numbers, in batches of four."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(folder / "model")
    plain = AutoConfig.from_pretrained(model)
    plain.attention_dropout = 0.0
    plain.save_pretrained(model)
    parts = corpus_parts(model, CANDIDATES)
    tokens, aligned = write_set(folder / "shards", parts, CANDIDATES)

    def job(output: Path, method: str | MethodConfig = "fusionx-network", **changed: Any) -> TrainJob:
        optimizer = {"batch_size": 4, "learning_rate": 3e-3, **changed.pop("optimizer", {})}
        return make_job(model, tokens, aligned, output, method, optimizer=optimizer, **changed)

    return job


def command(job: TrainJob, processes: int) -> list[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    return [sys.executable, "-m", *launcher, "fusionx.train", str(write_job(job))]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def alone(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """alone(method, **changed): the output of one process, made once for each."""
    outputs: dict[str, Path] = {}

    def output(method: str | MethodConfig = "fusionx-network", **changed: Any) -> Path:
        job = make(tmp_path_factory.mktemp("alone") / "out", method, **changed)
        if job.digest() not in outputs:
            outputs[job.digest()] = finish(job)
        return outputs[job.digest()]

    return output


def steps(output: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(output) if line["event"] == "step"]


def assert_close(ours: Path, theirs: Path) -> None:
    """Losses, selection and weights are equal but for the order in which sums run."""
    assert len(steps(ours)) == len(steps(theirs)) > 0
    for left, right in zip(steps(ours), steps(theirs), strict=True):
        assert left["tokens"] == right["tokens"]
        for name in ("loss", "lm", "fuse", "feed", "select", "grad_norm"):
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5), (name, left["step"])
        assert left.get("weight") == pytest.approx(right.get("weight"), abs=1e-3)
    for file in ("model.safetensors", "asn.safetensors"):
        if not (theirs / "last" / file).exists():
            continue
        mine, other = load_file(ours / "last" / file), load_file(theirs / "last" / file)
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=2e-3, atol=2e-4)
    results = [json.loads((output / "result.json").read_text()) for output in (ours, theirs)]
    assert results[0]["last_bits_per_byte"] == pytest.approx(results[1]["last_bits_per_byte"], rel=1e-4)
    assert results[0]["job"] == results[1]["job"]


@pytest.mark.parametrize(
    ("method", "shards", "micro_batch"),
    [
        ("fusionx-network", "none", 1),
        ("fusionx-network", "fsdp", 1),
        ("paper", "fsdp", None),
    ],
)
def test_two_processes_are_one(
    method: str | MethodConfig,
    shards: str,
    micro_batch: int | None,
    alone: Callable[..., Path],
    make: Make,
    tmp_path: Path,
) -> None:
    together = finish(make(tmp_path / "together", method, run={"shards": shards, "micro_batch": micro_batch}), 2)
    assert_close(together, alone(method))


def test_fsdp_in_bf16(alone: Callable[..., Path], make: Make, tmp_path: Path) -> None:
    """The weights are gathered in bf16: losses of the target are near those in fp32, and the network's are the same."""
    half = finish(make(tmp_path / "half", run={"shards": "fsdp", "precision": "bf16"}), 2)
    for left, right in zip(steps(half), steps(alone()), strict=True):
        for name in ("lm", "fuse"):
            assert left[name] == pytest.approx(right[name], rel=0.02), (name, left["step"])
        # The selection network never sees the target, so bf16 must not reach its losses.
        assert left["select"] == pytest.approx(right["select"], rel=1e-3)
        assert left["feed"] == pytest.approx(right["feed"], rel=1e-2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["none", "fsdp"])
def test_every_option_in_two_processes(shards: str, alone: Callable[..., Path], make: Make, tmp_path: Path) -> None:
    method = PRESETS["fusionx-network"].model_copy(
        update={"selection": SelectionConfig(feed_over="place", choice="top_n", fusion="maximum", layers="linear1")}
    )
    options = {"pack": 160, "batch_size": 2, "lora": {"r": 4}}
    together = finish(make(tmp_path / "together", method, optimizer=options, run={"shards": shards}), 2)
    assert_close(together, alone(method, optimizer=options))


@pytest.mark.parametrize("shards", ["none", "fsdp"])
def test_stopped_in_two_processes_and_gone_on_in_one(
    shards: str, alone: Callable[..., Path], make: Make, tmp_path: Path
) -> None:
    """A signal to the launcher ends with a checkpoint, and one process takes up what two have left."""
    job = make(tmp_path / "stopped", run={"shards": shards}, optimizer={"epochs": 40})
    if shards == "none":
        launcher = subprocess.Popen(
            command(job, 2), env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_for_a_step(job, lambda: launcher.poll() is None)
        launcher.send_signal(signal.SIGTERM)
        _, printed = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
    else:  # as a launcher passes it on
        printed = stopped_after_a_step(job, 2)
    (checkpoint,) = list((tmp_path / "stopped" / "checkpoints").glob("step-*"))[-1:]
    assert "its checkpoint is written" in printed
    mark = json.loads((checkpoint / "state.json").read_text())
    assert mark["state"]["world_size"] == 2
    last, undisturbed = (steps(output)[-1] for output in (finish(job), alone(optimizer={"epochs": 40})))
    assert last["step"] == undisturbed["step"]
    assert last["tokens"] == undisturbed["tokens"]
    assert last["lm"] == pytest.approx(undisturbed["lm"], rel=0.05)


def wait_for_a_step(job: TrainJob, is_alive: Callable[[], bool]) -> None:
    log = Path(job.output) / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"step"' in log.read_text()):
        assert time.monotonic() < deadline
        assert is_alive(), said(job)
        time.sleep(0.05)


def stopped_after_a_step(job: TrainJob, processes: int = 1) -> str:
    """Sends SIGTERM to the group of each process, and waits for their end; what they printed."""
    started = start(job, processes)
    wait_for_a_step(job, lambda: all(process.is_alive() for process in started))
    for process in started:
        os.killpg(process.pid or 0, signal.SIGTERM)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [EXIT_STOPPED] * processes, said(job)
    return said(job)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_signal_to_the_whole_group_ends_a_training_and_spares_the_loaders_workers(
    loader_workers: int, make: Make, tmp_path: Path
) -> None:
    """Ctrl-C, torchrun and Slurm signal whole groups; the step after which the training saves needs its batches."""
    job = make(tmp_path / "stopped", optimizer={"epochs": 2000}, run={"loader_workers": loader_workers})
    stopped_after_a_step(job)
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*"))


def test_a_killed_training_leaves_no_workers(make: Make, tmp_path: Path) -> None:
    job = make(tmp_path / "killed", optimizer={"epochs": 2000}, run={"loader_workers": 2})
    process = subprocess.Popen(command(job, 1), env=environment(), stderr=subprocess.PIPE)
    wait_for_a_step(job, lambda: process.poll() is None)
    process.kill()
    process.communicate(timeout=30)  # returns when the last of them has closed its stderr


def test_two_trainings_never_share_a_folder(make: Make, tmp_path: Path) -> None:
    """The second one waits, for the first may be about to save and end."""
    job = make(tmp_path / "out", "ct")
    with folder_lock(tmp_path / "out"):
        started = start(job, 2)
        while "Waiting up to" not in said(job):
            assert all(process.is_alive() for process in started), said(job)
            time.sleep(0.05)
        assert f"process {os.getpid()} on" in said(job)
        assert not (tmp_path / "out" / "log.jsonl").exists()
    for process in started:
        process.join(60)
        assert process.exitcode == 0, said(job)


def test_a_batch_that_does_not_divide_is_refused(make: Make, tmp_path: Path) -> None:
    job = make(tmp_path / "out", "ct", optimizer={"batch_size": 3})
    printed = refused_in_two_processes(job)
    assert "optimizer.batch_size" in printed
    assert "3 blocks for 2 devices" in printed


def refused_in_two_processes(job: TrainJob) -> str:
    started = start(job, 2)
    for process in started:
        process.join(60)
        assert process.exitcode not in (None, 0)
    return said(job)


PARTING = """
import os
import torch
from fusionx.train.distributed.collectives import by_first_rank, process_group, parallelize

def meet_and_part():
    with process_group("cpu") as world:
        module = parallelize(torch.nn.Linear(4, 4), "none", None, world)
        module(torch.ones(1, 4)).sum().backward()
        by_first_rank(lambda: None)

for number in range(30):
    os.environ["FUSIONX_MEETING"] = str(number)
    meet_and_part()
"""


def test_processes_part_before_what_averaged_their_gradients_is_freed() -> None:
    """Gloo's thread and DistributedDataParallel's end could wait for each other: here at every third parting or so."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as a launcher serves one
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PARTING], env=environment() | place | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    try:
        assert [process.wait(timeout=120) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
