"""What a user says about training: methods and their losses, optimisation, and one training job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from contract.config import Config, Operational

Granularity = Literal["element", "token", "sequence"]


class MethodConfig(Config):
    """How the losses are formed (paper, eq. 3-10). The named presets are in `PRESETS`.

    teacher: `none` (L_lm only), `min_ce` (FuseLLM: per chunk the candidate with the lowest NLL per byte) or `asn`.
    tail: what becomes of the mass outside the stored top-k: one `bucket`, or `renormalise` the top-k to 1.
    lambda_select: weight of the selector loss -log sum_j p_j P_j(x_{l+1}) on the gold text; with it the gate is
        trained by that loss alone and P_f is detached in L_fuse.
    """

    teacher: Literal["none", "min_ce", "asn"] = "asn"
    map: Literal["first-token", "mined", "exact"] = "first-token"
    tail: Literal["bucket", "renormalise"] = "bucket"
    granularity: Granularity = "token"
    tau: float = Field(0.15, ge=0, lt=1)
    lambda_lm: float = Field(1.0, ge=0)
    lambda_fuse: float = Field(1.0, ge=0)
    lambda_feed: float = Field(0.05, ge=0)
    lambda_select: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def _element_is_the_papers(self) -> MethodConfig:
        papers = self.tail == "renormalise" and self.lambda_select == 0
        if self.teacher == "asn" and self.granularity == "element" and not papers:
            raise ValueError("granularity 'element' is defined for tail 'renormalise' and lambda_select 0 only")
        return self


PRESETS: dict[str, MethodConfig] = {
    "ct": MethodConfig(teacher="none", lambda_fuse=0, lambda_feed=0, lambda_select=0),
    "fusellm": MethodConfig(
        teacher="min_ce",
        map="mined",
        tail="renormalise",
        lambda_lm=0.9,
        lambda_fuse=0.1,
        lambda_feed=0,
        lambda_select=0,
    ),
    "paper": MethodConfig(
        map="mined",
        tail="renormalise",
        granularity="element",
        lambda_fuse=0.1,
        lambda_feed=0.5,
        lambda_select=0,
    ),
    "fusionx": MethodConfig(),
}
"""ct: continued training. fusellm: FuseLLM's MinCE. paper: Fusion-X to the letter. fusionx: the default."""


class OptimizerConfig(Config):
    """AdamW with a cosine schedule (paper, section 5.1). `batch_size` counts chunks, `epochs` passes over them."""

    learning_rate: float = Field(3e-5, gt=0)
    asn_learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0)
    warmup_ratio: float = Field(0.008, ge=0, le=1)
    batch_size: int = Field(8, ge=1)
    epochs: float = Field(1.0, gt=0)


class RunConfig(Config):
    """How a job is carried out. Precision and threads decide the last bits of the weights, the rest nothing."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Field(1, ge=1)
    head_block: int = Field(1024, ge=1)
    validate_every: int = Field(50, ge=1)
    validate_tokens: int = Field(16384, ge=1)
    log_every: Operational[int] = Field(10, ge=1)
    checkpoint_every: Operational[int] = Field(200, ge=1)
    keep_checkpoints: Operational[int] = Field(2, ge=1)
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"


class TrainConfig(Config):
    """The training part of a run: every method, at every seed, at one learning rate.

    With `tune` (learning rates) the rate is chosen first: the one at which `ct` reaches its lowest validation bits
    per byte with the first seed. `overrides` changes fields of a method's preset.
    """

    methods: list[str] = Field(["fusionx"], min_length=1)
    overrides: dict[str, dict[str, object]] = {}
    seeds: list[int] = Field([0], min_length=1)
    tune: list[float] = []
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    jobs: Operational[int] = Field(1, ge=1)

    @model_validator(mode="after")
    def _methods_exist(self) -> TrainConfig:
        for name in [*self.methods, *self.overrides]:
            self.method(name)
        if len(set(self.methods)) < len(self.methods) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a method or a seed is listed twice")
        return self

    def method(self, name: str) -> MethodConfig:
        """The preset `name` with this run's overrides."""
        if name not in PRESETS:
            raise ValueError(f"unknown method '{name}'; known: {', '.join(PRESETS)}")
        return MethodConfig.model_validate({**PRESETS[name].model_dump(), **self.overrides.get(name, {})})


class TrainJob(Config):
    """One training: a target, its aligned shards, a method, a seed. `aligned` maps each candidate to its folder."""

    method_name: str
    method: MethodConfig
    seed: int
    optimizer: OptimizerConfig
    run: RunConfig
    target: str
    target_path: Operational[str]
    target_revision: str | None = None
    target_weights: str
    tokens: Operational[str]
    aligned: Operational[dict[str, str]]
    inputs: dict[str, str]
    output: Operational[str]

    @model_validator(mode="after")
    def _teacher_has_candidates(self) -> TrainJob:
        if self.method.teacher != "none" and not self.aligned:
            raise ValueError(f"teacher '{self.method.teacher}' needs aligned shards, and `aligned` is empty")
        return self
