"""A model's weights on disk: their identity, so that work made from other weights is noticed, and what may be loaded.

For a hub model this is the commit; for a GGUF file its hash; for a local folder a hash over config, file sizes and
samples of every weight file (whole files of tens of gigabytes would take minutes, and two trainings never agree on all
samples).
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import check_folder
from fusionx.contract.files.storage import read_bytes
from fusionx.contract.models.gguf_folder import gguf_sha256
from fusionx.contract.models.place import gguf_file

_SAMPLES = 64
_SAMPLE_BYTES = 4096


@lru_cache(maxsize=64)
def weights_identity(path: str, revision: str | None = None) -> str:
    """16 hex digits for a local folder, `hub:<commit or revision>` for a hub id, `gguf:<16 hex digits>` for a file."""
    file = gguf_file(path, revision)
    if file is not None:
        return f"gguf:{gguf_sha256(file)[:16]}"
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{_hub_commit(path, revision)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name == "config.json":
            digest.update(file.read_bytes())
        elif file.suffix == ".safetensors":
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            with file.open("rb") as stream:
                for sample in range(_SAMPLES):
                    stream.seek(sample * size // _SAMPLES)
                    digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _hub_commit(name: str, revision: str | None) -> str:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision)
    return getattr(config, "_commit_hash", None) or revision or "unknown"


def check_model_files(place: str | Path) -> None:
    """For whoever is about to load a model: its folder is what was written, and its weights are safetensors in it.

    A folder that this project wrote is checked against its seal. An index of weights (`*.safetensors.index.json`) leads
    to nothing else, whoever wrote it. A hub id is the hub's own affair.

    Raises:
        DataError: an index names another kind of file, or one elsewhere; DamageError: a file is damaged or missing.
    """
    folder = Path(place)
    if folder.is_dir():
        check_folder(folder)
        _check_indexes(folder)


def _check_indexes(folder: Path) -> None:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        remedy = "fetch the model again; weights are read from safetensors only, from its own folder"
        try:
            names = set(json.loads(read_bytes(index))["weight_map"].values())
            strange = sorted(
                str(name) for name in names if name != Path(name).name or not name.endswith(".safetensors")
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamageError(
                "An index of weights cannot be read.", file=index, found=repr(error), remedy=remedy
            ) from None
        if strange:
            raise DataError(
                "An index of weights names what is no safetensors file of its folder.",
                file=index,
                field="weight_map",
                found=", ".join(strange[:4]),
                expected="names like model-00001-of-00002.safetensors",
                remedy=remedy,
            )
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise DamageError(
                "Weights are missing.", file=folder / missing[0], expected=f"as {index.name} says", remedy=remedy
            )
