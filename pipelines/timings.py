"""What each stage of a run took: `timings.json`, which the report reads."""

from __future__ import annotations

import sys

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.contract.files.storage import exists
from fusionx.pipelines.layout import Layout


def note_timing(layout: Layout, stage: str, part: str, numbers: dict[str, float]) -> None:
    """Records what the latest call that did work took; a call that found everything done leaves no trace."""
    timings = read_timings(layout)
    timings.setdefault(stage, {})[part] = {key: round(value, 3) for key, value in numbers.items()}
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
