"""What a user says about the corpus, the cutting, the models and the top-k shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionx.contract.config import Added, Config, Operational

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class ModelConfig(Config):
    """One language model."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)
    """Its name in folders, options and the report."""
    path: str
    """A model folder, a hub id, a GGUF file, or `hf://owner/repo/file.gguf`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; none: the default branch."""
    kind: Literal["causal-lm", "fake"] = "causal-lm"
    """`fake` is a stand-in that needs a tokenizer only (`precompute.logits.fake_model`), to try a pipeline without
    models."""
    delay: Operational[float] = Field(0.0, ge=0)
    """Seconds; that a `fake` model adds to each of its batches."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it computes in; `auto`: as it is stored, on a CPU float32 unless the CPU multiplies that by itself."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Of the weights while they run, by bitsandbytes; needs a GPU."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Transformers' attention kernel; `auto` leaves the choice to it."""
    chat_template: Added[str | None] = None
    """For `corpus.format: chat`: a Jinja file, or the template itself, instead of the tokenizer's own."""
    window_overlap: int | None = Field(None, ge=0)
    """Tokens; where the context is shorter than a chunk, the chunk is read in windows of the context that share this
    many, and each position's distribution comes from the window in which most precedes it. Without it such a model is
    refused."""
    trust_remote_code: bool = False
    """Whether code beside the weights is run; only ever a source's."""


class CorpusConfig(Config):
    """Where the text comes from; exactly one of `path` and `dataset`."""

    path: str | None = None
    """A file or folder of Parquet, JSON lines or text, local or behind any URI."""
    dataset: str | None = None
    """A data set of the hub."""
    name: str | None = None
    """The data set's configuration."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    streaming: Operational[bool] = True
    """Whether the data set is read as it is fetched, not stored first."""
    format: Literal["text", "chat"] = "text"
    """`chat`: rows are conversations, each model reads them by its own chat template, and only the answers are learned
    from."""
    messages: str | None = None
    """The column of a chat's messages; none: `messages`, `conversations`, or `instruction`, `input` and `output`,
    whichever is there."""
    system: Literal["keep", "merge", "drop"] = "keep"
    """System messages of chats: `merge` puts them in front of the user's next message, as templates without that role
    want it."""
    text: str = "text"
    """The column with the text; nested ones as `a.b`."""
    domain: str | None = None
    """The column by which results are told apart; none: all is one domain (of text files, their folder)."""
    splits: list[Split] = list(SPLITS)
    """Which splits are read, by the names of files or folders, or the data set's own."""
    holdout: dict[Literal["validation", "test"], float] = {}
    """Shares of the training documents that become validation and test text, drawn by the hash of the text."""
    limit: dict[Split, Annotated[int, Field(ge=0)]] = {}
    """Documents read of each split, the first ones; without an entry, all."""

    @model_validator(mode="after")
    def _one_place(self) -> CorpusConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'path' (file or folder) and 'dataset' (hub id)")
        if sum(self.holdout.values()) >= 1 or any(share <= 0 for share in self.holdout.values()):
            raise ValueError("'holdout' shares must be positive and sum to less than 1")
        if self.format == "text" and (self.messages is not None or self.system != "keep"):
            raise ValueError("'messages' and 'system' are of conversations; set format to chat")
        return self


class ChunkConfig(Config):
    """How documents are cut."""

    block_size: int = Field(2048, ge=16)
    """Tokens; the longest chunk under every tokenizer of the run."""
    part_bytes: int = Field(1_000_000, ge=1000)
    """Bytes; of text in one part, which is one unit of work."""
    workers: Operational[int] = Field(1, ge=1)
    """Processes; that cut at the same time."""


class GenerateConfig(Config):
    """Text that the sources write themselves (`fusionx generate`)."""

    times: int = Field(8, ge=1)
    """Texts; that are begun from every chunk of the training text."""
    prompt_tokens: int = Field(32, ge=1)
    """Tokens; of a chunk, from which a source goes on; of shorter chunks half."""
    new_tokens: int = Field(200, ge=1)
    """Tokens; that it writes, at most, and as far as its context goes."""
    temperature: float = Field(1.0, gt=0)
    """Temperature; at which it samples."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Share of probability; from which tokens are sampled."""


class PrecomputeConfig(Config):
    """How distributions are computed and kept."""

    k: int = Field(32, ge=1, le=1024)
    """Entries; the most probable next tokens that are kept at every position."""
    mass: float | None = Field(None, gt=0, le=1)
    """Share of probability; only as many of the k are kept as reach it, none: all."""
    mantissa_bits: int | None = Field(None, ge=0, le=10)
    """Bits; to which log-probabilities are rounded, none: not at all."""
    splits: list[Split] = ["train", "validation"]
    """Whose text is run: training reads the one, fidelity and ensembles are measured on the others."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens; in one forward pass."""
    threads: int = Field(1, ge=1)
    """CPU threads; of one worker, fixed because sums depend on them."""
    workers: Operational[int] = Field(1, ge=1)
    """Processes; each with a model of its own."""
    num_gpus: Operational[float] = Field(0.0, ge=0)
    """GPUs; of one worker, a fraction shares one, more than one divides the model."""
    resources: Operational[dict[str, float]] = {}
    """What else one worker takes of a Ray cluster, by the names that the cluster gives them."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    """`auto`: a GPU where there is one."""
