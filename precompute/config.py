"""What a user says about the corpus, the cutting, the models and the top-k shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionx.contract.config import Config, Operational

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class ModelConfig(Config):
    """One language model: a Hugging Face hub id or a local folder.

    `kind: fake` is a stand-in that needs a tokenizer only (`precompute.logits.fake_model`), so that a pipeline can be
    tried without any model; `delay` then adds seconds to each of its batches.

    `window_overlap`: where the context is shorter than a chunk, the chunk is read in windows of the context that share
    this many tokens; each position's distribution comes from the window in which most precedes it. Without it, such a
    model is refused.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    path: str
    revision: str | None = None
    kind: Literal["causal-lm", "fake"] = "causal-lm"
    delay: Operational[float] = Field(0.0, ge=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    window_overlap: int | None = Field(None, ge=0)
    trust_remote_code: bool = False


class CorpusConfig(Config):
    """Where the text comes from: a file or folder, local or behind any URI (`path`), or a hub data set (`dataset`)."""

    path: str | None = None
    dataset: str | None = None
    name: str | None = None
    revision: str | None = None
    streaming: Operational[bool] = True
    text: str = "text"
    domain: str | None = None
    splits: list[Split] = list(SPLITS)
    holdout: dict[Literal["validation", "test"], float] = {}
    limit: dict[Split, Annotated[int, Field(ge=0)]] = {}

    @model_validator(mode="after")
    def _one_place(self) -> CorpusConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'path' (file or folder) and 'dataset' (hub id)")
        if sum(self.holdout.values()) >= 1 or any(share <= 0 for share in self.holdout.values()):
            raise ValueError("'holdout' shares must be positive and sum to less than 1")
        return self


class ChunkConfig(Config):
    """How documents are cut. One part holds the chunks of about `part_bytes` bytes of text."""

    block_size: int = Field(2048, ge=16)
    part_bytes: int = Field(1_000_000, ge=1000)
    workers: Operational[int] = Field(1, ge=1)


class PrecomputeConfig(Config):
    """How distributions are computed and kept.

    `mass` keeps of the k only as many as reach this probability; `mantissa_bits` rounds the log-probabilities.
    Only the text of `splits` is run: training reads the one, and fidelity is measured on the other.
    `threads` fixes the CPU threads of one worker, because sums depend on them. `resources` are what else one worker
    takes of a Ray cluster, by the names that the cluster gives them.
    """

    k: int = Field(32, ge=1, le=1024)
    mass: float | None = Field(None, gt=0, le=1)
    mantissa_bits: int | None = Field(None, ge=0, le=10)
    splits: list[Split] = ["train", "validation"]
    batch_tokens: int = Field(16384, ge=1)
    threads: int = Field(1, ge=1)
    workers: Operational[int] = Field(1, ge=1)
    num_gpus: Operational[float] = Field(0.0, ge=0)
    resources: Operational[dict[str, float]] = {}
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
