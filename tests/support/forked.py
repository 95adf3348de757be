"""Commands and trainings in processes that are forked where the imports are done (tests/conftest.py says which).

A Python of its own spends four seconds of a core on torch and transformers before it does anything of ours. What
matters to a test of a command is the command and what it starts: processes, signals, exit codes, what they print. All
of these are real here. That the installed `fusionx` gets as far is for `test_hostile_folder.py` to show.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

SERVER = multiprocessing.get_context("forkserver")


class ForkedCommand:
    """`fusionx ARGUMENTS`, with as much of `subprocess.Popen` as tests use; stderr is a pipe."""

    def __init__(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, blocked: Sequence[str] = ()
    ) -> None:
        """`blocked`: modules that it cannot import."""
        self._temporary = TemporaryDirectory()
        pipe = Path(self._temporary.name) / "stderr"
        os.mkfifo(pipe)
        variables = {**os.environ, **(environment or {})}
        self._process = SERVER.Process(target=_run, args=(arguments, str(folder), variables, tuple(blocked), str(pipe)))
        self._process.start()
        self.pid = self._process.pid or 0
        self.stderr = pipe.open(encoding="utf-8", errors="replace")  # waits until the command has it open, too

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fusionx", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """What it still prints, until nothing of it is left, and its end."""
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(self.stderr.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired("fusionx", timeout or 0)
        self.wait(timeout)
        return None, printed[0]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def forked_trainings(by_server: bool) -> Any:
    """Stands in for `subprocess` in the launcher: a training of one process is forked; by a command, torchrun is, too.

    Args:
        by_server: forked by the fork server, for commands in the tests' own process, whose threads a plain fork would
            leave in the middle of their work; else by the command itself.
    """

    def popen(command: list[str], env: dict[str, str]) -> Any:
        assert command[:2] == [sys.executable, "-m"]
        if by_server and command[2] == "fusionx.train":
            return _ServedTraining(command[3:], env)
        return subprocess.Popen(command, env=env) if by_server else _ForkedModule(command[2], command[3:], env)

    return SimpleNamespace(Popen=popen)


class _ServedTraining:
    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        own = [word for word in arguments if not word.startswith("--end-with-parent")]  # its parent is the server
        self._process = SERVER.Process(target=_train, args=(own, variables))
        self._process.start()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid or 0, number)

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode or 0


class _ForkedModule:
    """`python -m MODULE ARGUMENTS`: a training, or torchrun, whose own processes are started for real."""

    def __init__(self, module: str, arguments: list[str], variables: dict[str, str]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _train(arguments, variables) if module == "fusionx.train" else _torchrun(arguments, variables)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                sys.stderr.flush()
                os._exit(code)

    def send_signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def in_a_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of some module gives in a process of its own, which must end well."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    assert process.exitcode == 0
    return result


def _send(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    sender.send(function(*arguments))


def _run(arguments: Sequence[str], folder: str, variables: dict[str, str], blocked: Sequence[str], pipe: str) -> None:
    os.dup2(os.open(pipe, os.O_WRONLY), 2)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
    os.setpgid(0, 0)
    _become(variables)
    os.chdir(folder)
    sys.modules |= dict.fromkeys(blocked)
    from fusionx.cli.main import main
    from fusionx.pipelines.training import launcher

    launcher.subprocess = forked_trainings(by_server=False)  # type: ignore[assignment]
    main(list(arguments), prog_name="fusionx")


def _train(arguments: list[str], variables: dict[str, str]) -> None:
    _begin(variables)
    from fusionx.train.__main__ import main

    sys.exit(main(arguments))


def _torchrun(arguments: list[str], variables: dict[str, str]) -> None:
    _begin(variables)
    from fusionx.train.distributed.agent import main

    main(arguments)
    sys.exit(0)


def _begin(variables: Mapping[str, str]) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the command's handlers; a fresh process has none
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become(variables)


def _become(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
