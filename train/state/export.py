"""The exported target: an ordinary Hugging Face folder with the selection network and a model card beside it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.files.sealed import check_folder, seal_folder
from fusionx.contract.files.storage import failure
from fusionx.train.config import SelectionConfig
from fusionx.train.model.target import Target
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.state.companions import copy_companions, without_extra_heads

ASN_WEIGHTS = "asn.safetensors"
ASN_CONFIG = "asn.json"


def prepared_export(
    folder: Path,
    weights: dict[str, Tensor],
    target: Target,
    asn: SelectionNetwork | None,
    candidates: list[str],
    card: str,
    tokenizer: Any,
) -> Callable[[], None]:
    """What writes model (in the dtype it was loaded from), tokenizer, ASN and card; the folder appears whole.

    It may be called in a thread beside the training. Two things must not wait until then: the ASN's copy, and the
    making of an empty model, during which transformers changes torch's default dtype for all threads.

    Args:
        weights: the target's, whole and under its own names (`full_state_dict(target.model)`, merged if it has
            adapters); nothing is read from the live model, which may be divided, adapted or quantised.

    Returns:
        A function that raises DataError where the folder cannot be written.
    """
    live: Any = target.model
    dtype, generation = target.stored_dtype, live.generation_config
    config, dropped = _plain_config(live.config, weights)
    plain, asn = _plain_model(config, dtype), copy.deepcopy(asn)

    def write() -> None:
        stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        with atomic_folder(folder) as made:
            plain.save_pretrained(made, state_dict=stored)
            if generation is not None:
                generation.to_json_file(made / "generation_config.json")
            tokenizer.save_pretrained(made)
            copy_companions(live, made)
            if asn is not None:
                _write_asn(made, asn, candidates)
            (made / "README.md").write_text(card + dropped, encoding="utf-8")
            seal_folder(made)

    return write


def _plain_config(config: Any, weights: dict[str, Tensor]) -> tuple[Any, str]:
    """The config of what is exported, and what the card has to say of it; heads that are not are said at once, too."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):  # the adapters' base; the merged weights are plain
        del config.quantization_config
    dropped = without_extra_heads(config, weights)
    if not dropped:
        return config, ""
    said = f"The target's heads for tokens beyond the next ({', '.join(dropped)}) were not trained and are left out."
    print(f"[export] {said}", file=sys.stderr, flush=True)
    return config, f"\n{said}\n"


def _plain_model(config: Any, dtype: torch.dtype) -> Any:
    """The target's architecture without weights: it knows how they are named, tied and cut into files."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _write_asn(folder: Path, asn: SelectionNetwork, candidates: list[str]) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in asn.state_dict().items()}, folder / ASN_WEIGHTS)
    content = {"candidates": candidates, "selection": asn.config.model_dump(mode="json")}
    (folder / ASN_CONFIG).write_text(json.dumps(content, indent=1) + "\n")


def load_asn(folder: str | Path) -> tuple[SelectionNetwork, list[str]]:
    """The exported selection network and its candidates' ids, in the order of its outputs.

    Raises:
        DataError: there is none, its two files do not belong together, or the folder is damaged.
    """
    folder = Path(folder)
    check_folder(folder)
    try:
        content = json.loads((folder / ASN_CONFIG).read_text())
        asn = SelectionNetwork(len(content["candidates"]), SelectionConfig(**content["selection"]))
        asn.load_state_dict(load_file(folder / ASN_WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        remedy = "name a folder that a training with a selection network has exported"
        raise failure("A selection network cannot be read.", folder, error, remedy) from None
    return asn, content["candidates"]


def distance_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """||after - before|| / ||before|| over all weights."""
    moved = sum(float((after[name] - before[name]).square().sum()) for name in before)
    return (moved / sum(float(tensor.square().sum()) for tensor in before.values())) ** 0.5
