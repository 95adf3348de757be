"""Which of several processes this is, as torchrun or srun says it. Needs no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

MEETING = "FUSIONX_MEETING"
"""The environment variable that names one training among those whose processes meet, one after the other, in the store
that their launcher serves at MASTER_ADDR and MASTER_PORT. Without it the first process serves one itself."""


class Ranks(NamedTuple):
    """rank: among all `size` processes. local_rank: among those of this machine."""

    rank: int
    size: int
    local_rank: int


def launched_ranks() -> Ranks | None:
    """This process's place; None where it was started alone."""
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # set in a step, not in the batch script
    ):
        if int(os.environ.get(size, "1")) > 1:
            return Ranks(int(os.environ[rank]), int(os.environ[size]), int(os.environ[local]))
    return None


def is_main_process() -> bool:
    """Whether this process writes what there is to write."""
    ranks = launched_ranks()
    return ranks is None or ranks.rank == 0
