"""The trials: one file damaged, read as the program reads it, and put back."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fusionx.benchmarks.damage.cost import hashing, shares
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.errors import FusionXError

Outcome = Literal["found", "made anew", "harmless", "missed"]
OUTCOMES: tuple[Outcome, ...] = ("found", "made anew", "harmless", "missed")
"""found: refused, and the error names the file. harmless: what is read is what was written (white space, in JSON).
missed: something else was read, or the reader ended in an exception that is no error of ours."""


def figures(
    flips: int = 1000, truncations: int = 200, seed: int = 0, megabytes: int = 64, kilobytes: int = 300
) -> Iterator[Figure]:
    """Flips and truncations over all kinds in turn: how many had which outcome; and what checking costs."""
    from fusionx.benchmarks.damage.kinds import kinds

    with TemporaryDirectory() as folder:
        for name, counts in trials(list(kinds(Path(folder))), flips, truncations, seed).items():
            tried = sum(counts.values())
            yield Figure("damage", name, "tried", tried, "files", n=tried)
            for outcome in OUTCOMES:
                yield Figure("damage", name, outcome, counts[outcome], "files", "tried", counts[outcome] / tried, tried)
        yield from hashing(Path(folder) / "large", megabytes)
        (Path(folder) / "cost").mkdir()
        yield from shares(Path(folder) / "cost", kilobytes)


def trials(all_kinds: list[Any], flips: int, truncations: int, seed: int) -> dict[str, Counter[Outcome]]:
    """Outcomes by kind; every kind has its turn, and of a kind its files by chance."""
    rng = random.Random(seed)
    written = {kind.name: kind.read() for kind in all_kinds}
    counts: dict[str, Counter[Outcome]] = {kind.name: Counter() for kind in all_kinds}
    for number in range(flips + truncations):
        kind = all_kinds[number % len(all_kinds)]
        file = rng.choice(kind.files)
        whole = file.read_bytes()
        file.write_bytes(_flipped(whole, rng) if number < flips else whole[: rng.randrange(len(whole))])
        try:
            counts[kind.name][_outcome(kind, file, written[kind.name])] += 1
        finally:
            file.write_bytes(whole)
    return counts


def _flipped(whole: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _outcome(kind: Any, file: Path, written: Any) -> Outcome:
    try:
        with redirect_stderr(io.StringIO()) as said:
            found = kind.read()
    except FusionXError as error:
        return "found" if file.name in str(error) else "missed"
    except Exception:
        return "missed"
    if found is None:
        return "made anew" if file.name in said.getvalue() else "missed"
    return "harmless" if found == written else "missed"
