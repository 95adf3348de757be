"""Checkpoints: everything a training needs to go on bit-exactly, written whole, in the background, the mark last.

`checkpoints/step-00000100/` holds of every part (the target, the selection network) `<part>.safetensors`, its trained
parameters, and `<part>.optimizer.safetensors`; and state.json, the sealed mark: which job, how far, the files' hashes.
Nothing in it depends on the number of processes. No state of a random generator either: every step seeds afresh.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fusionx.contract.config import changed_fields, digest_of
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.contract.files.sealed import check_files, hashes_of, read_sealed, write_sealed
from fusionx.contract.files.storage import explained, failure
from fusionx.train.distributed.collectives import by_first_rank
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.state_dicts import full_optimizer_state, full_state_dict, load_optimizer_state, load_parameters

_MARK = "state.json"
_OTHER_JOB = "its config, data or target changed: delete the folder, or run with --overwrite"

Parts = dict[str, tuple[nn.Module, Optimizer]]


@dataclass
class TrainState:
    """Where a training stands; the data's position follows from `step`.

    tokens: seen so far. log: length and hash of the log at this step (`LogMark`). start, best, last bits per byte:
    validation's on the trained domains. skipped: steps left out because they were not finite. window: running sums of
    the selection log. world_size: processes that saved it.
    """

    step: int = 0
    tokens: int = 0
    log: list[Any] = field(default_factory=list)
    start_bits_per_byte: float = float("inf")
    best_step: int = 0
    best_bits_per_byte: float = float("inf")
    last_bits_per_byte: float = float("inf")
    skipped: int = 0
    window: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1


class Checkpointer:
    """The checkpoints of one job.

    Args:
        folder: where they lie; on several machines a folder that all of them see.
        content: the job's `content()`; a checkpoint of another is refused.
        parts: name -> module (plain, DDP, or FSDP2) and its optimizer.
        keep: how many of the finished ones stay. writer: what writes them.
    """

    def __init__(
        self, folder: Path, content: dict[str, Any], parts: Parts, keep: int, writer: BackgroundWriter
    ) -> None:
        self._folder = folder
        self._content = content
        self._parts = parts
        self._keep = keep
        self._writer = writer

    def save(self, state: TrainState) -> None:
        """Copies everything to the CPU and writes it in the background. Every rank must call it.

        Raises:
            DataError: what was written before this one could not be.
        """
        by_first_rank(self._writer.wait)
        files: dict[str, dict[str, Tensor]] = {}
        for name, (module, optimizer) in self._parts.items():
            files[_weights(name)] = full_state_dict(module, trainable_only=True)
            files[_moments(name)] = full_optimizer_state(module, optimizer)
        if _rank() == 0:
            mark = {
                "job": digest_of(self._content),
                "config": self._content,
                "state": {**asdict(state), "world_size": _world_size()},
                "learning_rates": {
                    name: [float(group["lr"]) for group in optimizer.param_groups]
                    for name, (_, optimizer) in self._parts.items()
                },
            }
            self._writer.submit(partial(self._write, state.step, files, mark))

    def load(self, path: Path | None = None) -> TrainState | None:
        """Restores the checkpoint at `path`, or the latest one, in place; None when there is none. Every rank calls it.

        Of the latest ones a damaged one is passed over, which is said. Going on from an earlier one drops those that
        came after it in this folder: they belong to a log that is cut.

        Raises:
            DataError: it belongs to another job (the fields that differ are named), is not there, or is damaged (of the
                latest ones, all are).
        """
        found = by_first_rank(lambda: self._find(path))
        if found is None:
            return None
        chosen, mark = found
        for name, (module, optimizer) in self._parts.items():
            with _reading(chosen / _weights(name)) as weights:
                load_parameters(module, weights.get_tensor)
            with _reading(chosen / _moments(name)) as moments:
                load_optimizer_state(module, optimizer, list(moments.keys()), moments.get_tensor)
            for group, rate in zip(optimizer.param_groups, mark["learning_rates"][name], strict=True):
                group["lr"] = rate
        return TrainState(**mark["state"])

    def delete_all(self) -> None:
        """For a job that is finished, once its result is written."""
        if _rank() == 0:
            self._writer.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, step: int, files: dict[str, dict[str, Tensor]], mark: dict[str, Any]) -> None:
        self._remove_leftovers()
        with atomic_folder(self._folder / f"step-{step:08d}") as folder:
            for name in list(files):
                save_file(files.pop(name), folder / name)  # its memory is free again once it is written
            write_sealed(folder / _MARK, {**mark, "files": hashes_of(folder.iterdir(), folder)})
        for old in finished_checkpoints(self._folder)[: -self._keep]:
            _delete(old)

    def _remove_leftovers(self) -> None:
        for hidden in list(self._folder.glob(".step-*.*")):
            recover(hidden.with_name(hidden.stem.removeprefix(".")))
        for unmarked in self._folder.glob("step-*"):
            if not (unmarked / _MARK).is_file():
                shutil.rmtree(unmarked, ignore_errors=True)

    def _find(self, path: Path | None) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to load and its mark, verified."""
        self._remove_leftovers()
        finished = finished_checkpoints(self._folder)
        if path is None and not finished:
            return None
        chosen, mark = self._latest(finished) if path is None else (path.resolve(), self._verified(path.resolve()))
        saved_by = mark["state"]["world_size"]
        if saved_by != _world_size():
            print(
                f"[train] {chosen} was saved by {saved_by} processes, and {_world_size()} go on: the batches are the "
                "same, but sums run in another order, so the last bits will differ",
                file=sys.stderr,
                flush=True,
            )
        for later in finished:
            if later.parent.resolve() == chosen.parent and later.name > chosen.name:
                _delete(later)
        return chosen, mark

    def _latest(self, finished: list[Path]) -> tuple[Path, dict[str, Any]]:
        """The last one that is whole, and its mark."""
        damage: DamageError | None = None
        for path in reversed(finished):
            try:
                return path.resolve(), self._verified(path.resolve())
            except DamageError as error:
                damage = damage or error
                print(f"[train] a checkpoint is passed over. {error}", file=sys.stderr, flush=True)
        assert damage is not None
        raise DamageError(
            "No checkpoint of a training is whole.",
            file=damage.details["file"],
            found=damage.problem,
            remedy=f"bring the file back, or delete {finished[-1].parent}: the training begins anew",
        )

    def _verified(self, path: Path) -> dict[str, Any]:
        if not (path / _MARK).is_file():
            raise DataError("There is no such checkpoint.", file=path / _MARK, remedy="name a folder step-...")
        remedy = f"delete {path}: the run goes on from the one before it"
        mark = read_sealed(path / _MARK, remedy)
        changed = changed_fields(mark["config"], self._content)
        if changed:
            raise DataError(
                "A checkpoint belongs to another training.",
                file=path,
                field=", ".join(line.split(":")[0] for line in changed),
                found="; ".join(changed),
                remedy=_OTHER_JOB,
            )
        check_files(mark["files"], path, remedy)
        return mark


def finished_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that carry their mark, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _MARK).is_file())


def _delete(checkpoint: Path) -> None:
    """The mark first: who is killed in between leaves no finished checkpoint with a part missing."""
    with explained(checkpoint, "deleted"):
        (checkpoint / _MARK).unlink()
        shutil.rmtree(checkpoint)


def _weights(part: str) -> str:
    return f"{part}.safetensors"


def _moments(part: str) -> str:
    return f"{part}.optimizer.safetensors"


def _reading(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise failure("A checkpoint cannot be read.", path, error, "every machine must see its folder") from None


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
