"""What a user says about alignment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusionx.contract.config import Config, Operational

MapMode = Literal["first-token", "mined", "exact"]


class AlignConfig(Config):
    """`maps` are made side by side; each training method names the one it reads. `k` defaults to the shards' own.

    `span_matches` also uses the paper's edit-cost matches inside disagreeing spans. They transfer a distribution from
    a place that has consumed other bytes, so they are off by default. `ties`: of several equally near target tokens
    the map `mined` takes the `first`, or has a source token `split` its probability among them (at most 8).
    `chain_rule` gives the next target token, where it spans several source tokens, the product of their probabilities.
    """

    maps: list[MapMode] = Field(["first-token"], min_length=1)
    k: int | None = Field(None, ge=1)
    span_matches: bool = False
    ties: Literal["first", "split"] = "first"
    chain_rule: bool = False
    workers: Operational[int] = Field(1, ge=1)
