"""Attempts of a program to leave the sandbox, or to take more of the machine than it is given: each is held."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from escapes import ATTEMPTS, PLAIN, runner

import fusionx.eval.code.sandbox as sandbox_module
from fusionx.contract.errors import ConfigError
from fusionx.eval.code.sandbox import JAIL, Limits, Program, ProgramOutcome, check_sandbox, run_sandboxed

PYTHON = str(Path(sys.base_prefix, "bin", "python3"))
LIMITS = Limits(seconds=10, memory=256 << 20, processes=16, file_bytes=1 << 20, output_bytes=64 << 10)


def run_python(text: str, limits: Limits = LIMITS, readable: str | None = None) -> ProgramOutcome:
    folders = [sys.base_prefix, *([readable] if readable else [])]
    return run_sandboxed(Program({"a.py": text}, [[PYTHON, "-S", "a.py"]], {"PATH": "/usr/bin:/bin"}, folders), limits)


@pytest.fixture(scope="module")
def facts(sandbox: None) -> Iterator[dict[str, str]]:
    """What is outside and listens there: a file, sockets of three kinds, and this process."""
    abstract = f"fusionx-{uuid4()}"
    with TemporaryDirectory() as hidden, TemporaryDirectory() as shown:
        secret, path = Path(hidden, "secret"), f"{shown}/socket"
        secret.write_text("told")
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_UNIX) as nameless,
            socket.socket(socket.AF_UNIX) as named,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        ):
            for each, address in ((nameless, f"\0{abstract}"), (named, path), (datagrams, f"{path}.datagrams")):
                each.bind(address)
            nameless.listen()
            named.listen()
            for folder in (hidden, shown):
                os.chmod(folder, 0o755)
            os.chmod(path, 0o777)
            os.chmod(f"{path}.datagrams", 0o777)
            yield {
                "SECRET": str(secret),
                "SOCKET": path,
                "ABSTRACT": abstract,
                "PORT": str(listener.getsockname()[1]),
                "PROCESS": str(os.getpid()),
            }


@pytest.fixture(scope="module")
def inside(facts: dict[str, str]) -> dict[str, str | None]:
    """What came of every attempt in the sandbox, which shows the folder with the socket."""
    program = runner(ATTEMPTS, **facts, HERE="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSIONX_SECRET", "told")
        outcome = run_python(program, readable=str(Path(facts["SOCKET"]).parent))
    assert outcome.passed, outcome
    return json.loads(outcome.output)


@pytest.fixture(scope="module")
def outside(facts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What comes of those that any user may do, in a process like any other."""
    program = runner(PLAIN, **facts, HERE=str(tmp_path_factory.mktemp("here")))
    done = subprocess.run(
        [PYTHON, "-S", "-c", program], env={"FUSIONX_SECRET": "told"}, capture_output=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_held(inside: dict[str, str | None], name: str) -> None:
    assert inside[name] is None


def test_outside_the_same_attempts_succeed(outside: dict[str, str | None]) -> None:
    """Where this machine allows them: a container may forbid some system calls to everybody."""
    held = {name for name, outcome in outside.items() if outcome is None}
    forbidden_by_containers = {"be traced", "read another process's memory", "a POSIX message queue"}
    assert held <= forbidden_by_containers


BOMBS = {
    "threads": """
import threading, time
made = 0
try:
    for _ in range(500):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError:
    print("held at", made)
""",
    "page tables": """
import mmap
space = mmap.mmap(-1, 1 << 40, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)
for place in range(0, len(space), 2 << 20):
    space[place]
""",
    "what waits in sockets": """
import os, socket
kept = []
for _ in range(8):
    if os.fork() == 0:
        while True:
            one, other = socket.socketpair()
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            kept.append((one, other))
            try:
                while True:
                    one.send(bytes(1 << 16))
            except OSError:
                pass
import time
time.sleep(60)
""",
    "files without a byte": """
import os
try:
    for number in range(10 ** 6):
        os.close(os.open(f"/tmp/{number}", os.O_CREAT))
except OSError as error:
    print("held at", error)
""",
    "folders in folders": """
import os
try:
    for _ in range(10 ** 6):
        os.mkdir("a")
        os.chdir("a")
except OSError as error:
    print("held at", error)
""",
    "a file with holes": """
try:
    open("/tmp/a", "wb").truncate(1 << 40)
except OSError as error:
    print("held at", error)
""",
    "open files": """
import os
kept = []
try:
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    print("held at", len(kept))
""",
    "a command line without an end": """
import os
try:
    os.execv("/bin/true", ["true", *(["a" * 100_000] * 100_000)])
except (OSError, MemoryError):
    print("held at")
""",
    "output without an end": """
while True:
    print("a" * 100_000)
""",
    "deaf to every signal, and stopped": """
import os, signal
for number in {*signal.Signals} - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
os.kill(os.getpid(), signal.SIGSTOP)
""",
}
"""Each is small enough to do no harm where it is not held."""


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.usefixtures("sandbox")
def test_a_bomb_takes_no_more_than_its_share(name: str) -> None:
    outcome = run_python(BOMBS[name], Limits(seconds=1.2, memory=64 << 20, processes=16, file_bytes=1 << 20))
    assert outcome.status in ("memory", "timeout") or "held at" in outcome.output or (outcome.code or 0) < 0, outcome
    if name in ("page tables", "what waits in sockets"):
        assert outcome.status == "memory"


@pytest.mark.usefixtures("sandbox")
def test_a_crash_leaves_no_dump() -> None:
    """Not even where the machine's own program would take it: a limit of one byte tells the kernel so."""
    text = "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\nos.abort()\n"
    outcome = run_python(text)
    assert (outcome.code, outcome.output.splitlines()[0]) == (-6, "(1, 1)")


@pytest.mark.usefixtures("sandbox")
def test_programs_of_every_kind_still_have_what_they_need() -> None:
    text = """
import mmap, os, socket, subprocess, threading
one, other = socket.socketpair()
one.send(b"a")
socket.socket(socket.AF_INET).close()
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
open("a", "wb").write(bytes(4096))
mmap.mmap(os.open("a", os.O_RDWR), 4096)[0] = 1
mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)[0] = 1
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(other.recv(1), subprocess.run(["echo", "a"], capture_output=True).stdout, open("/dev/urandom", "rb").read(0))
"""
    assert run_python(text).output == "thread\nb'a' b'a\\n' b''\n"


LACKING = ("unshare", "mount", "make", "pivot_root", "umount", "prctl no_new_privs", "capset", "prctl seccomp")


@pytest.mark.parametrize("lacking", LACKING)
def test_where_the_kernel_lacks_one_of_these_nothing_runs(
    lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never silently weaker."""
    source, head = (
        JAIL.read_text(),
        '    """Raises an OSError that names the action where a call of the C library has failed."""\n',
    )
    broken = tmp_path / "jail.py"
    broken.write_text(
        source.replace(head, f"    if action.startswith({lacking!r}):\n        raise OSError(38, action)\n{head}")
    )
    assert broken.read_text() != source
    monkeypatch.setattr(sandbox_module, "JAIL", broken)
    check_sandbox.cache_clear()
    with pytest.raises(ConfigError, match="so none is run") as caught:
        check_sandbox()
    assert re.search(lacking, caught.value.details["found"])
    check_sandbox.cache_clear()
