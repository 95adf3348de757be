"""What a user says about alignment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusionx.contract.config import Config, Operational

AlignMethod = Literal["walk", "mined", "exact"]


class AlignConfig(Config):
    """How sources' distributions become ones over the target's tokens."""

    methods: list[AlignMethod] = Field(["walk"], min_length=1)
    """Made side by side; each training method names the one it reads. `walk`: the source's probability of every next
    target token, along the text's own source tokens (`align.walk`). `mined`: the paper's positions and vocabulary map
    (MinED). `exact`: positions on which both tokenizations agree, and tokens that both vocabularies have."""
    k: int | None = Field(None, ge=1)
    """Entries; kept at every position, none: as many as the shards have."""
    workers: Operational[int] = Field(1, ge=1)
    """Processes; that align at the same time."""
