"""Whom a method listens to at every position of a chunk: its rule, or the network that its training exported."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import download, is_local, join
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.training_jobs import planned_jobs
from fusionx.train.config import TrainJob
from fusionx.train.state.result import finished_result

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fusionx.train.objective.selection_network import SelectionNetwork


def taught_methods(config: FusionConfig, alignment: str | None = None) -> list[str]:
    """The run's methods with a teacher, in its order; of those, the ones that read this alignment."""
    methods = {name: config.train.method(name) for name in config.train.methods}
    return [
        name for name, method in methods.items() if method.teacher != "none" and alignment in (None, method.alignment)
    ]


def finished_training(config: FusionConfig, layout: Layout, methods: list[str]) -> TrainJob | None:
    """The first finished training of the first of `methods` that has one; None where none has.

    Raises:
        DataError: the learning rate is not chosen yet, or a folder holds what belongs to another training.
    """
    jobs = planned_jobs(config, layout)
    of_methods = (job for name in methods for job in jobs if job.method_name == name)
    return next((job for job in of_methods if finished_result(job) is not None), None)


def training_of(config: FusionConfig, layout: Layout, method: str, alignment: str | None) -> TrainJob:
    """The finished training that a user names by its method.

    Raises:
        ConfigError: the run has no such method, or that has no teacher or reads another alignment.
        DataError: it has no finished training, or another's.
    """
    known = taught_methods(config, alignment)
    if method not in known:
        reads = "" if alignment is None else f" that reads the alignment '{alignment}'"
        raise ConfigError(
            f"The run has no such method with a teacher{reads}.",
            field="--method",
            found=method,
            expected=", ".join(known) or "none: train.methods has none",
        )
    job = finished_training(config, layout, [method])
    if job is None:
        raise DataError("A training has no result.", field="--method", found=method, remedy="run `fusionx train` first")
    return job


def _network(job: TrainJob) -> tuple[SelectionNetwork | None, list[str]]:
    """As its best step has it, and its candidates; None where a rule chooses. From an object store its two files alone
    are fetched."""
    from fusionx.train.state.export import ASN_CONFIG, ASN_WEIGHTS, load_asn

    if job.method.teacher != "asn":
        return None, list(job.aligned)
    if is_local(job.output):
        return load_asn(Path(job.output, "best"))
    with TemporaryDirectory() as place:
        for name in (ASN_CONFIG, ASN_WEIGHTS):
            download(join(job.output, "best", name), Path(place, name))
        return load_asn(place)


def fusion_weights(job: TrainJob, split: str, part: str, row: int) -> dict[str, npt.NDArray[np.floating]]:
    """What each candidate's distribution weighs at every position that has a next token: id -> float32 [L - 1].

    The rule, or the exported network of the training's best step, is asked as a training asks it, without a training's
    randomness.

    Args:
        part: the file's name. row: of the chunk in it.

    Raises:
        DataError: the training's shards or its export are missing or damaged.
    """
    import torch

    from fusionx.train.data.collate import collate
    from fusionx.train.data.shard_stream import ShardSet
    from fusionx.train.objective.teacher import select

    asn, candidates = _network(job)
    if asn is not None:
        asn.eval()
    shards = ShardSet(job.tokens, {name: job.aligned[name] for name in candidates}, split, job.method.k)
    index = next(number for number, entry in enumerate(shards.parts) if entry.name == part)
    sample = shards.sample(index, row)
    if len(sample.next_ids) == 0:
        return {}
    said = collate([sample], pad_id=0).candidates
    assert said is not None
    with torch.inference_mode():
        # The vocabulary's size only matters to a loss.
        weights = select(job.method, asn, said, vocab_size=int(sample.ids.max(initial=0)) + 1).weights
    return dict(zip(candidates, weights.T.numpy(), strict=True))
