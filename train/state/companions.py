"""What belongs to a model besides the weights that are trained: files that serving it needs, and further heads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.model",
)
"""Of processors and tokenizers; those that `save_pretrained` writes itself stay as it wrote them."""

_EXTRA_HEADS = re.compile(r"num_nextn_predict_layers|mtp_num_\w+|num_mtp_\w+")
"""Fields that count the layers which predict tokens beyond the next (multi-token prediction)."""


def copy_companions(model: Any, folder: Path) -> None:
    """Copies the files beside a model's weights, wherever they were loaded from, that `folder` has not got yet."""
    from transformers.utils.hub import cached_file

    revision = getattr(model.config, "_commit_hash", None)
    missing = {
        f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors", "gated_repo")
    }
    for name in _FILES:
        found = cached_file(model.name_or_path, name, revision=revision, **missing) if model.name_or_path else None
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def without_extra_heads(config: Any, weights: Iterable[str]) -> list[str]:
    """Clears in `config` what says that the model has heads beyond the plain one, where it has none of their weights.

    Transformers leaves such heads out when it loads a model. They speed up generation and change no prediction; a
    server that is promised them and finds none does not start.

    Returns:
        The fields that were cleared, with what they said.
    """
    if any("mtp" in name for name in weights):
        return []
    cleared = {}
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in list(vars(part).items()):
            if _EXTRA_HEADS.fullmatch(name) and isinstance(value, int) and value > 0:
                setattr(part, name, 0)
                cleared[name] = value
    return [f"{name}: {value}" for name, value in cleared.items()]
