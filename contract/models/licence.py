"""What a model's publisher says of its licence: in the front matter of its card, or in the GGUF file itself."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

import yaml

from fusionx.contract.models.gguf_header import read_header
from fusionx.contract.models.hub import is_offline
from fusionx.contract.models.place import gguf_file

_FIELDS = ("license", "license_name", "license_link")
_log = logging.getLogger(__name__)


@lru_cache
def licence_fields(path: str, revision: str | None = None) -> dict[str, str]:
    """`license`, `license_name` and `license_link` as far as they are stated; empty where nothing is or can be had.

    Without a network only the hub's cache is asked.

    A card is a courtesy: whatever goes wrong with one is said, and never ends what is under way.
    """
    try:
        packed = gguf_file(path, revision)
        if packed is not None:
            return read_header(packed).licence
        if Path(path).is_dir():
            file = Path(path) / "README.md"
            if not file.exists():
                return {}  # a model of one's own, not published: nothing went wrong
        else:
            from huggingface_hub import hf_hub_download, try_to_load_from_cache

            if is_offline():  # not looked up, which is no failure
                cached = try_to_load_from_cache(path, "README.md", revision=revision)
                if not isinstance(cached, str):
                    return {}
                file = Path(cached)
            else:
                file = Path(hf_hub_download(path, "README.md", revision=revision, etag_timeout=5))
        text = file.read_text(encoding="utf-8")
        if not text.startswith("---"):
            return {}  # a card without front matter states none
        _, front_matter, _ = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
        content = yaml.safe_load(front_matter)
        return {name: str(content[name]) for name in _FIELDS if content.get(name)}
    except Exception as error:  # no card, no network, a gated model, no valid YAML
        _log.warning("no licence of %s is to be had: %s", path, str(error).strip().partition("\n")[0])
        return {}


def licence(path: str, revision: str | None = None) -> str | None:
    """Its name in one word, None where none is stated."""
    stated = licence_fields(path, revision)
    return stated.get("license_name") or stated.get("license")
