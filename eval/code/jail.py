"""A sandbox for one program that nobody has read: namespaces, a root of its own, limits, and no privileges.

Started by `eval.code.sandbox` as a program of its own, without the project and without anything but the standard
library. One line of JSON on standard input says what to run, one line on standard output what came of it. Standard
input stays open as long as somebody waits for the answer; once it is closed, everything ends.

What holds, on Linux 5.14 or later:

- user, mount, pid, network, IPC, UTS and cgroup namespaces: no network, not even the machine's own loopback; no other
  processes to see; when the first process ends, the kernel kills all that the program has left behind;
- a root of read-only folders, `/dev/null` and the like; `/tmp`, in memory, of limited size, is all that can be written;
- an unprivileged user without any capability, and no way to gain one; a few system calls are forbidden;
- limits on time, on CPU time, on the memory of each process and of all together with their files, page tables and
  sockets, on processes, on the size of a file and on the output that is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

NOBODY = 65534
POLL_SECONDS = 0.02
WORK = "/tmp"
DEVICES = ("null", "full", "random", "urandom")
"""Not zero: a shared map of it is memory that belongs to no process."""

CLONE_NEWUSER = 0x10000000
OTHER_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Mount, cgroup, UTS, IPC, pid, network (linux/sched.h)."""

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
READ_ONLY = 1 | MS_NOSUID | MS_NODEV
"""MOUNT_ATTR_RDONLY, _NOSUID and _NODEV have the values of the mount flags."""

AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_SETATTR = 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
SECCOMP_MODE_FILTER = 2
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FORBIDDEN_CALLS = {
    "x86_64": (29, 64, 68, 101, 240, 248, 249, 250, 298, 300, 304, 310, 311, 319, 321, 323, 425, 447),
    "aarch64": (194, 190, 186, 117, 180, 217, 218, 219, 241, 262, 265, 270, 271, 279, 280, 282, 425, 447),
}
"""shmget, semget, msgget, ptrace, mq_open, add_key, request_key, keyctl, perf_event_open, fanotify_init,
open_by_handle_at, process_vm_readv, process_vm_writev, memfd_create, bpf, userfaultfd, io_uring_setup, memfd_secret:
memory that belongs to no process could not be counted, and the others widen the kernel's surface."""
SOCKET, SOCKETPAIR, MMAP = {"x86_64": (41, 53, 9), "aarch64": (198, 199, 222)}.get(os.uname().machine, (0, 0, 0))
ALLOWED_ARGUMENTS = ((SOCKET, 0, 0xFFFFFFFF, (2, 10)), (SOCKETPAIR, 1, 0xF, (1, 5)), (MMAP, 3, 0x21, (0, 1, 0x20)))
"""Call, which argument, the bits that count, what they may be.

Sockets are of the internet, of which this namespace has none: a socket of another family reaches the machine (vsock),
or a file (unix) that lies in a readable folder. Pairs of unix sockets are streams, which cannot be connected anew.
Memory is not shared (1) without a file (0x20): who maps it need not be who is counted.
"""
CAPABILITY_VERSION = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, action: str) -> None:
    """Raises an OSError that names the action where a call of the C library has failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{action}: {os.strerror(number)}")


def unshare(flags: int, what: str) -> None:
    check(libc.unshare(flags), f"unshare {what}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def make_read_only(path: str, recursive: bool) -> None:
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    arguments = (ctypes.c_long(AT_FDCWD), path.encode(), ctypes.c_long(flags), attributes, ctypes.c_long(32))
    check(libc.syscall(ctypes.c_long(MOUNT_SETATTR), *arguments), f"make {path} read-only")


def map_to_nobody(uid: int, gid: int) -> None:
    """Inside the user namespace just made, the user outside is called nobody."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)


def can_become_nobody() -> bool:
    """Whether this is root with a user nobody beside it; root alone in a namespace is an ordinary user."""
    with open("/proc/self/uid_map") as stream:
        ranges = [tuple(map(int, line.split())) for line in stream]
    return os.geteuid() == 0 and any(first <= NOBODY < first + count for first, _, count in ranges)


def enter_namespaces(as_root: bool) -> None:
    if not as_root:
        uid, gid = os.getuid(), os.getgid()
        unshare(CLONE_NEWUSER, "user namespace")
        map_to_nobody(uid, gid)
    unshare(OTHER_NAMESPACES, "mount, pid, network, IPC, UTS and cgroup namespaces")


