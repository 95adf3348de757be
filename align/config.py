"""What a user says about alignment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusionx.contract.config import Config, Operational

AlignMethod = Literal["walk", "mined", "exact"]


class AlignConfig(Config):
    """`methods` are made side by side; each training method names the alignment that it reads.

    `walk`: the source's probability of every next target token, along the text's own source tokens (`align.walk`).
    `mined`: the paper's positions and vocabulary map (MinED). `exact`: positions on which both tokenizations agree, and
    tokens that both vocabularies have. `k` defaults to the shards' own.
    """

    methods: list[AlignMethod] = Field(["walk"], min_length=1)
    k: int | None = Field(None, ge=1)
    workers: Operational[int] = Field(1, ge=1)
