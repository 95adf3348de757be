"""Hostile configs: the shipped ones and one of tiny models, changed at random, are read, checked as a run checks them,
and some of them run. Each has to end in an error of ours or be used; in a traceback none.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import fusionx
from fusionx.benchmarks.crash.process import ended, forked, prepare, run
from fusionx.benchmarks.crash.world import make_world
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.config import load_config
from fusionx.contract.errors import FusionXError, IncompleteError
from fusionx.pipelines.config import FusionConfig

_SHIPPED = Path(fusionx.__file__).parent / "configs"
_LONGEST_ERROR = 4000
"""Characters; a config has some hundred fields, each of which may be wrong."""
_PATIENCE = 120
"""Seconds. A config may ask for a run of any length."""
_Node = dict[Any, Any] | list[Any]
_Judge = Callable[[Path], tuple[str, str]]
"""A config file's outcome, and what is wrong with that, if anything."""
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, -(2**70), 0.0, 0.5, -0.5, 1e-300, 1e308, float("inf"),
    float("nan"), "", " ", "0", "1e5", "true", "null", "a", "ct", "fusionx", "target", "nowhere", "../nowhere", "a/b",
    "~x", "*", "{}", "%s", "${HOME}", "a" * 5000, "ünï", "🦊", "\u202e", "\t", "a\nb", [], [[]], [None], [1, "a"], {},
    {"a": 1}, {"": None}, {1: 2}, {"id": "x"},
)  # fmt: skip
_PIECES = (
    b"\t", b"\0", b": ", b"- ", b"&a ", b"*a", b"!!binary ", b"!!python/none ", b"'", b"{", b"\xff", b"2026-11-31",
)  # fmt: skip


def figures(mutations: int = 2000, checked: int = 200, runs: int = 40, seed: int = 0) -> Iterator[Figure]:
    """What became of them.

    Args:
        mutations: are read, of every shipped config in turn. checked: of the tiny models' config, as `fusionx run
            --dry-run` checks it, of those that can be read. runs: likewise, each for two minutes at most.

    Raises:
        IncompleteError: at the end, where one ended in a traceback, or in an error that does not say where.
    """
    prepare()
    problems: list[str] = []
    with TemporaryDirectory(prefix="fusionx-configs-") as name:
        file, output = Path(name) / "mutated.yaml", Path(name) / "out"
        tiny = yaml.safe_load(make_world(Path(name), {}).read_text())
        tiny |= {"output": str(output), "executor": {"kind": "inline"}}
        shipped = [yaml.safe_load(path.read_text()) for path in sorted(_SHIPPED.glob("*.yaml"))]

        def tried(case: str, count: int, configs: Sequence[Any], judged: _Judge) -> Iterator[Figure]:
            found: Counter[str] = Counter()
            for number in range(count):
                rng = random.Random(f"{seed}:{case}:{number}")
                file.write_bytes(mutated(configs[number % len(configs)], rng))
                while judged is not _read and not _stays_here(file, tiny):
                    file.write_bytes(mutated(configs[number % len(configs)], rng))
                shutil.rmtree(output, ignore_errors=True)
                outcome, shown = judged(file)
                found[outcome] += 1
                if shown:
                    problems.append(f"{case} {number}: {shown}\n{file.read_text(errors='replace')}")
            yield Figure("configs", case, "tried", count, "configs")
            for outcome, times in sorted(found.items()):
                yield Figure("configs", case, outcome, times, "configs", "tried", times / count, count)

        yield from tried("read", mutations, [*shipped, tiny], _read)
        yield from tried("checked", checked, [tiny], partial(_run, dry=True))
        yield from tried("run", runs, [tiny], partial(_run, dry=False))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise IncompleteError("A config ended in a traceback, or in no good error.", found=f"{len(problems)}, above")


def _stays_here(file: Path, tiny: dict[str, Any]) -> bool:
    """Whether it can be read, and writes where it did, without Ray."""
    try:
        config = load_config(FusionConfig, file)
    except FusionXError:
        return False
    return config.output == tiny["output"] and config.executor.kind == "inline"


def mutated(config: Any, rng: random.Random) -> bytes:
    """The config as YAML, changed in one to three places; one in six of them as text, so that it may be no YAML."""
    tree = copy.deepcopy(config)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_CHANGES)(list(_places(tree)), rng)
    data = bytearray(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode())
    if rng.random() < 1 / 6:
        _damage(data, rng)
    return bytes(data)


def _places(node: Any) -> Iterator[tuple[_Node, Any]]:
    """Every mapping or list with each of its keys or places."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _replace(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    node, key = rng.choice(places)
    node[key] = copy.deepcopy(rng.choice(_VALUES))


def _scale(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    node, key = rng.choice([(node, key) for node, key in places if isinstance(node[key], int | float)] or places)
    node[key] = node[key] * rng.choice((-1, 0, 2, 1000, 0.5)) if isinstance(node[key], int | float) else [node[key]]


def _remove(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    node, key = rng.choice(places)
    del node[key]


def _rename(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    node, key = rng.choice([place for place in places if isinstance(place[0], dict)])
    name = str(key)
    at = rng.randrange(len(name) + 1)
    node[rng.choice((name[:at] + name[at + 1 :], name.upper(), f"{name}s", f" {name}", at))] = node.pop(key)


def _copy(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    """Of one place, a subtree, over another or beside it."""
    (node, key), (other, where) = rng.choice(places), rng.choice(places)
    value = copy.deepcopy(node[key])
    if isinstance(other, list) and rng.random() < 0.5:
        other.insert(rng.randrange(len(other) + 1), value)
    else:
        other[where] = value


def _wrap(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    node, key = rng.choice(places)
    node[key] = rng.choice(([node[key]], {"id": node[key]}, str(node[key])))


_CHANGES = (_replace, _replace, _replace, _scale, _scale, _remove, _rename, _copy, _wrap)


def _damage(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    if rng.random() < 0.3:
        del data[at:]
    else:
        data[at : at + rng.randrange(3)] = rng.choice(_PIECES)


def _read(file: Path) -> tuple[str, str]:
    """Of `load_config`."""
    try:
        load_config(FusionConfig, file)
    except FusionXError as error:
        message = str(error)
        if file.name not in message or len(message) > _LONGEST_ERROR:
            return "refused", f"no good error, {len(message):,} characters: {message[:2000]}"
        return "refused", ""
    except Exception as error:
        return "traceback", repr(error)
    return "valid", ""


def _run(file: Path, dry: bool) -> tuple[str, str]:
    """Of a run, in a process of its own."""
    printed = file.with_suffix(".printed")

    def command() -> int:
        os.setpgid(0, 0)
        descriptor = os.open(printed, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        return run(file, dry)

    process = forked(command)
    timer = threading.Timer(_PATIENCE, os.killpg, (process, signal.SIGKILL))
    timer.start()
    code = ended(process)
    timer.cancel()
    said = printed.read_text(errors="replace")
    outcome = {0: "complete", 1: "incomplete", 2: "refused", -signal.SIGKILL: "still at work"}.get(code, "traceback")
    if outcome == "traceback" or "Traceback (most recent call last)" in said:
        return "traceback", f"exit code {code}: {said[-2500:]}"
    return outcome, ""
