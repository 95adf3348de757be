"""What a finished training leaves to read: result.json, the mark, and log.jsonl. Needs no torch."""

from __future__ import annotations

import json
import shutil
from glob import glob
from pathlib import Path
from typing import Any

from fusionx.contract.config import changed_fields
from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import write_bytes
from fusionx.train.config import TrainJob
from fusionx.train.distributed.ranks import is_main_process

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
    changed = changed_fields(result["config"], job.content())
    raise DataError(
        "A folder holds the result of another training.",
        file=path,
        field=", ".join(line.split(":")[0] for line in changed),
        found="; ".join(changed),
        remedy="delete the folder, choose another output, or run with --overwrite",
    )


def discard_checkpoints(job: TrainJob) -> None:
    """Of a finished job, whose process was killed before it could: the leading process deletes them."""
    if is_main_process():
        shutil.rmtree(Path(job.output) / "checkpoints", ignore_errors=True)


def is_stale(job: TrainJob) -> bool:
    """Whether the job's folder holds the result or a checkpoint of another training."""
    marks = [RESULT, *glob("checkpoints/step-*/state.json", root_dir=job.output)]
    return any(_job_of(Path(job.output) / mark) not in (None, job.digest()) for mark in marks)


def _job_of(mark: Path) -> str | None:
    """None: there is no such file, or no more, since another process deletes the folder."""
    try:
        return json.loads(mark.read_text())["job"]
    except FileNotFoundError:
        return None


def read_log(output: Path) -> list[dict[str, Any]]:
    with open(output / "log.jsonl") as stream:
        return [json.loads(line) for line in stream]
