"""The config of the demo's inputs: which documents, which tokenizers, which models, and which fine-tunes of them.

Importing this module is light: no torch, no transformers, no tokenizers. What is done with these values is told in
`corpus`, `skills`, `tokenizers` and `models`; `inputs` runs them in order.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fusionx.contract.config import Added, Config, Operational

RealDomain = Literal["python", "cpp", "stubs", "docs", "readme", "licences", "structured", "tables", "cmake"]
Skill = Literal["brackets", "boolean", "arithmetic", "counting", "sorting"]
Architecture = Literal["llama", "gpt_neox", "gpt_neo", "starcoder2", "gpt_bigcode"]
TokenizerKind = Literal["sentencepiece_bpe", "byte_bpe", "unigram", "regex_byte_bpe"]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
ModelId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
Mix = dict[str, Annotated[float, Field(gt=0)]]
"""Domain to its relative weight in the training tokens; a domain that is not named is never seen."""


def skill_domain(skill: str) -> str:
    """The name under which a skill's documents stand in the corpus."""
    return f"skill_{skill}"


class DemoCorpusConfig(Config):
    """Which documents are gathered or generated, and how many bytes of each domain go into each split (1 KB = 1000)."""

    real_domains_kb: dict[RealDomain, Positive]
    """Upper limit of what is kept per gathered domain, all splits together."""
    skills_kb: dict[Skill, Positive]
    """Bytes of generated documents per skill in the experts' pool."""
    min_document_bytes: Positive = 400
    max_document_bytes: Positive = 3000
    package_share: Share = 0.5
    """The largest part of a domain's limit that one package may fill."""
    near_duplicate_share: Share = 0.5
    """A document is dropped when more than this part of its word 6-grams stood in earlier documents of the domain."""
    train_kb: Positive
    """Bytes per domain in the continual corpus's training split; that split is meant to be small."""
    validation_kb: Positive
    test_kb: Positive
    absent_from_train: list[str] = []
    """Domains of validation and test that the continual training split does not have, to show forgetting."""
    task_examples: Positive = 100
    """Held-out examples per skill, written as a task file; none of them stands in any split."""

    def domains(self) -> list[str]:
        """All domains, gathered ones first, in the order of the config."""
        return [*self.real_domains_kb, *(skill_domain(skill) for skill in self.skills_kb)]

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.min_document_bytes >= self.max_document_bytes:
            raise ValueError("min_document_bytes must be below max_document_bytes")
        unknown = sorted(set(self.absent_from_train) - set(self.domains()))
        if unknown:
            raise ValueError(f"absent_from_train names no domain of this corpus: {', '.join(unknown)}")
        return self


class DemoModelConfig(Config):
    """One model: its architecture and size, its tokenizer, and what it is trained on."""

    id: ModelId
    architecture: Architecture
    tokenizer: TokenizerKind
    tokenizer_file: Operational[str | None] = None
    """A trained tokenizer of that kind (tokenizer.json), taken instead of training one. What depends on it depends on
    what the file holds, not on where it lies."""
    vocab_size: Annotated[int, Field(ge=400)]
    """Tokens in the vocabulary; the byte alphabet alone takes 256."""
    hidden_size: Positive
    layers: Positive
    heads: Positive
    context: Positive
    mix: Mix
    training_tokens: Positive
    batch_tokens: Positive
    learning_rate: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.batch_tokens % self.context:
            raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of context {self.context}")
        if self.training_tokens < self.batch_tokens:
            raise ValueError("training_tokens is below one batch")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps; training tokens that fill no whole batch are dropped."""
        return self.training_tokens // self.batch_tokens


class DemoSiblingConfig(Config):
    """A model that goes on from the finished weights of another, `start`, on text of its own.

    Architecture, sizes, tokenizer and batch are those of `start`: siblings can be merged by weight.
    """

    id: ModelId
    start: ModelId
    mix: Mix
    training_tokens: Positive
    learning_rate: Annotated[float, Field(gt=0)]

    def model_from(self, start: DemoModelConfig) -> DemoModelConfig:
        """The sibling as a model like any other."""
        return start.model_copy(update=self.model_dump(exclude={"start"}))


class DemoOptimizerConfig(Config):
    """AdamW with a linear warm-up and a cosine down to `final_share` of the peak learning rate."""

    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    initializer_range: float = 0.02


class DemoInputs(Config):
    """Everything that a user of Fusion-X would bring, made from the Python installation alone."""

    output: Operational[str] = "data/demo"
    seed: int = 0
    """Of the corpus and the task files, and of the models where `training_seed` is not given."""
    training_seed: Added[int | None] = None
    """Of the models' initial weights and of the order of their training text."""
    jobs: Operational[Positive] = 1
    """Models trained at the same time, each in a process of its own with one thread; on a GPU always one."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass (autocast); weights and optimizer stay in float32."""
    log_seconds: Operational[float] = 10.0
    checkpoint_seconds: Operational[float] = 60.0
    """How often a training writes a checkpoint from which a killed run resumes; 0 writes none."""
    tokenizer_sample_kb: Positive = 1000
    corpus: DemoCorpusConfig
    optimizer: DemoOptimizerConfig = DemoOptimizerConfig()
    models: Annotated[list[DemoModelConfig], Field(min_length=1)]
    siblings: Added[list[DemoSiblingConfig]] = []
    """Made only when asked for (`--only siblings`)."""

    @property
    def everyone(self) -> list[DemoModelConfig | DemoSiblingConfig]:
        """Models and siblings."""
        return [*self.models, *self.siblings]

    @property
    def models_seed(self) -> int:
        """The seed that the models' trainings depend on."""
        return self.seed if self.training_seed is None else self.training_seed

    @model_validator(mode="after")
    def _models_agree_with_corpus(self) -> Self:
        ids = [model.id for model in self.everyone]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two models have the same id: {', '.join(ids)}")
        known = set(self.corpus.domains())
        for model in self.everyone:
            unknown = sorted(set(model.mix) - known)
            if unknown:
                raise ValueError(f"the mix of model {model.id} names no domain of the corpus: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _siblings_agree_with_models(self) -> Self:
        models = {model.id: model for model in self.models}
        for sibling in self.siblings:
            if sibling.start not in models:
                raise ValueError(
                    f"sibling {sibling.id} starts from '{sibling.start}', which is none of models: {', '.join(models)}"
                )
            if not sibling.model_from(models[sibling.start]).steps:
                raise ValueError(f"training_tokens of sibling {sibling.id} is below one batch of '{sibling.start}'")
        return self
