"""`python -m fusionx.train JOB.json [--resume CHECKPOINT]`: runs one training job.

Under torchrun or srun all processes run it together.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from fusionx.contract.config import parse_config
from fusionx.contract.errors import EXIT_COMPLETE, DataError, FusionXError, StoppedError
from fusionx.contract.files.escaping import visible
from fusionx.contract.files.storage import told_by_the_system
from fusionx.train.config import TrainJob
from fusionx.train.distributed.parent import END_WITH_PARENT, end_with_parent
from fusionx.train.distributed.ranks import is_main_process


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m fusionx.train", description="Runs one training job.")
    parser.add_argument("job", type=Path, help="the job's file, job.json in its output folder")
    parser.add_argument("--resume", type=Path, help="a checkpoint folder to go on from; else the last one")
    parser.add_argument(
        END_WITH_PARENT, type=int, nargs="?", const=0, metavar="PID", help="save and end when it is killed (Linux only)"
    )
    parser.add_argument("--stopped-mark", type=Path, help="a file to create once a stop signal was obeyed")
    options = parser.parse_args(arguments)
    if options.end_with_parent is not None:
        end_with_parent(options.end_with_parent)
    try:
        job = parse_config(TrainJob, _read(options.job), options.job)
        from fusionx.train.loop.trainer import run_job

        run_job(job, options.resume)
    except FusionXError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        if isinstance(error, StoppedError) and options.stopped_mark is not None and is_main_process():
            options.stopped_mark.touch()
        return error.exit_code
    except OSError as error:
        told = told_by_the_system(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return told.exit_code
    return EXIT_COMPLETE


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            "A job's file is no JSON.", file=path, found=str(error), remedy="let `fusionx train` write it"
        ) from None


if __name__ == "__main__":
    # Until the training listens for it, Ctrl-C ends this like the other stop signals do, not as a failure.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
