"""What this machine is: processor, memory, GPUs, room on the disk, packages, and whether Ray and the hub answer."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

import fusionx
from fusionx.contract.cpu_dtypes import instruction_for
from fusionx.contract.files.storage import is_local, plain
from fusionx.eval.report.tables.cells import bytes_text
from fusionx.pipelines.config import ExecutorConfig
from fusionx.pipelines.preflight.finding import Finding

_SECONDS = 3.0
_PINS = Path(fusionx.__file__).parent / "constraints.txt"
"""The versions that the tests run with."""
_SHOWN = ("torch", "transformers", "tokenizers", "ray", "datasets")


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine or of the container that this runs in, and of each GPU."""

    ram: int
    gpus: tuple[int, ...]


def memory_here() -> Memory:
    import torch

    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        ram = min(ram, int(limit.read_text()))
    gpus = (torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    return Memory(ram, tuple(gpus))


def machine_findings(memory: Memory) -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = instruction_for("bfloat16", torch.cpu.get_capabilities())
    yield Finding(
        "ok",
        "CPU",
        f"{_processor()}, {cores} cores; bfloat16 "
        + (f"by {fast}" if fast else "is not multiplied by itself, models stored in it run in float32"),
    )
    yield Finding("ok", "memory", bytes_text(memory.ram))
    for number, size in enumerate(memory.gpus):
        bf16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
        yield Finding("ok", f"GPU {number}", f"{torch.cuda.get_device_name(number)}, {bytes_text(size)}{bf16}")
    if not memory.gpus:
        yield Finding("ok", "GPU", "none; everything runs on the CPU")


def version_findings() -> Iterator[Finding]:
    """Python and the packages: too old is a problem, another version than the tests' a warning."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    if python not in SpecifierSet(metadata("fusionx")["Requires-Python"]):
        needed = metadata("fusionx")["Requires-Python"]
        yield Finding("problem", "Python", f"{python}, expected {needed}", "make an environment with that Python")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", _PINS.read_text(), re.MULTILINE))
    pinned = {name.lower().replace("_", "-"): pin for name, pin in pins.items()}
    shown = [f"Python {python}"]
    for requirement in map(Requirement, requires("fusionx") or []):
        if requirement.marker is not None:  # of an extra
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            optional = requirement.name in ("ray", "datasets")  # a trainer's machine needs neither
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("warning" if optional else "problem", requirement.name, "not installed", remedy)
            continue
        pin = pinned.get(requirement.name.lower().replace("_", "-"))
        if not requirement.specifier.contains(found, prereleases=True):
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding("problem", requirement.name, f"{found}, expected {requirement.specifier}", remedy)
        elif pin is not None and pin.partition("+")[0] != found.partition("+")[0]:
            remedy = f"pip install {requirement.name}=={pin}, or go on at your own risk"
            yield Finding("warning", requirement.name, f"{found}; the tests run with {pin}", remedy)
        elif requirement.name in _SHOWN:
            shown.append(f"{requirement.name} {found}")
    yield Finding("ok", "packages", ", ".join(shown))


def disk_finding(output: str, needed: int) -> Finding:
    """Room where the output goes, beside the bytes that trainings leave there."""
    if not is_local(output):
        return Finding("ok", "disk", f"{output} is an object store")
    folder = Path(plain(output)).absolute()
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    said = f"{bytes_text(free)} free at {there}; models and checkpoints take up to {bytes_text(needed)}"
    said += ", shards as `fusionx plan` measures"
    if not os.access(there, os.W_OK):
        return Finding("problem", "disk", f"{there} cannot be written to", "choose another output")
    if needed > free:
        return Finding(
            "problem", "disk", said, "free some space, choose another output, or train fewer methods and seeds"
        )
    return Finding("ok", "disk", said)


def ray_finding(config: ExecutorConfig) -> Finding:
    if config.kind == "inline":
        return Finding("ok", "Ray", "not used: executor.kind is inline")
    if find_spec("ray") is None:
        remedy = "pip install 'ray[data]', or set executor.kind to inline"
        return Finding("problem", "Ray", "not installed, and executor.kind is ray", remedy)
    if config.address is None:
        return Finding("ok", "Ray", "a local one is started when the first stage begins")
    address = _address(config.address)
    if address is None:
        remedy = "start one with `ray start --head`, or name its host:port in executor.address"
        return Finding("problem", "Ray", f"no cluster is found by the address {config.address}", remedy)
    try:
        socket.create_connection(address, timeout=_SECONDS).close()
    except OSError as error:
        remedy = "check executor.address, and that this machine reaches the head's port"
        return Finding("problem", "Ray", f"{address[0]}:{address[1]} does not answer: {error}", remedy)
    return Finding("ok", "Ray", f"{address[0]}:{address[1]} answers")


def _address(stated: str) -> tuple[str, int] | None:
    """Host and port; `auto` is looked up as ray does: RAY_ADDRESS, then the cluster started on this machine."""
    if stated == "auto":
        started = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
        stated = os.environ.get("RAY_ADDRESS") or (started.read_text().strip() if started.is_file() else "")
    host, _, port = stated.removeprefix("ray://").rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
