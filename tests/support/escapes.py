"""Attempts to leave the sandbox, each a few lines of Python that end in an OSError where they are held.

`runner` is a program that carries them out one by one, in processes of their own, and prints a line of JSON: name ->
None where it was held, else what came of it. What is in `PLAIN` succeeds outside, for any user: so these are attempts.
"""

from __future__ import annotations

import os

_X86 = os.uname().machine == "x86_64"


def _number(x86_64: int, aarch64: int) -> int:
    return x86_64 if _X86 else aarch64


PLAIN: dict[str, str] = {
    "read a file outside": "return open(SECRET).read()",
    "read it through a symbolic link": "os.symlink(SECRET, HERE + '/link'); return open(HERE + '/link').read()",
    "read it through dots": "return open(HERE + '/' + '../' * 40 + SECRET).read()",
    "read it through a process's root": "return open('/proc/self/root' + SECRET).read()",
    "list a folder outside": "return os.listdir(os.path.dirname(SECRET))",
    "write a file beside it": "open(SECRET + '.new', 'w').close(); os.unlink(SECRET + '.new')",
    "change its time": "os.utime(SECRET)",
    "see the environment": "return [os.environ['FUSIONX_SECRET']][0]",
    "see a process outside": "os.kill(int(PROCESS), 0)",
    "read another's environment": "return open(f'/proc/{PROCESS}/environ').read()",
    "connect to this machine": "socket.create_connection(('127.0.0.1', int(PORT)), 2).close()",
    "send to this machine": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'a', ('127.0.0.1', int(PORT)))",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)",
    "connect to a socket in a readable folder": "socket.socket(socket.AF_UNIX).connect(SOCKET)",
    "have a unix socket": "socket.socket(socket.AF_UNIX).close()",
    "connect a pair's end anew": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].connect(SOCKET + '.datagrams')"
    ),
    "have a netlink socket": "socket.socket(16, socket.SOCK_RAW).close()",
    "share memory of no file": "mmap.mmap(-1, 1 << 20).close()",
    "share memory of zeros": "mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20).close()",
    "a file that has no name": "os.close(os.memfd_create('a'))",
    "a shared memory segment": f"return call({_number(29, 194)}, 0, 4096, 0o1600)",
    "a message queue": f"return call({_number(68, 186)}, 0, 0o1600)",
    "a set of semaphores": f"return call({_number(64, 190)}, 0, 1, 0o1600)",
    "a POSIX message queue": f"return call({_number(240, 180)}, b'fusionx-escape', 0o102, 0o600, None)",
    "be traced": f"return call({_number(101, 117)}, 0, 0, 0, 0)",
    "read another process's memory": (
        "buffer = ctypes.create_string_buffer(8)\n"
        "entry = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)\n"
        f"return call({_number(310, 270)}, os.getpid(), entry, 1, entry, 1, 0)"
    ),
    "raise the limit of core dumps": "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))",
}
"""What succeeds outside."""

