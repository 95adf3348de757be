"""What a finished training leaves to read: result.json, the mark, and log.jsonl. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.errors import DataError
from contract.storage import write_bytes
from train.config import TrainJob

RESULT = "result.json"


def write_result(output: Path, result: dict[str, Any]) -> None:
    write_bytes(output / RESULT, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())


def finished_result(job: TrainJob) -> dict[str, Any] | None:
    """The result in the job's folder, if it is this job's.

    Raises:
        DataError: the folder holds the result of a training with another config, data or target.
    """
    path = Path(job.output) / RESULT
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    if result["job"] == job.digest():
        return result
    changed = [key for key, value in job.content().items() if result["config"].get(key) != value]
    raise DataError(
        "A folder holds the result of another training.",
        file=path,
        field=", ".join(changed),
        found="; ".join(f"{result['config'].get(key)}" for key in changed),
        expected="; ".join(f"{job.content()[key]}" for key in changed),
        remedy="delete the folder, choose another output, or run with --overwrite",
    )


def read_log(output: Path) -> list[dict[str, Any]]:
    with open(output / "log.jsonl") as stream:
        return [json.loads(line) for line in stream]
