"""Whether the hub can serve a model, told at once: its own clients wait half a minute for a network that is not there.

Ids are checked as they are written; that a repository exists is left to whoever loads it.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from fusionx.contract.errors import ConfigError

_SECONDS = 5.0
"""For the hub's first answer; as long again for its name."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model")
"""One of them is in the cache of whoever fetched a model or tokenizer."""


def may_be_on_hub(path: str) -> bool:
    """Whether it is written as an id, or as a file of the hub, and no folder or file of this name is here."""
    return not Path(path).expanduser().exists() and bool(_ID.fullmatch(path) or path.startswith("hf://"))


def check_hub_id(path: str, revision: str | None = None) -> None:
    """Refuses at once what is no folder and cannot come from the hub.

    Raises:
        ConfigError: `path` cannot be an id, or the hub cannot be reached and its cache holds nothing of it.
    """
    if not _ID.fullmatch(path):
        raise ConfigError(
            "There is no such model folder.",
            file=path,
            found=_as_far_as_it_goes(path),
            expected="a model folder (config.json, safetensors, tokenizer), a GGUF file, or a hub id OWNER/NAME",
            remedy="check the path; relative ones start where the command was started",
        )
    if is_offline() and not _is_cached(path, revision):
        raise ConfigError(
            "There is no such folder, and the hub cannot be asked for a model of this name.",
            file=path,
            found=f"no folder {Path(path).absolute()}, and nothing in the hub's cache",
            expected="a model folder, or a network (without HF_HUB_OFFLINE)",
            remedy=f"check the path; a hub's model is fetched where there is a network, by `hf download {path}`",
        )


@cache
def is_offline() -> bool:
    """Whether only the hub's cache can be used. Where the hub does not answer, its clients are told not to try."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return True
    answer = Queue[str]()
    # In a thread, for no timeout ends a resolver's waiting for name servers that do not answer.
    Thread(target=lambda: answer.put(_why_not(constants.ENDPOINT)), daemon=True).start()
    try:
        why = answer.get(timeout=2 * _SECONDS)
    except Empty:
        why = f"nothing came in {2 * _SECONDS:g} s"
    if why:
        print(f"[hub] {constants.ENDPOINT} does not answer ({why:.80}): only its cache is used", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what imports it later, and for the processes that this one starts
        return True
    return False


def _why_not(endpoint: str) -> str:
    """Why there is no answer; empty where there is one."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=_SECONDS)
    except Exception as error:  # whatever the HTTP client, a proxy or a resolver raises
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _is_cached(path: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(path, name, revision=revision), str) for name in _FILES)


def _as_far_as_it_goes(path: str) -> str:
    """The last folder on the way that is there, and what is in it."""
    place = Path(path).expanduser()
    if place.exists():
        return f"{place} is a file"
    there = next(folder for folder in place.absolute().parents if folder.is_dir())
    inside = sorted(item.name for item in there.iterdir() if not item.name.startswith("."))
    return f"{there} holds {', '.join(inside[:6]) or 'nothing'}{', ...' if len(inside) > 6 else ''}"