HELD: dict[str, str] = {
    "write to a system folder": "open('/usr/escaped', 'w')",
    "write to the root": "open('/escaped', 'w')",
    "write a system file": "open('/etc/passwd', 'a')",
    "cut an interpreter off": "os.truncate(sys.executable, 0)",
    "make a device": "os.mknod('/tmp/device', 0o60600, os.makedev(7, 0))",
    "change a system file's mode": "os.chmod('/etc/passwd', 0o777)",
    "link a system file": "os.link('/etc/passwd', '/tmp/passwd')",
    "read through the first process's root": "return open('/proc/1/root' + SECRET).read()",
    "look at the first process's files": "return os.listdir('/proc/1/fd')",
    "look at the first process's folder": "return os.readlink('/proc/1/cwd')",
    "read the first process's memory": "open('/proc/1/mem', 'rb')",
    "trace the first process": f"call({_number(101, 117)}, 16, 1, 0, 0)",
    "see the sandbox's environment": "return open('/proc/1/environ').read()",
    "be another root": "os.chroot('/tmp')",
    "become root": "os.setuid(0)",
    "become root's group": "os.setgid(0)",
    "leave all groups": "os.setgroups([])",
    "take a capability": (
        "header, bits = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(1 << 21, 1 << 21)\n"
        f"call({_number(126, 91)}, header, bits)"
    ),
    "mount": f"call({_number(165, 40)}, b'none', b'/tmp', b'tmpfs', 0, None)",
    "mount writable": f"call({_number(165, 40)}, b'none', b'/usr', None, 32 | 4096, None)",
    "unmount": f"call({_number(166, 39)}, b'/usr', 2)",
    "open a file system": "call(430, b'tmpfs', 0)",
    "take a tree of mounts": "call(428, -100, b'/usr', 1)",
    "a user namespace": f"call({_number(272, 97)}, 0x10000000)",
    "a mount namespace": f"call({_number(272, 97)}, 0x20000)",
    "a user namespace by clone": f"call({_number(56, 220)}, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)",
    "join a namespace": f"call({_number(308, 268)}, os.open('/proc/1/ns/net', os.O_RDONLY), 0)",
    "open a file by its handle": f"call({_number(304, 265)}, -100, b'', 0)",
    "bpf": f"call({_number(321, 280)}, 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 128)",
    "io_uring": "call(425, 1, (ctypes.c_uint32 * 32)())",
    "catch page faults": f"call({_number(323, 282)}, 1)",
    "count the processor's events": f"call({_number(298, 241)}, (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0)",
    "a key": f"call({_number(248, 217)}, b'user', b'a', b'b', 1, -3)",
    "the session's keys": f"call({_number(250, 219)}, 0, -3, 1)",
    "request a key": f"call({_number(249, 218)}, b'user', b'a', None, 0)",
    "memory that the kernel does not see": "call(447, 0)",
    "watch a file system": f"call({_number(300, 262)}, 0x200, 0)",
    "read the kernel's log": f"call({_number(103, 116)}, 3, ctypes.create_string_buffer(99), 99)",
    "load a module": f"call({_number(175, 105)}, b'', 0, b'')",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "set the host's name": "socket.sethostname('escaped')",
    "set a kernel's parameter": "os.write(os.open('/proc/sys/kernel/hostname', os.O_WRONLY), b'escaped')",
    "allow namespaces again": "os.write(os.open('/proc/sys/user/max_user_namespaces', os.O_WRONLY), b'9')",
    "reach for the system request": "open('/proc/sysrq-trigger', 'w')",
    "be spared when memory ends": "os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')",
    "go first": "os.setpriority(os.PRIO_PROCESS, 0, -10)",
    "run in real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "raise the limit of processes": "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "raise the limit of files": "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))",
    "lock memory": "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 40, 1 << 40))",
    "shared memory by name": "open('/dev/shm/a', 'w')",
    "the kernel's settings": "return os.listdir('/sys') if os.path.ismount('/sys') else os.listdir('/sys/kernel')",
    "the machine's memory": "open('/dev/mem', 'rb')",
    "the machine's disks": "return [name for name in os.listdir('/dev') if name.startswith(('sd', 'vd', 'nvme'))][0]",
    "the terminal": "open('/dev/tty')",
    "graphics cards": "return [name for name in os.listdir('/dev') if name.startswith('nvidia')][0]",
    "descriptors that were left open": (
        "return [os.readlink(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd')\n"
        "        if int(number) > 3 and os.path.exists(f'/proc/self/fd/{number}')][0]"
    ),
    "connect elsewhere": "socket.create_connection(('192.0.2.1', 80), 2)",
    "connect to this machine's other address": "socket.create_connection(('::1', int(PORT)), 2)",
    "raw packets": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "calls of another kind of machine": "call(0x40000000 | 39)" if _X86 else "call(1 << 20)",
} | {
    f"a socket of family {number}": f"socket.socket({number}, {kind}).close()"
    for number, kind in ((15, 3), (17, 3), (21, 5), (29, 3), (30, 5), (31, 3), (38, 5), (40, 1), (41, 2), (42, 2),
                         (43, 1), (44, 3))
}  # fmt: skip
"""The sandbox alone holds these for every user, or they would do harm outside. Of families: key, packet, rds, can,
tipc, bluetooth, alg, vsock, kcm, qipcrtr, smc, xdp."""

ATTEMPTS = PLAIN | HELD

_HEAD = '''
import ctypes, json, mmap, os, resource, socket, sys, time

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    """A system call; whole numbers are taken as long."""
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *given)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attempt(function):
    """In a process of its own: what came of it; None where it was held."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 3)
        os.closerange(4, 256)
        try:
            outcome = repr(function())
        except (OSError, KeyError, IndexError, ValueError):
            outcome = ""
        os.write(3, outcome.encode()[:200])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    os.waitpid(child, 0)
    return found or None

'''


def runner(names: dict[str, str], **facts: str) -> str:
    """A program that makes these attempts; `facts` are names for them to use."""
    program = _HEAD + "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + "outcomes = {}\n"
    for name, text in names.items():
        body = "".join(f"    {line}\n" for line in text.splitlines())
        program += f"def tried():\n{body}outcomes[{name!r}] = attempt(tried)\n"
    return program + "print(json.dumps(outcomes))\n"
