"""Runs programs that models have written, in the sandbox of `eval.code.jail`, or not at all.

There is no way around the sandbox: where it cannot be had, nothing is run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fusionx.contract.errors import ConfigError, DataError

JAIL = Path(__file__).with_name("jail.py")
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
"""What programs find on every Linux machine, readable; other folders only where a toolchain lies in them."""

GRACE_SECONDS = 30.0
"""What the sandbox may take longer than its commands before it counts as broken."""

REMEDY = (
    "use Linux 5.14 or later with user namespaces: as an ordinary user sysctl kernel.unprivileged_userns_clone=1, "
    "user.max_user_namespaces above 0 and kernel.apparmor_restrict_unprivileged_userns=0, in a container --privileged; "
    "or leave the benchmark me out"
)


@dataclass(frozen=True)
class Limits:
    """What a program may use; `seconds` of wall clock for each of its commands.

    `memory` bytes hold for each process's own memory, and for what all of them and their files occupy together.
    """

    seconds: float = 15.0
    memory: int = 1 << 30
    processes: int = 128
    file_bytes: int = 64 << 20
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Program:
    """What to run: `files` (name -> text) in an empty folder, then the commands, until one fails.

    Attributes:
        readable: files and folders besides the system's that the commands need, absolute paths.
    """

    files: Mapping[str, str]
    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str]
    readable: Sequence[str] = ()


@dataclass(frozen=True)
class ProgramOutcome:
    """How the last command ended: `code` is its exit code, negative for a signal, None where it was stopped."""

    status: Literal["exited", "timeout", "memory"]
    code: int | None
    output: str

    @property
    def passed(self) -> bool:
        """Whether every command ended by itself, without an error."""
        return self.status == "exited" and self.code == 0


@cache
def check_sandbox() -> None:
    """Makes sure, once, that programs can be kept in the sandbox on this machine.

    Raises:
        ConfigError: they cannot; it says what is missing and how to get it.
    """
    run_sandboxed(Program({}, [["true"]], {"PATH": "/usr/bin:/bin"}), Limits())


def run_sandboxed(program: Program, limits: Limits) -> ProgramOutcome:
    """Runs the program with no network, no environment but its own, and nothing to write but its own folder.

    Raises:
        ConfigError: this machine has no sandbox; nothing was run.
        DataError: the sandbox broke.
    """
    if sys.platform != "linux":
        raise _refusal(f"the platform {sys.platform}")
    job = {**asdict(program), **asdict(limits), "readable": _folders(program.readable)}
    patience = limits.seconds * len(program.commands) + GRACE_SECONDS
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(JAIL)], cwd="/", env={}, text=True, encoding="utf-8",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        content = _ask(process, json.dumps(job) + "\n", patience)
    if "refused" in content:
        raise _refusal(content["refused"])
    if "failed" in content:
        raise DataError("The sandbox for generated programs broke.", file=JAIL, found=content["failed"])
    return ProgramOutcome(**content)


def _ask(process: subprocess.Popen[str], job: str, patience: float) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    timer = threading.Timer(patience, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        with suppress(BrokenPipeError):  # one that has ended already says why on its other streams
            process.stdin.write(job)
            process.stdin.flush()
        answer = process.stdout.readline()
        process.wait()  # until nothing is left of the program
    finally:
        timer.cancel()
        with suppress(BrokenPipeError):
            process.stdin.close()
    return json.loads(answer) if answer else {"failed": process.stderr.read()[-2000:] or "no answer"}


def _folders(readable: Sequence[str]) -> list[str]:
    """Existing paths, a folder before what lies below it."""
    return [path for path in (*SYSTEM_FOLDERS, *sorted(readable)) if Path(path).exists()]


def _refusal(found: str) -> ConfigError:
    return ConfigError(
        "Generated programs cannot be kept in a sandbox on this machine, so none is run.",
        field="eval.code.run",
        found=found,
        expected="Linux namespaces (user, mount, pid, network, IPC, UTS, cgroup)",
        remedy=REMEDY,
    )
