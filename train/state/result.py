"""What a finished training leaves to read: result.json, the sealed mark, and log.jsonl. Needs no torch."""

from __future__ import annotations

import json
import os
import shutil
from glob import glob
from pathlib import Path
from typing import Any

from fusionx.contract.config import changed_fields
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import FOLDER_SEAL, hashes_of, read_sealed, verified, write_sealed
from fusionx.contract.files.storage import exists, explained, is_local, join
from fusionx.train.config import TrainJob
from fusionx.train.distributed.ranks import is_main_process

RESULT = "result.json"
LOG = "log.jsonl"
EXPORTS = ("best", "last")
_REMEDY = "bring the file back, or run with --overwrite: the training is carried out again"


def write_result(output: Path, result: dict[str, Any]) -> None:
    """The mark of a finished training, which vouches for its log, too: that is on the disk before."""
    with explained(output / LOG, "written"), (output / LOG).open("rb") as log:
        os.fsync(log.fileno())
    write_sealed(output / RESULT, {**result, "files": hashes_of([output / LOG], output)})


def finished_result(job: TrainJob) -> dict[str, Any] | None:
    """The result in the job's folder, if it is this job's. The exported models vouch for themselves (`sealed.json`).

    Of a folder in an object store, which is copied here before it is used, only the result itself is read.

    Raises:
        DataError: the folder holds the result of a training with another config, data or target; DamageError: result or
            log changed since they were written.
    """
    path = join(job.output, RESULT)
    if not exists(path):
        return None
    result = verified(path, _REMEDY) if is_local(path) else read_sealed(path, _REMEDY)
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
    """Whether the job's folder holds what belongs to another training, or a finished one that is not whole any more."""
    output = Path(job.output)
    try:
        if finished_result(job) is not None:
            for name in EXPORTS:
                verified(output / name / FOLDER_SEAL, _REMEDY)
    except DataError:
        return True
    marks = [output / name for name in glob("checkpoints/step-*/state.json", root_dir=output)]
    return any(_job_of(mark) not in (None, job.digest()) for mark in marks)


def _job_of(mark: Path) -> str | None:
    """None: there is no such file, or no more, since another process deletes the folder; or it is damaged."""
    try:
        return str(read_sealed(mark, _REMEDY)["job"]) if mark.is_file() else None
    except DamageError:  # for whoever loads it to refuse: an earlier one may be whole
        return None


def read_log(output: Path) -> list[dict[str, Any]]:
    """The records of a training; those of a finished one are what `finished_result` has checked.

    Raises:
        DataError: it cannot be read.
    """
    path = output / LOG
    with explained(path, "read"), path.open(encoding="utf-8") as stream:
        try:
            return [json.loads(line) for line in stream]
        except ValueError as error:
            raise DamageError("A log is damaged.", file=path, found=str(error), remedy=_REMEDY) from None
