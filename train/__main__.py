"""`python -m train JOB.json`: runs one training job. Also what torchrun starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from contract.config import parse_config
from contract.errors import EXIT_COMPLETE, EXIT_USAGE, ConfigError, FusionXError
from train.config import TrainJob


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m train JOB.json", file=sys.stderr)
        return EXIT_USAGE
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("This trainer runs on one device.", field="WORLD_SIZE", found=os.environ["WORLD_SIZE"])
        job = parse_config(TrainJob, json.loads(Path(arguments[0]).read_text()), arguments[0])
        from train.loop import run_job

        run_job(job)
    except FusionXError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
