"""Checkpoints: everything a training needs to go on bit-exactly, written whole, the mark last.

`checkpoints/step-00000100/` holds model.safetensors, asn.safetensors, optimizer.pt (optimizer and RNG tensors, read
with `weights_only`) and state.json, the mark.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from contract.errors import DataError

_MARK = "state.json"


@dataclass
class TrainState:
    """Where a training stands. `taken` is the stream's state, `log_bytes` the length of the log at this step."""

    job: str
    step: int = 0
    taken: int = 0
    log_bytes: int = 0
    best_step: int = 0
    best_bits_per_byte: float = float("inf")
    window: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    model: nn.Module,
    asn: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    """Writes `step-N` under `folder` (temporary name, rename) and deletes all but the last `keep`."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, str(temporary / "model.safetensors"))
    if asn is not None:
        save_model(asn, str(temporary / "asn.safetensors"))
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    torch.save({"optimizer": optimizer.state_dict(), "rng": rng}, temporary / "optimizer.pt")
    (temporary / _MARK).write_text(json.dumps(asdict(state), indent=1))
    for file in temporary.iterdir():  # on the disk before the name is: a machine may lose its power
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in finished_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def finished_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that carry their mark, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _MARK).is_file())


def load_checkpoint(
    folder: Path, job: str, model: nn.Module, asn: nn.Module | None, optimizer: torch.optim.Optimizer
) -> TrainState | None:
    """Restores the latest checkpoint in place; None when there is none.

    Raises:
        DataError: the checkpoint belongs to another job (config, data or target differ).
    """
    found = finished_checkpoints(folder)
    if not found:
        return None
    latest = found[-1]
    state = TrainState(**json.loads((latest / _MARK).read_text()))
    if state.job != job:
        raise DataError(
            "A checkpoint belongs to another training.",
            file=latest,
            field="job digest",
            found=state.job,
            expected=job,
            remedy="its config, data or target changed: delete the folder, or run with --overwrite",
        )
    load_model(model, str(latest / "model.safetensors"))
    if asn is not None:
        load_model(asn, str(latest / "asn.safetensors"))
    saved = torch.load(latest / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"]["cpu"])
    if "cuda" in saved["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["rng"]["cuda"])
    return state
