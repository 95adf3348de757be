"""The sandbox for generated programs: every limit holds, and without a sandbox nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import fusionx.eval.code.sandbox as sandbox_module
from fusionx.contract.errors import ConfigError, DataError
from fusionx.eval.code.sandbox import JAIL, Limits, Program, ProgramOutcome, check_sandbox, run_sandboxed

pytestmark = pytest.mark.usefixtures("sandbox")

LIMITS = Limits(seconds=5, memory=256 << 20, processes=16, file_bytes=1 << 20, output_bytes=1000)
PYTHON = str(Path(sys.base_prefix, "bin", "python3"))


def run_python(text: str, limits: Limits = LIMITS) -> ProgramOutcome:
    program = Program({"a.py": text}, [[PYTHON, "a.py"]], {"PATH": "/usr/bin:/bin"}, [sys.base_prefix])
    return run_sandboxed(program, limits)


def test_commands_run_one_after_the_other_until_one_fails() -> None:
    def run(*commands: str) -> ProgramOutcome:
        words = [["bash", "-c", command] for command in commands]
        return run_sandboxed(Program({"a.txt": "ä\n"}, words, {"PATH": "/usr/bin:/bin", "A": "b"}), LIMITS)

    assert run("cat a.txt >b.txt; echo $A", "cat b.txt") == ProgramOutcome("exited", 0, "ä\n")
    assert run("echo first; exit 3", "echo second") == ProgramOutcome("exited", 3, "first\n")
    assert run("kill -9 $$").code == -9
    assert run("echo out; echo err >&2").output == "out\nerr\n"
    assert [run("true").passed, run("false").passed] == [True, False]
    assert run("no-such-command").code == 127


def test_an_endless_program_is_stopped() -> None:
    start = time.monotonic()
    outcome = run_python("while True: pass\n", Limits(seconds=0.5))
    assert (outcome.status, outcome.passed) == ("timeout", False)
    assert time.monotonic() - start < 10
    assert run_python("import time; time.sleep(60)\n", Limits(seconds=0.5)).status == "timeout"


def test_forks_are_limited() -> None:
    outcome = run_python(
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    for _ in range(200):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(60)\n"
        "        made += 1\n"
        "except BlockingIOError:\n"
        "    print(made)\n"
    )
    assert outcome.code == 0
    # One of the 16 is the program itself, one may be the sandbox's own first process.
    assert int(outcome.output) in (14, 15)


def test_memory_is_limited_in_one_process_and_in_all_together() -> None:
    assert "MemoryError" in run_python("a = bytearray(300 << 20)\n").output
    assert run_python("a = bytearray(100 << 20)\n").passed
    together = (
        "import os, time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        a = bytearray(b'a') * (100 << 20)\n"
        "        time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    assert run_python(together).status == "memory"
    held = "import mmap\na = mmap.mmap(-1, 400 << 20, {})\nfor i in range(0, len(a), 4096): a[i] = 1\n"
    assert "Cannot allocate" in run_python(held.format("mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS")).output
    # Whoever maps it may end and leave it to one who has never touched it.
    assert "PermissionError" in run_python(held.format("mmap.MAP_SHARED | mmap.MAP_ANONYMOUS")).output


def test_memory_that_belongs_to_no_process_cannot_be_had() -> None:
    assert "PermissionError" in run_python("import os\nos.memfd_create('a')\n").output
    shared = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(0, 4096, 0o1600))\n"
    assert run_python(shared + "print(ctypes.get_errno())\n").output == "-1\n1\n"


def test_files_are_limited_in_size_and_number() -> None:
    assert "File too large" in run_python("open('a', 'wb').write(bytes(2 << 20))\n").output
    many = "for i in range(1000):\n    with open(str(i), 'wb') as f: f.write(bytes(1 << 20))\n"
    outcome = run_python(many)
    assert outcome.status == "memory" or "No space left" in outcome.output


def test_output_is_cut() -> None:
    outcome = run_python("print('a' * 5_000_000)\n")
    assert (outcome.passed, outcome.output) == (True, "a" * LIMITS.output_bytes)


def test_nothing_outside_can_be_written_or_seen(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    text = f"""
import os
for path in ({str(tmp_path / "new")!r}, "/a", "/usr/a", "/etc/a", "/dev/a", "/proc/a", {sys.base_prefix + "/a"!r}):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError:
        pass
