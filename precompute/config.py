"""What a user says about the corpus, the cutting, the models and the top-k shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from contract.config import Config, Operational

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class ModelConfig(Config):
    """One language model: a Hugging Face hub id or a local folder."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False


class CorpusConfig(Config):
    """Where the text comes from: a local file or folder (`path`) or a hub data set (`dataset`)."""

    path: str | None = None
    dataset: str | None = None
    name: str | None = None
    revision: str | None = None
    streaming: Operational[bool] = True
    text: str = "text"
    domain: str | None = None
    splits: list[Split] = list(SPLITS)
    holdout: dict[Literal["validation", "test"], float] = {}
    limit: dict[Split, int] = {}

    @model_validator(mode="after")
    def _one_place(self) -> CorpusConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'path' (local) and 'dataset' (hub id)")
        if sum(self.holdout.values()) >= 1 or any(share <= 0 for share in self.holdout.values()):
            raise ValueError("'holdout' shares must be positive and sum to less than 1")
        return self


class ChunkConfig(Config):
    """How documents are cut. One part holds the chunks of about `part_bytes` bytes of text."""

    block_size: int = Field(2048, ge=16)
    part_bytes: int = Field(1_000_000, ge=1000)
    workers: Operational[int] = Field(1, ge=1)


class PrecomputeConfig(Config):
    """How distributions are computed. `threads` fixes the CPU threads of one worker, because sums depend on them."""

    k: int = Field(32, ge=1, le=1024)
    splits: list[Split] = ["train"]
    batch_tokens: int = Field(16384, ge=1)
    threads: int = Field(1, ge=1)
    workers: Operational[int] = Field(1, ge=1)
    num_gpus: Operational[float] = Field(0.0, ge=0)
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
