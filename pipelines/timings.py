"""What each stage of a run took: `timings.json`, which the report reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fusionx.contract.errors import DamageError, FusionXError, IncompleteError, StoppedError
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.contract.files.storage import exists
from fusionx.pipelines.layout import Layout

_UNFINISHED = "unfinished_calls"


@contextmanager
def timed(layout: Layout, stage: str, part: str, notes: bool = True) -> Iterator[dict[str, float]]:
    """Notes what the work inside took, with the numbers that it puts into the dict; nothing where it puts none.

    Calls that broke off count with the one that ends the work. One that was refused leaves no trace.

    Args: notes: of several processes one does.
    """
    numbers: dict[str, float] = {}
    started = time.monotonic()
    try:
        yield numbers
    except BaseException as error:
        worked = isinstance(error, IncompleteError | StoppedError) or not isinstance(error, FusionXError)
        if notes and worked:
            with suppress(FusionXError, OSError):  # whatever broke the work off is what is told
                _note(layout, stage, part, {"seconds": time.monotonic() - started}, unfinished=True)
        raise
    if notes and numbers:
        _note(layout, stage, part, {"seconds": time.monotonic() - started, **numbers}, unfinished=False)


def _note(layout: Layout, stage: str, part: str, numbers: dict[str, float], unfinished: bool) -> None:
    timings = read_timings(layout)
    parts = timings.setdefault(stage, {})
    before = parts.get(part, {})
    calls = before.get(_UNFINISHED, 0)
    if calls:
        numbers["seconds"] += before["seconds"]
    if unfinished:
        numbers[_UNFINISHED] = calls + 1
    parts[part] = {key: round(value, 3) for key, value in numbers.items()}
    write_sealed(layout.timings, {name: timings[name] for name in sorted(timings)})


def read_timings(layout: Layout) -> dict[str, dict[str, dict[str, float]]]:
    """By stage and part; nothing where there is no file, or a damaged one, which is said: no result hangs on it."""
    if not exists(layout.timings):
        return {}
    try:
        return read_sealed(layout.timings, "delete it: the next stages note their times anew")
    except DamageError as error:
        print(f"What earlier stages took is not known. {error}", file=sys.stderr, flush=True)
        return {}