for command in ("mount -o remount,rw /usr", "mount -t tmpfs none /etc", "umount /usr", "unshare -Ur true"):
    if os.system(command + " >/dev/null 2>&1") == 0:
        print("did", command)
print(os.path.exists({str(secret)!r}), os.path.exists({str(Path.home())!r}), sorted(os.listdir("/tmp")))
open("/tmp/own", "w").write("a")
"""
    outcome = run_python(text)
    home_is_shown = sys.base_prefix.startswith(f"{Path.home()}/")  # as the way to this Python, and nothing else of it
    assert outcome == ProgramOutcome("exited", 0, f"False {home_is_shown} ['a.py']\n")
    assert secret.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert not Path("/tmp/own").exists()


def test_only_the_way_to_a_readable_folder_is_shown(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a").write_text("a")
    (tmp_path / "hidden").mkdir()
    commands = [["ls", str(tmp_path), str(tmp_path / "shown")], ["touch", str(tmp_path / "shown" / "b")]]
    program = Program({}, commands[:1], {"PATH": "/usr/bin:/bin"}, [str(tmp_path / "shown")])
    assert run_sandboxed(program, LIMITS).output == f"{tmp_path}:\nshown\n\n{tmp_path}/shown:\na\n"
    written = run_sandboxed(Program({}, commands[1:], program.environment, program.readable), LIMITS)
    assert "Read-only" in written.output


def test_no_connection_reaches_a_listener_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        port = listener.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\n"
        outcome = run_python(connect)
        assert "Network is unreachable" in outcome.output or "refused" in outcome.output
        assert not outcome.passed
        with pytest.raises(TimeoutError):
            listener.accept()
        subprocess.run([PYTHON, "-c", connect], check=True)
        listener.accept()[0].close()  # outside the sandbox the same program connects
    assert "unreachable" in run_python("import socket\nsocket.create_connection(('192.0.2.1', 80), 2)\n").output


def test_no_abstract_socket_of_this_machine_is_reached() -> None:
    name = f"\0{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        outcome = run_python(f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})\n")
    assert "PermissionError" in outcome.output


def test_environment_and_input_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    text = """
import os, sys
print(sorted({*os.environ} - {"LC_CTYPE"}), repr(sys.stdin.read()))  # Python sets that one itself
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        print("told" in open(f"/proc/{pid}/environ").read())
    except PermissionError:
        print("closed")
"""
    assert run_python(text).output == "['PATH'] ''\nclosed\nFalse\n"


def test_a_program_has_no_privileges_and_sees_no_other_processes() -> None:
    text = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getuid(), {status[name].strip("\\t\\n0") for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")})
print(status["NoNewPrivs"].strip(), sorted(filter(str.isdigit, os.listdir("/proc")), key=int)[0], os.getpid() < 10)
try:
    os.kill(1, 9)
except PermissionError:
    print("kept")
"""
    outcome = run_python(text)
    # The first process of a namespace takes no signal from inside; the program goes on, and so does the sandbox.
    assert outcome.output in ("65534 {''}\n1 1 True\n", "65534 {''}\n1 1 True\nkept\n")
    assert outcome.passed


