"""Manifests: the mark that a stage's output is complete, written last, with a hash of every part."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import sealed, unsealed
from fusionx.contract.files.storage import exists, join, read_bytes, write_bytes
from fusionx.contract.shards.dataset_card import CARD, dataset_card
from fusionx.contract.shards.parts import PartEntry, sha256_of
from fusionx.contract.shards.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a stage wrote: its config, what its data depends on, and its parts in order.

    It holds no times and no host names, so that equal work gives equal manifests.
    """

    kind: str
    config: dict[str, Any]
    identity: dict[str, str]
    parts: list[PartEntry]
    schema_version: int = SCHEMA_VERSION
    totals: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of the whole output: config, identity and every part's hash."""
        return digest_of([self.kind, self.config, self.identity, [part.sha256 for part in self.parts]])

    def parts_of(self, split: str) -> list[PartEntry]:
        return [part for part in self.parts if part.split == split]


def build_manifest(kind: str, config: dict[str, Any], identity: dict[str, str], parts: list[PartEntry]) -> Manifest:
    """Sums up the parts: totals over rows, tokens and bytes, and their `stats` added key by key."""
    totals = {name: sum(getattr(part, name) for part in parts) for name in ("rows", "tokens", "bytes")}
    return Manifest(kind, config, identity, parts, totals=totals, stats=_total([part.stats for part in parts]) or {})


def _total(values: list[Any]) -> Any:
    """Dicts key by key, lists one after another, numbers one by one from the first: rounded alike everywhere."""
    if values and isinstance(values[0], dict):
        names = sorted({name for value in values for name in value})
        return {name: _total([value[name] for value in values if name in value]) for name in names}
    if values and isinstance(values[0], list):
        return [item for value in values for item in value]
    return reduce(operator.add, values, 0)


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes the card beside the parts, and the manifest last."""
    splits = dict.fromkeys(part.split for part in manifest.parts)
    files = {split: [part.name for part in manifest.parts_of(split)] for split in splits}
    write_bytes(join(folder, CARD), dataset_card(manifest.kind, files).encode())
    # `digest` is the identity of the data, for people; the checksum covers everything that a reader relies on.
    data = {**sealed({**vars(manifest), "parts": [*map(vars, manifest.parts)]}), "digest": manifest.digest}
    write_bytes(join(folder, MANIFEST_NAME), _lines(data).encode())


def _lines(data: dict[str, Any]) -> str:
    """As JSON, with a line for each part: to read, and there may be a million of them."""
    parts = ",\n  ".join(json.dumps(part, sort_keys=True) for part in data["parts"])
    others = json.dumps({name: value for name, value in data.items() if name != "parts"}, indent=1, sort_keys=True)
    return f'{others.removesuffix("}").rstrip()},\n "parts": [\n  {parts}\n ]\n}}\n'


def has_manifest(folder: str) -> bool:
    return exists(join(folder, MANIFEST_NAME))


def read_manifest(folder: str, kind: str, stage: str) -> Manifest:
    """Reads a finished output's manifest; `stage` names the command to run when there is none.

    Raises:
        DataError: the output is missing, unfinished, unreadable, or of another kind or schema version.
    """
    path = join(folder, MANIFEST_NAME)
    remedy = f"run `fusionx {stage}` first"
    if not exists(path):
        raise DataError(
            "An input is missing or unfinished.", file=path, expected=f"the output of {stage}", remedy=remedy
        )
    try:
        raw = json.loads(read_bytes(path))
        digest = raw.pop("digest", None)
        content = unsealed(raw, path, remedy)
        manifest = Manifest(**{**content, "parts": [PartEntry(**part) for part in content["parts"]]})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise DamageError("A manifest cannot be read.", file=path, found=repr(error), remedy=remedy) from None
    if manifest.schema_version != SCHEMA_VERSION or manifest.kind != kind:
        raise DataError(
            "An output is of another kind or schema version.",
            file=path,
            found=f"{manifest.kind}, version {manifest.schema_version}",
            expected=f"{kind}, version {SCHEMA_VERSION}",
            remedy=remedy,
        )
    if digest != manifest.digest:
        raise DamageError(
            "A manifest was edited.", file=path, field="digest", found=digest, expected=manifest.digest, remedy=remedy
        )
    return manifest


def verify_part(folder: str, entry: PartEntry, stage: str) -> None:
    """Checks one listed part against its hash.

    Raises:
        DataError: the part is missing or its bytes differ from those that the manifest lists.
    """
    path = join(folder, entry.name)
    found = sha256_of(path)
    if found != entry.sha256:
        raise DamageError(
            "A part differs from its manifest.",
            file=path,
            field="sha256",
            found=found[:16],
            expected=entry.sha256[:16],
            remedy=f"run `fusionx {stage}` again; only damaged and missing parts are rewritten",
        )
