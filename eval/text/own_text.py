"""What every source itself gives held-out text, read off its aligned shards, which keep its own NLL: no model runs."""

from __future__ import annotations

from collections.abc import Mapping

from fusionx.contract.files.storage import join
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import match_rows, read_part

_KEY = ["doc_id", "chunk", "text_hash"]


def own_documents(tokens: str, aligned: Mapping[str, str], split: str) -> dict[str, dict[str, list[list[float]]]]:
    """Nats and bytes of every document of a split under each source's own tokens.

    Args:
        tokens: folder of the target's tokens. aligned: source id -> folder of its aligned shards.

    Returns:
        source id -> domain -> [nats, bytes] per document, in the order of their ids; a source without a part of the
        split is left out.

    Raises:
        DataError: shards are missing, damaged, or of different text.
    """
    parts = read_manifest(tokens, "tokens", "align").parts_of(split)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name, folder in aligned.items():
        listed = {part.name: part.sha256 for part in read_manifest(folder, "aligned", "align").parts_of(split)}
        if not parts or listed.keys() != {part.name for part in parts}:
            continue
        domains: dict[str, dict[int, list[float]]] = {}
        for part in parts:
            where, own = join(tokens, part.name), join(folder, part.name)
            text, _ = read_part(where, "tokens", [*_KEY, "domain"], part.sha256)
            rows, _ = read_part(own, "aligned", [*_KEY, "nll", "nll_bytes"], listed[part.name])
            rows = match_rows(text, rows, where, own)
            columns = [text.column("doc_id"), text.column("domain"), rows.column("nll"), rows.column("nll_bytes")]
            for doc_id, domain, nll, size in zip(*(column.to_pylist() for column in columns), strict=True):
                sums = domains.setdefault(domain, {}).setdefault(doc_id, [0.0, 0])
                sums[0] += nll
                sums[1] += size
        found[name] = {domain: [of[doc_id] for doc_id in sorted(of)] for domain, of in sorted(domains.items())}
    return found
