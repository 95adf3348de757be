"""What a user should know of a corpus once it is cut: what was left out and why, and text that looks like markup."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fusionx.contract.errors import DataError
from fusionx.contract.shards.manifest import Manifest
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.encoding import valid_text
from fusionx.precompute.chunks.answers import ANSWERS, SHORTENED

_MOST_NAMED = 5
_MARKUP = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,40}\]")
"""How special tokens are written: <s>, <|im_end|>, [INST]."""


def why_skipped(text: str) -> str | None:
    """Why a document cannot be cut; None where it can."""
    if not text:
        return "empty"
    if valid_text(text):
        return None
    lone = [char for char in text if "\ud800" <= char <= "\udfff"]
    # Readers leave bytes that are no UTF-8 as these.
    return "not UTF-8" if all("\udc80" <= char <= "\udcff" for char in lone) else "lone surrogate"


def special_spellings(encoders: Iterable[Encoder]) -> frozenset[str]:
    """How the special tokens of all these tokenizers are written, as far as it is markup."""
    spellings: set[str] = set()
    for reader in (encoder.reader for encoder in encoders):
        fast = getattr(reader, "backend_tokenizer", None)
        added = reader.added_tokens_decoder if fast is None else fast.get_added_tokens_decoder()
        spellings |= {token.content for token in added.values() if token.special}
        spellings.update(reader.all_special_tokens if fast is None else [])
    return frozenset(filter(_MARKUP.fullmatch, spellings))


def spelled_in(text: str, spellings: frozenset[str]) -> Counter[str]:
    """How often a text spells each special token."""
    return Counter(found for found in _MARKUP.findall(text) if found in spellings)


def corpus_findings(manifest: Manifest) -> list[str]:
    """Lines about what the finished chunks in `manifest` lack.

    Raises:
        DataError: nothing is left of the corpus.
    """
    stats = manifest.stats
    lines = [
        f"files of the corpus that are not read ({reason}): {len(names)}, {_some(names)}"
        for reason, names in stats.get("unread_files", {}).items()
    ]
    lines += [
        f"documents that are left out ({reason}): {count:,} of {stats['documents']:,}, "
        f"numbers {_some(stats['skipped_doc_ids'][reason], count)}"
        for reason, count in stats.get("skipped", {}).items()
    ]
    answers = dict(stats.get("answers", {}))
    total = answers.pop(ANSWERS, 0)
    lines += [
        f"answers whose conversation is shortened ({reason}): {count:,} of {total:,}"
        if reason == SHORTENED
        else f"answers that are left out ({reason}): {count:,} of {total:,}"
        for reason, count in sorted(answers.items())
    ]
    if not manifest.totals["rows"]:
        raise DataError(
            "Nothing is left of the corpus.",
            field="corpus",
            found="; ".join(lines) or "0 chunks",
            expected="at least one document with text in UTF-8, or a conversation with an answer that fits the block",
            remedy="convert the files to UTF-8 (`iconv -f latin1 -t utf-8`), or name the column that holds the text",
        )
    spelled = stats.get("special_tokens", {})
    if spelled:
        most = sorted(spelled, key=lambda token: (-spelled[token], token))
        said = [f"{token} {spelled[token]:,} times" for token in most]
        lines.append(
            f"the text spells special tokens ({_some(said)}); they are read as the characters they are made of, not as "
            "these tokens: render chats without markup if models are to learn from them as text"
        )
    return lines


def _some(items: Sequence[Any], count: int | None = None) -> str:
    count = len(items) if count is None else count
    named = ", ".join(map(str, items[:_MOST_NAMED]))
    return named if count <= _MOST_NAMED else f"{named} and {count - _MOST_NAMED:,} more"
