"""Memory of this process, and the peak of a piece of work in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_of_a_process(module: str, function: str, *arguments: object) -> float:
    """What `module.function(*arguments)` prints of its own peak, in a fresh process: a peak never falls.

    The function measures itself with `resident`, and returns megabytes; arguments are plain values.
    """
    script = f"from {module} import {function}; print({function}(*{arguments!r}))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def resident(field: str) -> float:
    """Megabytes now (VmRSS) or at most so far (VmHWM). Not `getrusage`: its peak begins with the parent process's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024 / 1e6
