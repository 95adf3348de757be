"""Starts trainings: each in processes of its own, so that one failure leaves the others alone.

On one machine these are this command's children, with torchrun where a training has several. Under torchrun or srun
every process of the command starts its own share of each training, and they meet there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from fusionx.contract.errors import EXIT_COMPLETE, EXIT_STOPPED, ConfigError, DataError
from fusionx.contract.files.lock import SAVING_SECONDS, folder_lock
from fusionx.contract.files.storage import write_bytes
from fusionx.train.config import TrainJob
from fusionx.train.distributed.parent import END_WITH_PARENT
from fusionx.train.distributed.ranks import MEETING, is_main_process, launched_ranks
from fusionx.train.distributed.stop_signals import STOP_SIGNALS, handled_by
from fusionx.train.state.result import discard_checkpoints, finished_result, is_stale

AGENT = "fusionx.train.distributed.agent"
_SECONDS_TO_DELETE = 300
_SECONDS_TO_SAVE = 600
"""How long torchrun waits for its processes, once asked to stop, before it kills them."""


class Launcher:
    """Runs trainings, at most `at_once` at a time, each with its share of this machine's GPUs.

    A signal that asks the command to stop is passed on to all running ones, which save and end; no other is begun.
    """

    def __init__(self, at_once: int, device: str) -> None:
        self.ranks = launched_ranks()
        if self.ranks is not None and self.ranks.rank == 0 and not _has_agent_store():
            _host_meetings(os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500")))
        self.at_once = 1 if self.ranks is not None else at_once  # all processes must meet in the same training
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._shares: SimpleQueue[list[str] | None] = SimpleQueue()
        for share in _gpu_shares(0 if device == "cpu" else _count_gpus(), self.at_once):
            self._shares.put(share)

    @contextmanager
    def listening(self) -> Iterator[Launcher]:
        """Passes signals on while the context lasts (in the main thread; elsewhere nobody is told)."""
        with handled_by(self._stop):
            yield self

    def run(self, job: TrainJob, overwrite: bool, resume: Path | None) -> int:
        """The exit code of the job's processes; 0 for a finished job, which is only read.

        EXIT_STOPPED: a signal asked for it, and nothing is lost.

        Raises:
            DataError: its folder holds the result of another training, and `overwrite` is not given; or another
                training is writing there.
        """
        if overwrite and is_stale(job):
            _delete(job)
        elif finished_result(job) is not None:
            discard_checkpoints(job)
            return EXIT_COMPLETE
        content = (json.dumps(job.model_dump(mode="json"), indent=1) + "\n").encode()
        with TemporaryDirectory() as private:
            file = f"{job.output if is_main_process() else private}/job.json"
            write_bytes(file, content)
            stopped_mark = Path(private) / "stopped"
            arguments = [file, f"--stopped-mark={stopped_mark}"]
            share = self._shares.get()
            try:
                code = self._run(job, [*arguments, *([f"--resume={resume}"] if resume else [])], share)
            finally:
                self._shares.put(share)
            # torchrun's own code says no more than that something ended. A training that a signal could kill was not
            # yet, or no more, in its steps: there was nothing to save.
            return EXIT_STOPPED if stopped_mark.exists() or -code in STOP_SIGNALS else code

    def _run(self, job: TrainJob, arguments: list[str], gpus: list[str] | None) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.run.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONSAFEPATH"] = "1"  # torchrun's own processes, too, import nothing from the working directory
        processes = 1
        if self.ranks is not None:
            environment[MEETING] = job.digest()
        else:
            processes = job.run.devices or (len(gpus) if gpus else 1)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        ends = f"{END_WITH_PARENT}={os.getpid()}"  # a killed command leaves no training that runs on
        if processes == 1:
            command = [sys.executable, "-m", "fusionx.train", *arguments, ends]
        else:
            command = [sys.executable, "-m", AGENT, ends, *_torchrun(processes), *arguments, END_WITH_PARENT]
        if self.stopped:
            return EXIT_STOPPED
        process = subprocess.Popen(command, env=environment)
        self._running.add(process)
        if self.stopped:  # the signal came in between, when `_stop` did not see this one
            process.send_signal(signal.SIGTERM)
        code = process.wait()
        self._running.discard(process)
        return code

    def _stop(self, *_: Any) -> None:
        if self.stopped:  # told again; torchrun would take a third signal for leave to abandon its processes
            return
        self.stopped = True
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)


def _delete(job: TrainJob) -> None:
    """Deletes a stale folder. Of several processes the leading one does; the others return when it is gone.

    Raises:
        DataError: another training is writing there, or the folder stays.
    """
    if is_main_process():
        with folder_lock(Path(job.output), wait=SAVING_SECONDS):
            pass  # let go before deleting: a network filesystem keeps the names of open files
        shutil.rmtree(job.output)
        return
    deadline = time.monotonic() + _SECONDS_TO_DELETE
    while is_stale(job):
        if time.monotonic() > deadline:
            raise DataError(
                "The first process has not deleted a stale training.",
                file=job.output,
                found=f"it is still there after {_SECONDS_TO_DELETE} s",
                remedy="see what the first process says, or delete the folder",
            )
        time.sleep(0.1)


def _torchrun(processes: int) -> list[str]:
    """Its arguments before the training's own."""
    handled = ",".join(signal.Signals(number).name for number in (*STOP_SIGNALS, signal.SIGHUP, signal.SIGQUIT))
    return [
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--shutdown-timeout={_SECONDS_TO_SAVE}",
        f"--signals-to-handle={handled}",
        "-m",
        "fusionx.train",
    ]


def _has_agent_store() -> bool:
    """Whether torchrun's agent, and not the first process, serves the store at MASTER_ADDR and MASTER_PORT."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@cache
def _host_meetings(address: str, port: int) -> Any:
    """Serves the store where the processes of all trainings of this command find each other, until the command ends.

    The one port that the launcher was given serves them one after the other: a port derived from it might be taken, and
    the processes that did not find that out would wait for the one that did.

    Raises:
        ConfigError: the port is taken.
    """
    from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]

    try:
        return TCPStore(address, port, is_master=True, wait_for_workers=False)
    except DistNetworkError as error:
        raise ConfigError(
            "The processes of the trainings cannot meet.",
            field="MASTER_PORT",
            found=f"{port}: {str(error).splitlines()[0]:.200}",
            expected="a free port of the first machine",
            remedy="name another one, the same for all processes",
        ) from error


def _gpu_shares(gpus: int, at_once: int) -> list[list[str] | None]:
    """For each training that runs at once the GPUs it sees; None: there are none. More trainings than GPUs share."""
    if not gpus:
        return [None] * at_once
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    size = max(1, gpus // at_once)
    starts = [number * size % gpus for number in range(at_once)]
    return [names[start : start + size] for start in starts]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
