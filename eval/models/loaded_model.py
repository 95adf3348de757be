"""Loads an exported model for evaluation and names exactly what was loaded.

Weights come from safetensors only; code from the folder runs only where the caller says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionx.contract.config import digest_of
from fusionx.contract.cpu_dtypes import INSTRUCTIONS, instruction_for
from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.files.sealed import FOLDER_SEAL, hashes_of
from fusionx.contract.models.causal_lm import load_causal_lm, one_line
from fusionx.contract.tokens.token_table import TokenTable, token_table
from fusionx.contract.tokens.tokenizer import adds_bos, load_tokenizer
from fusionx.contract.weights import check_model_files

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SETTINGS_SUFFIXES = (".json", ".model", ".tiktoken", ".txt", ".jinja", ".py")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready to score text.

    Attributes:
        adds_bos: whether the tokenizer puts its BOS in front of a text by itself; then evaluation does, too.
        max_positions: the longest input the architecture takes in tokens, None where it names no limit.
    """

    folder: Path
    model: Any
    tokenizer: Any
    table: TokenTable
    adds_bos: bool
    max_positions: int | None
    device: torch.device


def check_model_folder(folder: str | Path) -> Path:
    """The folder as a path, if it is a Hugging Face model folder with safetensors weights.

    Raises:
        ConfigError: there is no such folder.
        DataError: the folder holds no model, its weights are in another format, or it is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        remedy = "train the model first; where a finished training's folder was deleted, `fusionx train --overwrite`"
        raise ConfigError("There is no such model folder.", file=path, remedy=remedy)
    if not (path / "config.json").is_file():
        raise DataError(
            "The folder is not a model.",
            file=path,
            found=", ".join(sorted(item.name for item in path.iterdir())[:8]) or "an empty folder",
            expected="config.json, safetensors weights and a tokenizer",
            remedy="name the exported Hugging Face folder",
        )
    if not weight_files(path):
        raise DataError(
            "The model has no safetensors weights.",
            file=path,
            found=", ".join(sorted(item.name for item in path.glob("*.bin"))) or "no weights",
            expected="model.safetensors or model-*.safetensors",
            remedy="convert it with save_pretrained(); pickled weights are never read",
        )
    check_model_files(path)
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weights that `from_pretrained` reads, sorted; not other tensors beside them (`asn.safetensors`)."""
    return sorted(folder.glob("model*.safetensors"))


def weights_digest(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) over the names and contents of the weight files."""
    return digest_of(hashes_of(weight_files(folder), folder))


def settings_digest(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) over everything but the weights that decides results: config, tokenizer, code."""
    settings = [file for file in folder.iterdir() if file.suffix in SETTINGS_SUFFIXES and file.name != FOLDER_SEAL]
    return digest_of(hashes_of(settings, folder))


def load_model(
    folder: str | Path, device: str = "auto", dtype: str = "auto", *, trust_remote_code: bool = False
) -> LoadedModel:
    """Loads the folder's model in evaluation mode, and its tokenizer.

    `device` auto is the first GPU where there is one; `dtype` auto is bfloat16 on a GPU and float32 on a CPU, as is a
    half one on a CPU that has no instructions for it.

    Raises:
        ConfigError: there is no such folder, or it has no loadable tokenizer.
        DataError: the folder is no loadable causal language model, or its weights are missing, damaged or not finite.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = check_model_folder(folder)
    place = resolve_device(device)
    tokenizer = load_tokenizer(path)
    try:
        model = load_causal_lm(
            path,
            field="the model to evaluate",
            dtype=getattr(torch, resolve_dtype(dtype, place)),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except FusionXError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
        raise DataError(
            "The model cannot be loaded.",
            file=path,
            found=f"{type(error).__name__}: {one_line(error)}",
            expected="a causal language model with safetensors weights",
            remedy="export it again, or download it again",
        ) from error
    model.to(place).eval()
    # `generate` takes whatever a caller leaves open from here: a folder's own penalties must not decide a benchmark.
    own = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig(eos_token_id=getattr(own, "eos_token_id", None))
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(path, model, tokenizer, token_table(tokenizer), adds_bos(tokenizer), limit, place)


def resolve_device(device: str) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda`, `cuda:1`.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("There is no GPU.", field="device", found=device, remedy="use auto or cpu")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """The precision behind `auto`, and behind a half one on a CPU that would have to emulate it."""
    import torch

    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if device.type == "cpu" and dtype in INSTRUCTIONS and not instruction_for(dtype, torch.cpu.get_capabilities()):
        log.warning("this CPU has none of %s: float32 instead of %s", ", ".join(INSTRUCTIONS[dtype]), dtype)
        return "float32"
    return dtype


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Lets torch use so many threads inside the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batches_by_length(lengths: list[int], cost: Callable[[int, int], int], budget: int) -> list[list[int]]:
    """Groups item indices into batches, longest first, so that `cost(items, longest)` stays within `budget`.

    An item that exceeds the budget alone is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and cost(len(batches[-1]) + 1, lengths[batches[-1][0]]) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
