"""A Hugging Face tokenizer as this project uses it: loaded, identified, and asked for the ids of plain text.

What its ids stand for is `contract.tokens.token_table`, where its tokens end in a text `contract.tokens.encoding`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.models.place import loadable

# Where one id plays several roles (GPT-2's <|endoftext|> is bos, eos and unk), the one a model can *predict* wins.
ROLES = ("eos", "bos", "unk", "pad")


@dataclass(frozen=True)
class Backend:
    """As much of a fast tokenizer as encoding asks for."""

    backend_tokenizer: Any
    bos_token_id: int | None


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> Any:
    """Loads a tokenizer (the fast one where there is one) of a folder, hub id or GGUF file; code there is never run.

    What a tokenizer draws by chance in training (BPE-dropout, sampled pieces) is switched off.

    A Mistral folder with tekken.json, which transformers hands to mistral-common where that is installed, is converted
    to a fast tokenizer of the same ids.

    Raises:
        ConfigError: there is no such folder or hub id, or what is there is no loadable tokenizer.
    """
    from transformers import AutoTokenizer

    name = loadable(folder_or_hub_id, revision)
    try:
        found = AutoTokenizer.from_pretrained(
            name, config=_names_alone(name), revision=revision, use_fast=True, trust_remote_code=False
        )
        tokenizer = _deterministic(_converted_from_tekken(found, name) if _is_mistral_common(found) else found)
        tokenizer("a")  # settings of a wrong type show themselves only now
        return tokenizer
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and Rust's bare Exception alike
        raise ConfigError(
            "The tokenizer cannot be loaded.",
            file=name,
            found=f"{type(error).__name__}: {' '.join(str(error).split()):.200}",
            expected="a folder with tokenizer.json (or tokenizer.model) and tokenizer_config.json, or a hub id",
            remedy="check the name and revision; without a network, give a local folder",
        ) from error


def _names_alone(folder: str) -> Any:
    """The model's config without its architecture's class, which imports the model's code: two seconds for a Llama.

    Of a folder that states its tokenizer's class AutoTokenizer reads names only from it. None for any other.
    """
    from transformers import PreTrainedConfig

    try:
        stated = json.loads((Path(folder) / "tokenizer_config.json").read_bytes())
        if not stated.get("tokenizer_class") or "auto_map" in stated:
            return None
        return PreTrainedConfig.from_dict({**PreTrainedConfig.get_config_dict(folder)[0], "_name_or_path": folder})
    except Exception:  # AutoTokenizer says what is wrong, or knows better
        return None


def _deterministic(tokenizer: Any) -> Any:
    """The tokenizer with its regularisation off (BPE-dropout, Unigram's sampling): equal texts get equal ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for setting in ("dropout", "alpha", "nbest_size"):
        if backend is not None and getattr(backend.model, setting, None) is not None:
            setattr(backend.model, setting, None)
    return tokenizer


def _is_mistral_common(tokenizer: Any) -> bool:
    return getattr(tokenizer, "backend", None) == "mistral_common"


def _converted_from_tekken(tokenizer: Any, name: str) -> Any:
    """The fast tokenizer of a mistral-common one's tekken.json, with the BOS that mistral-common adds."""
    from tokenizers.processors import TemplateProcessing
    from transformers.integrations.mistral import convert_tekken_tokenizer  # type: ignore[attr-defined]

    fast = convert_tekken_tokenizer(str(tokenizer.tokenizer.instruct_tokenizer.tokenizer.file_path))
    fast.name_or_path = name
    if adds_bos(tokenizer):
        bos = fast.bos_token
        special = [(bos, fast.bos_token_id)]
        fast.backend_tokenizer.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", special)
    return fast


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its BOS in front of a text by default (found by trying)."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    return len(ids) > len(bare) and ids[0] == bos


def tokenizer_fingerprint(tokenizer: Any, state: dict[str, Any] | None = None) -> str:
    """First 16 hex digits of a SHA-256 over everything that decides how a text is encoded.

    Covers vocabulary, merges, normalizer, pre-tokenizer, decoder, added tokens, special tokens by role and whether a
    BOS is added; leaves out truncation, padding and the post-processor's wording, which calls change and round trips
    rewrite. Equal across processes and across save/load. `state` is the tokenizer's `backend_state`, for a caller who
    has it: reading that takes most of the time.
    """
    state = state or backend_state(tokenizer)
    if state is None:
        encoder: dict[str, Any] = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        encoder = {key: value for key, value in state.items() if key not in ("truncation", "padding", "post_processor")}
        encoder["added_tokens"] = sorted(encoder.get("added_tokens") or [], key=lambda token: token["id"])
    content = {
        "encoder": encoder,
        "roles": {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES},
        "special_ids": sorted(tokenizer.all_special_ids),
        "adds_bos": adds_bos(tokenizer),
    }
    # Lone surrogates cannot occur in a vocabulary that came from Rust; ascii escapes keep slow ones safe too.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def backend_state(tokenizer: Any) -> dict[str, Any] | None:
    """The fast tokenizer's own serialised state (the content of tokenizer.json), None for a slow tokenizer.

    Raises:
        ConfigError: a mistral-common tokenizer, whose vocabulary gives many ids one spelling.
    """
    if _is_mistral_common(tokenizer):
        raise ConfigError(
            "A mistral-common tokenizer does not show what its ids stand for.",
            file=getattr(tokenizer, "name_or_path", None) or None,
            found=type(tokenizer).__name__,
            expected="a fast tokenizer",
            remedy="load its folder with contract.tokenizer.load_tokenizer, which converts tekken.json",
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Number of ids of each text in `plain_ids`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(map(len, plain_ids(tokenizer, texts)))
    with plain_backend(backend):
        return list(map(len, backend.encode_batch_fast(list(texts), add_special_tokens=False)))


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts without lone surrogates, read as nothing but text; no BOS, no EOS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Slow tokenizers have no batch call that is more than this loop. Unless special tokens are split like any other
        # text, they are found in it, and a document that spells </s> would end itself.
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    with plain_backend(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


_BACKEND_LOCK = Lock()


@contextmanager
def plain_backend(backend: Any, as_text: bool = True) -> Iterator[None]:
    """Encodes whole texts: no truncation, no padding, nothing added, no trimmed offsets.

    One thread at a time, because this changes the backend that all of them share.

    Args:
        as_text: nothing but text, so that no special token is found in it; else what spells one is that token, as chat
            templates need it.
    """
    with _BACKEND_LOCK:
        backend.no_truncation()
        backend.no_padding()
        special, post_processor = backend.encode_special_tokens, backend.post_processor
        # The backend's name for: special tokens are encoded like any other text.
        backend.encode_special_tokens = as_text
        backend.post_processor = None  # ByteLevel's would cut white space off the offsets
        try:
            yield
        finally:
            backend.encode_special_tokens, backend.post_processor = special, post_processor
