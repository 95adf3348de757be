"""Trainings in processes of their own, forked where the imports are done (tests/conftest.py says which)."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from fusionx.train.__main__ import main
from fusionx.train.config import TrainJob


def write_job(job: TrainJob) -> Path:
    """The file that `python -m fusionx.train` reads."""
    file = Path(job.output) / "job.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job.model_dump(mode="json")))
    return file


def start(job: TrainJob, processes: int = 1) -> list[BaseProcess]:
    """`python -m fusionx.train` on this job, in as many processes, told their places as torchrun tells them.

    Each has a process group of its own. What they print goes to `said(job)`, too.
    """
    server = multiprocessing.get_context("forkserver")
    file, port = write_job(job), str(free_port())
    started: list[BaseProcess] = []
    _printed(job).write_text("")
    for rank in map(str, range(processes)):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**place, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        started.append(server.Process(target=_train, args=(str(file), environment, str(_printed(job)))))
        started[-1].start()
    return started


def finish(job: TrainJob, processes: int = 1) -> Path:
    """Starts the job and waits for its end; its output."""
    started = start(job, processes)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes, said(job)
    return Path(job.output)


def said(job: TrainJob) -> str:
    """What the processes of the last `start` have printed to stderr."""
    return _printed(job).read_text(errors="replace")


def _printed(job: TrainJob) -> Path:
    output = Path(job.output)
    return output.with_name(f"{output.name}.stderr")


def _train(file: str, environment: dict[str, str], printed: str) -> None:
    os.setpgid(0, 0)
    os.dup2(os.open(printed, os.O_WRONLY | os.O_APPEND), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ |= environment
    sys.exit(main([file]))


def free_port() -> int:
    """Below the ports that systems hand out by themselves: a client of some other test could be given it meanwhile."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
