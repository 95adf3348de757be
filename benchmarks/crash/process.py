"""The command `fusionx run`, forked from a process that has everything imported, and its trainings likewise.

A Python of its own would spend ten times as long on imports as on the run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fusionx.benchmarks.crash.points import Points
from fusionx.contract.errors import FusionXError
from fusionx.contract.files.storage import told_by_the_system

_IMPORTED = (
    "fusionx.align.walk.part",
    "fusionx.align.vocabulary.nearest_token",
    "fusionx.pipelines.evaluation.ensembles",
    "fusionx.pipelines.evaluation.recommended_model",
    "fusionx.pipelines.evaluation.reporting",
    "fusionx.pipelines.evaluation.run_result",
    "fusionx.pipelines.pipeline",
    "fusionx.train.loop.trainer",
    "transformers.models.llama.modeling_llama",
)


def prepare() -> None:
    """Imports what a run needs, for all processes that are forked from this one; each computes in one thread."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for module in _IMPORTED:
        import_module(module)


def start(config: Path, points: Points, printed: Path) -> int:
    """The process id, which is the group's, too; what it and its trainings print is added to `printed`."""
    sys.stdout.flush()
    sys.stderr.flush()

    def command() -> int:
        os.setpgid(0, 0)
        descriptor = os.open(printed, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        points.watch()
        return run(config)

    return forked(command)


def ended(process: int) -> int:
    """The exit code, once it has ended; of a signal its negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(config: Path, dry: bool = False) -> int:
    """What `fusionx run` does (`dry`: `--dry-run`), and its exit code; trainings are forked from this process."""
    from fusionx.eval.report import pages
    from fusionx.pipelines.dry_run import dry_run
    from fusionx.pipelines.pipeline import open_pipeline
    from fusionx.pipelines.training import launcher

    vars(launcher)["subprocess"] = SimpleNamespace(Popen=_ForkedTraining)
    vars(pages)["plots"] = lambda *_: []  # a third of the time; they are written as the pages are
    try:
        with open_pipeline(config, read_only=dry) as pipeline:
            print("\n".join(dry_run(pipeline)) if dry else pipeline.run())
    except (FusionXError, OSError) as error:
        told = told_by_the_system(error) if isinstance(error, OSError) else error
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return told.exit_code
    return 0


class _ForkedTraining:
    """As much of `subprocess.Popen` as the launcher uses, for `python -m fusionx.train ARGUMENTS`.

    For torchrun with that, too: the processes get from here what they would get from it, ranks and a place to meet.
    """

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        arguments = command[command.index("fusionx.train") + 1 :]

        def training(ranks: dict[str, str]) -> int:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)  # as a process that is not forked has them
            os.environ.clear()
            os.environ.update(env)
            os.environ.update(ranks)
            from fusionx.train.__main__ import main

            return main(arguments)

        self._processes = [forked(partial(training, ranks)) for ranks in _ranks(command)]

    def send_signal(self, number: int) -> None:
        for process in self._processes:
            os.kill(process, number)

    def wait(self) -> int:
        return next(filter(None, [ended(process) for process in self._processes]), 0)


def _ranks(command: list[str]) -> Iterator[dict[str, str]]:
    """The environment of each process of a training."""
    sizes = [argument.partition("=")[2] for argument in command if argument.startswith("--nproc-per-node=")]
    if not sizes:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for rank in map(str, range(int(sizes[0]))):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": sizes[0]}
        yield {**place, "LOCAL_WORLD_SIZE": sizes[0], "RANK": rank, "LOCAL_RANK": rank}


def forked(work: Callable[[], int]) -> int:
    """The id of a process that does the work and ends with its exit code; 1 where it raises."""
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
