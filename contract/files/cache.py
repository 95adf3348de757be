"""What is derived once per machine and may be deleted at any time.

It lies where users of Hugging Face expect what a library derives: `$HF_HOME/assets/fusionx` (`$HF_ASSETS_CACHE` moves
it).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import read_sealed


def cache_folder(kind: str) -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_ASSETS_CACHE") or constants.HF_ASSETS_CACHE) / "fusionx" / kind


def remembered(path: Path) -> dict[str, Any] | None:
    """The content of a sealed file; None where there is none, or it is damaged, which is said.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_sealed(path, "nothing: it is made anew") if path.is_file() else None
    except DamageError as error:
        print(f"[cache] {error}", file=sys.stderr, flush=True)
        return None
