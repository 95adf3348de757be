"""`fusionx run --dry-run`: which commands the run consists of, and what each of them would make; makes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.pipeline import Pipeline
from fusionx.pipelines.status import StageStatus, status


def dry_run(pipeline: Pipeline) -> Iterator[str]:
    """A line for each step in the order of the run: what is to be made, and the command that makes it alone.

    Raises:
        FusionXError: what `fusionx run` would refuse before its first unit.
    """
    pipeline.check()
    for found in status(pipeline):
        yield f"{found.name:<32} {_said(found, pipeline.config):<36} {_command(found.name, pipeline)}"


def _said(found: StageStatus, config: FusionConfig) -> str:
    if found.complete:
        return f"nothing, {found.done} done"
    if found.stale and found.name != "eval":
        return f"{found.stale} stale, refused without --overwrite"
    to_make = found.missing + found.damaged
    if found.name == "train" and not (to_make or found.done):
        train = config.train
        to_make = len(train.searched()) * len(train.tune) + len(train.methods) * len(train.seeds)
    done = f", {found.done} done" if found.done else ""
    return f"{to_make + found.stale} to make{done}" if to_make + found.stale else "what the steps before it give"


def _command(name: str, pipeline: Pipeline) -> str:
    stage, _, rest = name.partition("/")
    source = rest.rpartition("/")[2]
    only = f" --source {source}" if source in {model.id for model in pipeline.config.models} else ""
    return f"fusionx {stage} {pipeline.arguments}{only}"
