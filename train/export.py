"""The exported target: an ordinary Hugging Face folder with the selection network and a model card beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from train.asn import SelectionNetwork
from train.model import Target

ASN_WEIGHTS = "asn.safetensors"
ASN_CONFIG = "asn.json"


def export(
    folder: Path, target: Target, asn: SelectionNetwork | None, candidates: list[str], card: str, tokenizer: Any
) -> None:
    """Writes model (in the dtype it was loaded from), tokenizer, ASN and card; the folder appears whole."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model: Any = target.model
    dtype = target.stored_dtype
    state = model.state_dict().items()
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state}
    model.save_pretrained(temporary, state_dict=weights)
    _state_dtype(temporary / "config.json", dtype)
    tokenizer.save_pretrained(temporary)
    if asn is not None:
        save_file({name: tensor.contiguous() for name, tensor in asn.state_dict().items()}, temporary / ASN_WEIGHTS)
        config = {"granularity": asn.granularity, "candidates": candidates}
        (temporary / ASN_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    (temporary / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _state_dtype(path: Path, dtype: torch.dtype) -> None:
    """Lets config.json state the exported dtype: `save_pretrained` writes that of the fp32 master weights."""
    config = json.loads(path.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_asn(folder: str | Path) -> tuple[SelectionNetwork, list[str]]:
    """The exported selection network and its candidates' ids, in the order of its outputs."""
    config = json.loads((Path(folder) / ASN_CONFIG).read_text())
    asn = SelectionNetwork(len(config["candidates"]), config["granularity"])
    asn.load_state_dict(load_file(Path(folder) / ASN_WEIGHTS))
    return asn, config["candidates"]


def distance_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """||after - before|| / ||before|| over all weights."""
    moved = sum(float((after[name] - before[name]).square().sum()) for name in before)
    return (moved / sum(float(tensor.square().sum()) for tensor in before.values())) ** 0.5
