"""Identity of a model's weights, so that work made from other weights is noticed.

For a hub model this is the commit; for a GGUF file its hash; for a local folder a hash over config, file sizes and
samples of every weight file (whole files of tens of gigabytes would take minutes, and two trainings never agree on all
samples).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

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
