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
from fusionx.contract.files.sealed import FILES, check_files, read_sealed


def cache_folder(kind: str) -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_ASSETS_CACHE") or constants.HF_ASSETS_CACHE) / "fusionx" / kind


def remembered(path: Path) -> dict[str, Any] | None:
    """The content of a sealed file; None where there is none, or it or a file that it lists is damaged, which is said.

    Raises:
        DataError: it cannot be read.
    """
    remedy = "nothing: it is made anew"
    try:
        if not path.is_file():
            return None
        found = read_sealed(path, remedy)
        check_files(found.get(FILES, {}), path.parent, remedy)
        return found
    except DamageError as error:
        print(f"[cache] {error}", file=sys.stderr, flush=True)
        return None
