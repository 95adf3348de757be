"""The trials: a run is killed at one place and called again; then it has to be what an uninterrupted one is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fusionx.benchmarks.crash.points import Points
from fusionx.benchmarks.crash.power import lose_power
from fusionx.benchmarks.crash.process import ended, prepare, start
from fusionx.benchmarks.crash.world import make_world
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.errors import IncompleteError

MODES = ("crash point", "power loss", "instant", "instant, command only")
"""Killed before a durable call, the whole process group; the same, and what was not flushed is lost; killed at a random
instant, the group; so killed, the command alone, whose training then has to end by itself while the next call waits."""
OUTCOMES = ("identical", "different", "left over", "done twice", "refused")
_TIMED = ("seconds", "tokens_per_s", "waiting_for_data", "mfu", "peak_memory_gb")
_UNCOMPARED = (
    "timings.json", ".lock", "report/report.md", "report/report.html", "report/results.json",
    "report/tables/report/stages.csv",
)  # fmt: skip
"""What stages took, and pages that show it; and which process held a folder last."""
_SEALS = ("checksum", "files")
"""Of logs, results and evaluations, which hold what they took: their hashes follow from that."""
_UNITS = ("part-", "result.json", "/eval/")
"""In the paths of what is one unit of work: a part, a training, an evaluation."""


@dataclass
class Trial:
    """What became of one; problems: an outcome and what shows it."""

    mode: str
    at: str
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)


def figures(
    points: int = 40,
    instants: int = 20,
    losses: int = 40,
    seed: int = 0,
    processes: int = 1,
    fsdp: int = 0,
    lora: int = 0,
) -> Iterator[Figure]:
    """Trials at `points` and `losses` of the durable calls (at all, if there are no more), and at random instants.

    Args:
        processes: of a training. fsdp: 1: its weights are divided over them. lora: the rank of the adapters that it
            trains; 0: all weights.

    Raises:
        IncompleteError: at the end, if any run was not what an uninterrupted one is.
    """
    prepare()
    with TemporaryDirectory(prefix="fusionx-crash-") as folder:
        training: dict[str, Any] = {"run": {"devices": processes, "shards": "fsdp" if fsdp else "none"}}
        if lora:
            training["optimizer"] = {"lora": {"r": lora}}
        bench = Bench(Path(folder), seed, training)
        yield Figure("crash", "uninterrupted", "durable calls", bench.calls, "calls")
        yield Figure("crash", "uninterrupted", "time", bench.seconds, "s", n=2)
        counts = dict(zip(MODES, (points, losses, instants - instants // 2, instants // 2), strict=True))
        failed = 0
        for mode, count in counts.items():
            found: Counter[str] = Counter()
            seconds: list[float] = []
            for trial in bench.trials(mode, count):
                problems = [f"{outcome}: {shown}" for outcome, shown in trial.problems]
                said = "\n  ".join(problems or ["identical"])
                print(f"{trial.mode}, {trial.at}, {trial.seconds:.0f} s: {said}", file=sys.stderr, flush=True)
                found.update({outcome for outcome, _ in trial.problems} or {"identical"})
                failed += bool(trial.problems)
                seconds.append(trial.seconds)
            yield Figure("crash", mode, "tried", len(seconds), "kills", n=len(seconds))
            for outcome in OUTCOMES if seconds else ():
                share = found[outcome] / len(seconds)
                yield Figure("crash", mode, outcome, found[outcome], "kills", "tried", share, len(seconds))
        if failed:
            raise IncompleteError(
                "After a kill the same command did not make the same.", found=f"{failed} trials, told above"
            )


class Bench:
    """The world, what an uninterrupted run makes of it, and trials against that.

    Raises:
        AssertionError: two uninterrupted runs differ, or one fails: nothing can be compared.
    """

    def __init__(self, folder: Path, seed: int, training: dict[str, Any]) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self.config = make_world(folder, training)
        self.output = folder / "out"
        self._clear()
        code, self.calls = self._run()
        assert code == 0, self._printed.read_text()
        first = contents(self.output)
        self._clear()
        started = time.monotonic()
        code, _ = self._run()
        self.seconds = time.monotonic() - started
        self.whole = contents(self.output)
        different = [name for name in first.keys() | self.whole.keys() if first.get(name) != self.whole.get(name)]
        assert not different, f"two uninterrupted runs differ in {different}"

    def trials(self, mode: str, count: int) -> Iterator[Trial]:
        if mode.startswith("instant"):
            for _ in range(count):
                yield self._at_an_instant(mode, self._rng.uniform(0, self.seconds))
            return
        count = min(count, self.calls)
        offset = self._rng.random()
        for number in range(count):  # evenly, so that no part of the run is left out
            yield self._at_a_point(mode, 1 + int((number + offset) * self.calls / count))

    def _at_a_point(self, mode: str, number: int) -> Trial:
        self._clear()
        started = time.monotonic()
        code, _ = self._run(number)
        missed = "" if code == -signal.SIGKILL else "never reached, "
        trial = Trial(mode, f"call {number} of {self.calls}, {missed}after {self._last_call()}")
        if mode == "power loss":
            lose_power(self.output, self._journal, self._rng)
        return self._called_again(trial, started)

    def _at_an_instant(self, mode: str, seconds: float) -> Trial:
        self._clear()
        started = time.monotonic()
        process = start(self.config, self._points(0), self._printed)
        kill: Callable[[int, int], None] = os.kill if mode.endswith("only") else os.killpg
        timer = threading.Timer(seconds, kill, (process, signal.SIGKILL))
        timer.start()
        ended(process)
        timer.cancel()
        return self._called_again(Trial(mode, f"{seconds:.2f} s, after {self._last_call()}"), started)

    def _called_again(self, trial: Trial, started: float) -> Trial:
        done = {name for name, content in contents(self.output).items() if self.whole.get(name) == content}
        self._journal.unlink(missing_ok=True)
        code, _ = self._run()
        trial.seconds = time.monotonic() - started
        if code != 0:
            trial.problems.append(("refused", self._printed.read_text()[-1500:]))
            return trial
        found = contents(self.output)
        for name in sorted(found.keys() | self.whole.keys()):
            if name not in self.whole:
                trial.problems.append(("left over", name))
            elif found.get(name) != self.whole[name]:
                trial.problems.append(("different", name))
        made = {os.path.relpath(call[1], self.output) for call in self._calls() if call[0] == "rename"}
        trial.problems += [("done twice", name) for name in sorted(made & done) if _is_unit(name)]
        return trial

    def _run(self, kill_at: int = 0) -> tuple[int, int]:
        """Exit code and durable calls."""
        points = self._points(kill_at)
        return ended(start(self.config, points, self._printed)), points.count

    def _points(self, kill_at: int) -> Points:
        return Points(self.output, self._journal, self._folder / "kept", kill_at)

    def _clear(self) -> None:
        for folder in (self.output, self._folder / "kept"):
            shutil.rmtree(folder, ignore_errors=True)
        (self._folder / "kept").mkdir()
        for file in (self._journal, self._printed):
            file.unlink(missing_ok=True)

    @property
    def _journal(self) -> Path:
        return self._folder / "journal"

    @property
    def _printed(self) -> Path:
        return self._folder / "printed"

    def _calls(self) -> list[Any]:
        return [json.loads(line) for line in self._journal.read_text().splitlines()] if self._journal.exists() else []

    def _last_call(self) -> str:
        calls = self._calls()
        return " ".join([calls[-1][0], os.path.relpath(calls[-1][1], self.output)]) if calls else "nothing"


def _is_unit(name: str) -> bool:
    return any(sign in f"/{name}" for sign in _UNITS)


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file below `root`, without what differs between two equal runs; by path."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file():
            compared = not name.endswith(_UNCOMPARED)
            found[name] = hashlib.sha256(_untimed(path)).hexdigest() if compared else ""
    return {name: content for name, content in found.items() if not name.endswith(".lock")}


def _untimed(path: Path) -> bytes:
    if path.name not in ("log.jsonl", "result.json") and "eval" not in path.parts:
        return path.read_bytes()
    text = path.read_text()
    records = text.splitlines() if path.name == "log.jsonl" else [text]
    try:
        plain = [_without(json.loads(record), (*_TIMED, *_SEALS)) for record in records]
    except ValueError:  # cut short: it equals none
        return path.read_bytes()
    return json.dumps(plain, sort_keys=True).encode()


def _without(value: Any, names: tuple[str, ...]) -> Any:
    return {key: item for key, item in value.items() if key not in names} if isinstance(value, dict) else value
