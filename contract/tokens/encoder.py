"""A tokenizer bound to its table: text in, ids and end byte offsets out. Loaded once per process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

from fusionx.contract.models.place import loadable
from fusionx.contract.tokens.encoding import Encoding, encode_batch
from fusionx.contract.tokens.table_cache import KeptBackend, Known, cache_file, keep, kept
from fusionx.contract.tokens.token_table import TokenTable, token_table
from fusionx.contract.tokens.tokenizer import adds_bos, count_tokens, load_tokenizer


@dataclass(frozen=True)
class Encoder:
    """`encode` adds BOS exactly where the tokenizer itself would.

    `load` gives the tokenizer, `kept` as much of it as encoding needs, where that is on this machine. `head_size`: ids
    that the model's config knows; what tokenizers have beyond them stands for nothing in `table`.
    """

    load: Callable[[], Any]
    table: TokenTable
    add_bos: bool
    head_size: int | None = None
    kept: KeptBackend | None = None

    @classmethod
    def of(cls, tokenizer: Any, table: TokenTable, add_bos: bool) -> Encoder:
        """Of a tokenizer that is there already."""
        return cls(partial(_given, tokenizer), table, add_bos)

    @cached_property
    def tokenizer(self) -> Any:
        return self.load()

    @cached_property
    def reader(self) -> Any:
        """What encodes: the tokenizer, or a `Backend`, which is there sooner."""
        kept = self.kept.load() if self.kept is not None and "tokenizer" not in vars(self) else None
        return kept or self.tokenizer

    @property
    def bos(self) -> int | None:
        """The id that `encode` puts before a text."""
        bos: int | None = self.reader.bos_token_id if self.add_bos else None
        return bos

    @property
    def fingerprint(self) -> str:
        return self.table.fingerprint

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows and the model, too; its head may be larger."""
        return self.table.size if self.head_size is None else min(self.table.size, self.head_size)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return encode_batch(self.reader, self.table, texts, self.add_bos)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, BOS included: the lengths of what `encode` gives, much cheaper."""
        return [tokens + self.add_bos for tokens in count_tokens(self.reader, texts)]


@lru_cache(maxsize=16)
def load_encoder(path: str, revision: str | None = None) -> Encoder:
    """The tokenizer of a model folder, hub id or GGUF file.

    Raises:
        ConfigError: there is no tokenizer at that place.
    """
    place = loadable(path, revision)
    load: Callable[[], Any] = partial(_load, place, revision)
    file = cache_file(place, revision)
    known = kept(file) if file is not None else None
    if known is None:
        with _no_garbage_collection():
            tokenizer = load()
            load = partial(_given, tokenizer)
            table, head_size = token_table(tokenizer), _head_size(place, revision)
        if head_size is not None:
            table = table.known_to(head_size)
        known = Known(table, adds_bos(tokenizer), head_size)
        if file is not None:
            keep(file, known, tokenizer)
    return Encoder(load, *known)


def _load(place: str, revision: str | None) -> Any:
    with _no_garbage_collection():
        return load_tokenizer(place, revision)


def _given(tokenizer: Any) -> Any:
    """No lambda: encoders go to other processes."""
    return tokenizer


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Reading a vocabulary makes a million objects that all stay: to look through them took a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _head_size(path: str, revision: str | None) -> int | None:
    """The `vocab_size` that the config beside a tokenizer states; None where there is none."""
    from transformers import PreTrainedConfig

    try:
        stated = PreTrainedConfig.get_config_dict(path, revision=revision)[0]
        size = stated.get("vocab_size", (stated.get("text_config") or {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # whoever reads the config says so
        return None
    return size if isinstance(size, int) and size > 0 else None
