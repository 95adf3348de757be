"""What each stage of a run took: `timings.json`, which the report reads."""

from __future__ import annotations

import json

from fusionx.contract.files.storage import exists, read_bytes, write_bytes
from fusionx.pipelines.layout import Layout


def note_timing(layout: Layout, stage: str, part: str, numbers: dict[str, float]) -> None:
    """Records what the latest call that did work took; a call that found everything done leaves no trace."""
    timings = read_timings(layout)
    timings.setdefault(stage, {})[part] = {key: round(value, 3) for key, value in numbers.items()}
    write_bytes(layout.timings, (json.dumps(timings, indent=1, sort_keys=True) + "\n").encode())


def read_timings(layout: Layout) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(read_bytes(layout.timings)) if exists(layout.timings) else {}
