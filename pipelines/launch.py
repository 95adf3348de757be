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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from contract.errors import EXIT_STOPPED
from contract.storage import write_bytes
from train.config import TrainJob
from train.place import launched, leads
from train.result import finished_result, is_stale

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SECONDS_TO_SAVE = 600
"""How long torchrun waits for its processes, once told to stop, before it kills them."""


class Launcher:
    """Runs trainings, at most `at_once` at a time, each with its share of this machine's GPUs.

    A signal that asks the command to stop is passed on to all running ones, which save and end; no other is begun.
    """

    def __init__(self, at_once: int, device: str) -> None:
        self.place = launched()
        self.at_once = 1 if self.place is not None else at_once  # all processes must meet in the same training
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._shares: SimpleQueue[list[str] | None] = SimpleQueue()
        for share in _gpu_shares(0 if device == "cpu" else _count_gpus(), self.at_once):
            self._shares.put(share)

    @contextmanager
    def listening(self) -> Iterator[Launcher]:
        """Passes signals on while the context lasts (in the main thread; elsewhere nobody is told)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._stop) for number in _STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, job: TrainJob, overwrite: bool, resume: Path | None) -> int:
        """The exit code of the job's processes; 0 for a finished job, which is only read.

        Raises:
            DataError: its folder holds the result of another training, and `overwrite` is not given.
        """
        if overwrite and is_stale(job):
            if leads():
                shutil.rmtree(job.output)
        elif finished_result(job) is not None:
            return 0
        content = (json.dumps(job.model_dump(mode="json"), indent=1) + "\n").encode()
        with TemporaryDirectory() as private:
            file = f"{job.output if leads() else private}/job.json"
            write_bytes(file, content)
            share = self._shares.get()
            try:
                return self._run(job, [file, *(["--resume", str(resume)] if resume else [])], share)
            finally:
                self._shares.put(share)

    def _run(self, job: TrainJob, arguments: list[str], gpus: list[str] | None) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.run.threads), "TOKENIZERS_PARALLELISM": "false"}
        processes = 1
        if self.place is not None:
            environment |= _meeting_point(job)
            environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # it holds the keys of the training before
        else:
            processes = job.run.devices or (len(gpus) if gpus else 1)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        command = [sys.executable, "-m", *_torchrun(processes), "train", *arguments]
        with self._lock:
            if self.stopped:
                return EXIT_STOPPED
            process = subprocess.Popen(command, env=environment)
            self._running.add(process)
        code = process.wait()
        self._running.discard(process)
        return EXIT_STOPPED if self.stopped and code else code

    def _stop(self, *_: Any) -> None:
        # No lock: a handler runs between any two instructions of the main thread, which may hold it.
        self.stopped = True
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)


def _torchrun(processes: int) -> list[str]:
    if processes == 1:
        return []
    handled = ",".join(signal.Signals(number).name for number in (*_STOP_SIGNALS, signal.SIGHUP, signal.SIGQUIT))
    options = [
        f"--nproc-per-node={processes}",
        f"--shutdown-timeout={_SECONDS_TO_SAVE}",
        f"--signals-to-handle={handled}",
    ]
    return ["torch.distributed.run", "--standalone", *options, "-m"]


def _meeting_point(job: TrainJob) -> dict[str, str]:
    """A port of the training's own beside the launcher's, the same on every process."""
    port = int(os.environ.get("MASTER_PORT", "29500"))
    return {"MASTER_PORT": str(port + 1 + int(job.digest(), 16) % 997)}


def _gpu_shares(gpus: int, at_once: int) -> list[list[str] | None]:
    """For each training that runs at once the GPUs it sees; None: whatever there is."""
    if not gpus or at_once > gpus:
        return [None] * at_once
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    size = gpus // at_once
    return [names[number * size : (number + 1) * size] for number in range(at_once)]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
