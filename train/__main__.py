"""`python -m train JOB.json [--resume CHECKPOINT]`: runs one training job; under torchrun or srun, with the others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from contract.config import parse_config
from contract.errors import EXIT_COMPLETE, FusionXError
from train.config import TrainJob


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train", description="Runs one training job.")
    parser.add_argument("job", type=Path, help="the job's file, job.json in its output folder")
    parser.add_argument("--resume", type=Path, help="a checkpoint folder to go on from; else the last one")
    options = parser.parse_args(arguments)
    try:
        job = parse_config(TrainJob, json.loads(options.job.read_text()), options.job)
        from train.loop import run_job

        run_job(job, options.resume)
    except FusionXError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