def build_root(readable: list[str], memory: int) -> None:
    """Replaces the root by one in which `readable` can be read, `/tmp` written, and nothing else is there."""
    root = "/sys"  # a folder that every machine has and no program here needs: nothing readable can lie below it
    os.umask(0o022)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for name in ("dev", "proc", "tmp"):
        os.mkdir(f"{root}/{name}")
    mount("tmpfs", root + WORK, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={memory},nr_inodes=65536")
    for path in readable:
        _show(path, root + path)
    for name in DEVICES:
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    make_read_only(root, recursive=False)
    os.chdir(root)
    check(libc.syscall(ctypes.c_long(PIVOT_ROOT[os.uname().machine]), b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the machine's root")
    os.chdir("/")


def _show(path: str, place: str) -> None:
    if os.path.lexists(place):
        return  # below a folder that is there already
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.mkdir(place)
    else:
        open(place, "w").close()
    mount(path, place, None, MS_BIND | MS_REC)
    make_read_only(place, recursive=True)


def become_nobody() -> None:
    """Root turns into nobody, in a user namespace of its own: there the limit on processes counts only these."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl dumpable")  # else /proc/self would still be root's
    unshare(CLONE_NEWUSER, "user namespace")
    map_to_nobody(NOBODY, NOBODY)


def drop_privileges() -> None:
    """No capability now, none by starting a program or by a further namespace; no program may look into this one."""
    with open("/proc/sys/user/max_user_namespaces", "w") as stream:  # of this user namespace
        stream.write("0")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(header, nothing), "capset")
    forbid_calls()
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl dumpable")


def forbid_calls() -> None:
    """Lets the forbidden calls, and all calls of other machines' kinds, fail with EPERM (linux/seccomp.h, filter.h)."""
    machine = os.uname().machine
    load, mask, jump_if_equal, jump_if_at_least, end = 0x20, 0x54, 0x15, 0x35, 0x06
    denied, allowed = (end, 0, 0, 0x00050000 | errno.EPERM), (end, 0, 0, 0x7FFF0000)
    # Each line: instruction, lines to skip if true, lines to skip if false, operand.
    lines = [(load, 0, 0, 4), (jump_if_equal, 1, 0, AUDIT_ARCHITECTURE[machine]), denied]
    lines += [(load, 0, 0, 0), (jump_if_at_least, 0, 1, 0x40000000), denied]
    for number in FORBIDDEN_CALLS[machine]:
        lines += [(jump_if_equal, 0, 1, number), denied]
    for number, argument, bits, values in ALLOWED_ARGUMENTS:
        judged = [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, bits)]
        for value in values:
            judged += [(jump_if_equal, 0, 1, value), allowed]
        lines += [(load, 0, 0, 0), (jump_if_equal, 0, len(judged) + 1, number), *judged, denied]
    lines.append(allowed)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "prctl seccomp")


def run_all(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the commands one after the other until one fails; what came of the last one."""
    for name, text in job["files"].items():
        with open(f"{WORK}/{name}", "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
    outcome: dict[str, Any] = {}
    for command in job["commands"]:
        outcome = run(command, job)
        with contextlib.suppress(ProcessLookupError):  # where the command has left nothing behind
            os.kill(-1, signal.SIGKILL)  # from the first process of a pid namespace: all the others in it
        if outcome["status"] != "exited" or outcome["code"] != 0:
            break
    return outcome


def run(command: list[str], job: dict[str, Any]) -> dict[str, Any]:
    limits = {
        resource.RLIMIT_CPU: int(job["seconds"]) + 1,
        resource.RLIMIT_DATA: job["memory"],
        resource.RLIMIT_NPROC: job["processes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 1,  # byte: where a program takes the dumps, 0 would not keep them from it
    }

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(name, (value, value))

    deadline = time.monotonic() + job["seconds"]
    process = subprocess.Popen(
        command, cwd=WORK, env=job["environment"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=limit,
    )  # fmt: skip
    assert process.stdout is not None
    output = _Output(process.stdout.fileno(), job["output_bytes"])
    status, next_look = "running", 0.0
    while status == "running":
        output.wait(POLL_SECONDS)
        now = time.monotonic()
        if process.poll() is not None:
            status = "exited"
        elif now > deadline:
            status = "timeout"
        elif now > next_look:
            next_look = now + POLL_SECONDS
            status = "memory" if used_memory(job["of_socket"]) > job["memory"] else status
    output.wait(0)
    return {"status": status, "code": process.returncode, "output": output.kept.decode("utf-8", "replace")}


class _Output:
    """What a program prints: the first bytes are kept, the others read and dropped."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self.descriptor, self.limit, self.kept, self.open = descriptor, limit, bytearray(), True

    def wait(self, seconds: float) -> None:
        """Takes what is there, or waits so long for some; ends this process where nobody waits for its answer."""
        watched = [sys.stdin.fileno(), *([self.descriptor] if self.open else [])]
        ready = select.select(watched, [], [], seconds)[0]
        if sys.stdin.fileno() in ready:
            os._exit(1)
        if self.descriptor in ready:
            found = os.read(self.descriptor, 65536)
            self.kept += found[: self.limit - len(self.kept)]
            self.open = bool(found)


def used_memory(of_socket: int) -> int:
    """Bytes that all processes but this one hold in memory, with their page tables, the files in `/tmp`, which are in
    memory, too, and `of_socket` for each of their sockets, for what can wait in it to be read."""
    files = os.statvfs(WORK)
    total = (files.f_blocks - files.f_bfree) * files.f_frsize
    with open("/proc/net/sockstat") as stream:
        total += int(stream.readline().split()[2]) * of_socket
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/status") as stream:
                    kept = dict(line.split(":", 1) for line in stream)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            total += sum(int(kept.get(key, "0").split()[0]) << 10 for key in ("VmRSS", "VmPTE"))
    return total


def answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def inside(job: dict[str, Any], as_root: bool) -> None:
    """The first process of the new namespaces."""
    try:
        build_root(job["readable"], job["memory"])
        if as_root:
            become_nobody()
        drop_privileges()
    except (OSError, KeyError) as error:
        answer({"refused": str(error)})
        return
    try:
        answer(run_all(job))
    except OSError as error:
        answer({"failed": str(error)})


def main() -> None:
    job = json.loads(sys.stdin.readline())
    as_root = can_become_nobody()
    try:
        with open("/proc/sys/net/core/wmem_max") as stream:
            job["of_socket"] = 2 * int(stream.read())  # as the kernel counts; a new namespace may not show the number
        enter_namespaces(as_root)
    except OSError as error:
        answer({"refused": str(error)})
        return
    child = os.fork()
    if child == 0:
        try:
            inside(job, as_root)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
