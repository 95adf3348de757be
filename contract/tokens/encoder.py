"""A tokenizer bound to its table: text in, ids and end byte offsets out. Loaded once per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fusionx.contract.tokens.encoding import Encoding, encode_batch
from fusionx.contract.tokens.token_table import TokenTable, token_table
from fusionx.contract.tokens.tokenizer import adds_bos, count_tokens, load_tokenizer


@dataclass(frozen=True)
class Encoder:
    """`encode` adds BOS exactly where the tokenizer itself would."""

    tokenizer: Any
    table: TokenTable
    add_bos: bool

    @property
    def fingerprint(self) -> str:
        return self.table.fingerprint

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows; a model's head may be larger."""
        return self.table.size

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return encode_batch(self.tokenizer, self.table, texts, self.add_bos)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, BOS included: the lengths of what `encode` gives, much cheaper."""
        return [tokens + self.add_bos for tokens in count_tokens(self.tokenizer, texts)]


@lru_cache(maxsize=16)
def load_encoder(path: str, revision: str | None = None) -> Encoder:
    """The tokenizer of a model folder or hub id.

    Raises:
        ConfigError: there is no tokenizer at that place.
    """
    tokenizer = load_tokenizer(path, revision)
    return Encoder(tokenizer, token_table(tokenizer), adds_bos(tokenizer))