def process_exists(mark: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue  # it has just ended
    return False


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", "{mark}"])
    os._exit(0)
time.sleep({seconds})
"""


def test_a_daemon_does_not_outlive_its_program() -> None:
    mark = str(uuid.uuid4())
    assert run_python(DAEMON.format(mark=mark, seconds=0.3)).passed
    assert not process_exists(mark)
    assert run_python(DAEMON.format(mark=mark, seconds=60), Limits(seconds=1)).status == "timeout"
    assert not process_exists(mark)


def test_a_killed_evaluation_leaves_nothing_behind() -> None:
    mark = str(uuid.uuid4())
    code = f"""
import sys
from fusionx.eval.code.sandbox import Limits, Program, run_sandboxed
from pathlib import Path
text = {DAEMON.format(mark=mark, seconds=60)!r}
run_sandboxed(Program({{"a.py": text}}, [[{PYTHON!r}, "a.py"]], {{}}, [sys.base_prefix]), Limits(seconds=60))
"""
    with subprocess.Popen([sys.executable, "-P", "-c", code]) as process:
        wait_for(lambda: process_exists(mark))
        process.kill()
    wait_for(lambda: not process_exists(mark))


def wait_for(condition: object) -> None:
    assert callable(condition)
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it has not happened within ten seconds")


def test_programs_run_side_by_side() -> None:
    found: list[str] = []

    def run(number: int) -> None:
        found.append(run_python(f"open('a', 'x').write('a')\nprint({number})\n").output)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"{number}\n" for number in range(6)]


def test_an_ordinary_user_has_the_same_sandbox() -> None:
    tried = "unshare -Ur touch /usr/a || touch /usr/a; grep CapBnd /proc/self/status; cat /proc/net/route"
    job = {
        "files": {}, "environment": {"PATH": "/usr/bin:/bin"}, "readable": ["/usr", "/bin", "/lib", "/lib64", "/etc"],
        "seconds": 5, "memory": 1 << 28, "processes": 16, "file_bytes": 1 << 20, "output_bytes": 1000,
        "commands": [["/bin/sh", "-c", tried]],
    }  # fmt: skip
    # Waits for the answer with standard input open, as the sandbox wants it.
    code = """
import subprocess, sys
jail = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1]], stdin=-1, stdout=-1, text=True)
jail.stdin.write(sys.argv[2] + "\\n")
jail.stdin.flush()
print(jail.stdout.readline())
"""
    jail = Path(shutil.copy(JAIL, "/tmp/fusionx-jail-of-a-test.py"))
    jail.chmod(0o644)
    try:
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        other: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": []} if os.geteuid() == 0 else {}
        command = [python, "-c", code, str(jail), json.dumps(job)]
        done = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False, **other)
    finally:
        jail.unlink()
    assert "Read-only file system" in done.stdout, done
    assert "unshare failed" in done.stdout, done
    assert "CapBnd:\\t0000000000000000" in done.stdout
    assert '"code": 0' in done.stdout


def test_without_namespaces_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "jail.py"
    source = JAIL.read_text()
    head = "def unshare(flags: int, what: str) -> None:\n"
    broken.write_text(source.replace(head, head + "    raise PermissionError(1, 'Operation not permitted')\n"))
    assert broken.read_text() != source
    monkeypatch.setattr(sandbox_module, "JAIL", broken)
    check_sandbox.cache_clear()
    with pytest.raises(ConfigError, match="so none is run") as caught:
        check_sandbox()
    assert caught.value.details["field"] == "eval.code.run"
    assert "Operation not permitted" in caught.value.details["found"]
    assert "sysctl" in caught.value.details["remedy"]
    with pytest.raises(ConfigError):
        run_python(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert not (tmp_path / "ran").exists()

    monkeypatch.setattr(sandbox_module.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="darwin"):
        run_python("")


def test_a_broken_sandbox_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "jail.py"
    broken.write_text("raise RuntimeError('it broke')\n")
    monkeypatch.setattr(sandbox_module, "JAIL", broken)
    with pytest.raises(DataError, match="it broke"):
        run_python("")
    broken.write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(sandbox_module, "GRACE_SECONDS", 0.5)
    with pytest.raises(DataError, match="no answer"):
        run_python("", Limits(seconds=0.5))
