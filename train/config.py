"""What a user says about training: methods and their losses, optimisation, and one training job."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from fusionx.contract.config import Added, Config, Operational, problems_of

Granularity = Literal["element", "token", "sequence"]
Feature = Literal["logprobs", "entropy", "tail", "aligned", "nll_per_byte"]
Tail = Literal["bucket", "renormalise", "raw"]


class SelectionConfig(Config):
    """The adaptive selection network and what becomes of its output (paper, section 4 and Table 1)."""

    granularity: Granularity = "token"
    """What one answer is given for: an `element` (position, vocabulary id), a `token` or a `sequence`."""
    features: list[Feature] = ["logprobs", "entropy", "tail", "aligned", "nll_per_byte"]
    """What `token` and `sequence` see of every candidate; `element` sees its probabilities."""
    layers: Literal["linear3", "linear1", "conv"] = "linear3"
    """`linear3` (eq. 4), `linear1`, or `conv` (three convolutions along the candidates)."""
    metric: Literal["softmax", "gumbel", "noise"] = "softmax"
    """`softmax`; `gumbel` and `noise` (noisy gating, its scale learned) add randomness before it in training."""
    choice: Literal["adaptive", "top_n", "all"] = "adaptive"
    """`adaptive` (p > tau, else the argmax; eq. 5-6), the `top_n` best, or `all`."""
    tau: float = Field(0.15, ge=0, lt=1)
    """Probability; above which `adaptive` chooses a candidate."""
    n: int = Field(2, ge=1)
    """Candidates; that `top_n` chooses."""
    fusion: Literal["weighted", "average", "maximum", "unweighted"] = "weighted"
    """`weighted` (eq. 7-8), `average` or `maximum` of the chosen, or `unweighted`: eq. 8 with every weight 1."""
    feed_over: Literal["weights", "gate", "place"] = "weights"
    """What L_feed evens out: the `weights` summed over the batch (eq. 9-10), the `gate` before the choice summed over
    the batch, or the chosen weights at each `place` (eq. 9 alone)."""

    @model_validator(mode="after")
    def _features_once(self) -> SelectionConfig:
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError("features: at least one, and none twice")
        return self


class MethodConfig(Config):
    """How the losses are formed (paper, eq. 3-10). The named presets are in `PRESETS`."""

    teacher: Literal["none", "min_ce", "avg_ce", "fixed_share", "asn"] = "asn"
    """`none` (L_lm only), `asn`, FuseLLM's `min_ce` (per chunk the candidate with the lowest NLL per byte) or `avg_ce`
    (all candidates, weighted by it), or `fixed_share` (weighted by how each foretold the chunk's text before the
    position; `contract.shards.fixed_share`)."""
    alignment: Literal["walk", "mined", "exact"] = "walk"
    """Which of `align.methods` it reads."""
    tail: Tail = "bucket"
    """What becomes of the mass outside the stored top-k: one `bucket`; `renormalise` the top-k to 1; or `raw`: it is
    left out of the sum."""
    selection: SelectionConfig = SelectionConfig()
    """The network that chooses, where the teacher is `asn`."""
    lambda_lm: float = Field(1.0, ge=0)
    """Weight; of L_lm, the loss on the text."""
    lambda_fuse: float = Field(1.0, ge=0)
    """Weight; of L_fuse, the loss on the fused distribution."""
    lambda_feed: float = Field(0.05, ge=0)
    """Weight; of L_feed, which evens out the candidates' importance."""
    lambda_select: float = Field(0.5, ge=0)
    """Weight; of the selector loss -log sum_j p_j P_j(x_{l+1}) on the gold text; above 0 the gate is trained by that
    loss and L_feed, and P_f is detached in L_fuse."""
    k: Added[int | None] = Field(None, ge=1)
    """Entries; per position and candidate that are used, the most probable ones; the rest joins the tail. None: all
    that are stored."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> MethodConfig:
        if self.teacher != "asn" and (self.lambda_feed or self.lambda_select):
            raise ValueError(
                f"teacher '{self.teacher}' has no selection network to train: it needs lambda_feed 0 and lambda_select"
                " 0, or teacher 'asn', as the preset fusionx-network has it"
            )
        element = self.teacher == "asn" and self.selection.granularity == "element"
        if element and (self.tail == "bucket" or self.lambda_select):
            raise ValueError(
                "granularity 'element' has no weight per candidate: it needs another tail than 'bucket'"
                " and lambda_select 0"
            )
        return self


_FUSELLM = MethodConfig(
    teacher="min_ce",
    alignment="mined",
    tail="renormalise",
    lambda_lm=0.9,
    lambda_fuse=0.1,
    lambda_feed=0,
    lambda_select=0,
)
PRESETS: dict[str, MethodConfig] = {
    "ct": MethodConfig(teacher="none", lambda_fuse=0, lambda_feed=0, lambda_select=0),
    "fusellm": _FUSELLM,
    "fusellm-avgce": _FUSELLM.model_copy(update={"teacher": "avg_ce"}),
    "paper": MethodConfig(
        alignment="mined",
        tail="renormalise",
        selection=SelectionConfig(granularity="element"),
        lambda_fuse=0.1,
        lambda_feed=0.5,
        lambda_select=0,
    ),
    "fusionx": MethodConfig(teacher="fixed_share", lambda_feed=0, lambda_select=0),
    "fusionx-network": MethodConfig(),
}
"""ct: continued training. fusellm, fusellm-avgce: FuseLLM's MinCE and AvgCE. paper: Fusion-X to the letter. fusionx:
the default. fusionx-network: the same with a selection network for fixed share, which on real models is no better."""
BASELINE = "ct"
"""The method whose best learning rate every method uses that was not tuned itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Methods name folders."""
_SCHEDULE = ("learning_rate", "epochs")
"""Of the optimizer; which a method may have of its own."""


class LoraConfig(Config):
    """Low-rank adapters through peft, where the optimizer's state does not fit; the export is the merged model."""

    r: int = Field(16, ge=1)
    """Dimensions; the rank of every adapter."""
    alpha: float = Field(32, gt=0)
    """Factor; adapters are scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share; of an adapter's inputs that is dropped in training."""
    modules: str | list[str] = "all-linear"
    """Names of the layers that get one, or `all-linear`."""
    quantization: Literal["none", "4bit"] = "none"
    """Of the frozen weights (QLoRA); needs a GPU."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW with a cosine schedule (paper, section 5.1)."""

    learning_rate: float = Field(3e-5, gt=0)
    """Per step; the highest, of the target."""
    asn_learning_rate: float = Field(1e-3, gt=0)
    """Per step; the highest, of the selection network."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    """AdamW's two decay rates."""
    weight_decay: float = Field(0.1, ge=0)
    """Per unit of learning rate; AdamW's."""
    clip: float = Field(1.0, gt=0)
    """Norm; to which the gradient is clipped."""
    warmup_ratio: float = Field(0.008, ge=0, le=1)
    """Share of the steps; in which the rate rises."""
    batch_size: int = Field(8, ge=1)
    """Blocks; per step over all devices: chunks, or with `pack` rows that hold as many whole chunks as fit."""
    pack: int | None = Field(None, ge=2)
    """Tokens; of a row of several whole chunks, none: every chunk has a row of its own."""
    document_mask: bool = True
    """Whether a packed chunk sees itself only."""
    epochs: float = Field(1.0, gt=0)
    """Passes; over the share `data_share` of all blocks."""
    data_share: Added[float] = Field(1.0, gt=0, le=1)
    """Share of all blocks; the same for every seed, and within every larger share."""
    document_end: Added[Literal["auto", "none"]] = "auto"
    """What stands behind a document as its last label; `auto`: the token that the target itself expects there, if
    any."""
    lora: LoraConfig | None = None
    """Trains adapters instead of all weights."""


class RunConfig(Config):
    """How a job is carried out. Precision and threads decide the last bits of the weights, the rest nothing.

    (How the sums of a step are divided - devices, `micro_batch`, compilation - shifts last bits, too; but a training
    may go on with another division, so it is no part of its identity.)
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products; weights are fp32. `auto`: bf16 on a GPU, and on a CPU that multiplies it itself where the target is
    stored so; else fp32."""
    threads: int = Field(1, ge=1)
    """CPU threads; of one process."""
    head_block: Operational[int | None] = Field(None, ge=1)
    """Positions; whose logits exist at a time, none: 1,024 on a CPU, as many as fit 2^28 logits on a GPU."""
    validate_every: int = Field(50, ge=1)
    """Steps; between validations."""
    validate_tokens: Operational[int] = Field(16384, ge=1)
    """Tokens; in one forward pass of a validation."""
    log_every: Operational[int] = Field(10, ge=1)
    """Steps; between lines of the log."""
    checkpoint_every: Operational[int] = Field(200, ge=1)
    """Steps; between checkpoints."""
    keep_checkpoints: Operational[int] = Field(2, ge=1)
    """Checkpoints; the last ones, older ones are deleted."""
    skip_limit: Operational[int] = Field(3, ge=1)
    """Steps; so many whose gradient is not finite are skipped before the training stops."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    """`auto`: a GPU where there is one."""
    devices: Operational[int | None] = Field(None, ge=1)
    """Processes; per training on this machine, none: its GPUs, shared out among the trainings that run at once, or
    1."""
    shards: Operational[Literal["none", "fsdp"]] = "none"
    """`fsdp` divides the target's weights over the devices, `none` gives each a whole copy (DDP)."""
    micro_batch: Operational[int | None] = Field(None, ge=1)
    """Blocks; per forward pass and device, none: a device's whole share of the batch, on a GPU the largest even part of
    it within 16,384 tokens."""
    gradient_checkpointing: Operational[bool] = False
    """Computes activations again in the backward pass, which takes time and spares memory."""
    compile: Operational[bool] = False
    """Compiles the target's layers with torch.compile."""
    loader_workers: Operational[int | None] = Field(None, ge=0)
    """Processes; per device that make batches, none: 2 to 6 on a GPU, as there are cores, 0 on a CPU."""
    deterministic: Operational[bool] = False
    """Bit-exact runs on a GPU, too, where some sums else run in any order; slower there."""
    tensorboard: Operational[bool] = False
    """Event files beside the log."""
    wandb: Operational[str | None] = None
    """A Weights & Biases project to log to."""
    mlflow: Operational[str | None] = None
    """An MLflow experiment to log to; the server is MLFLOW_TRACKING_URI's."""


class TrainConfig(Config):
    """The training part of a run: every method, at every seed, at one learning rate."""

    methods: list[str] = Field(["fusionx"], min_length=1)
    """Presets (`ct`, `fusellm`, `fusellm-avgce`, `paper`, `fusionx`), or the names of forms that `overrides` makes of
    them."""
    overrides: dict[str, dict[str, object]] = {}
    """Method -> fields of it to change, and a `learning_rate` and `epochs` of its own, where it is not best at those of
    the others. With `preset` this makes a method of a name of its own, so that a preset can be trained in several forms
    beside each other: `{fusellm-walk: {preset: fusellm, alignment: walk, epochs: 3}}`."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Every method is trained once with each."""
    tune: list[Annotated[float, Field(gt=0)]] = []
    """Learning rates to choose from: the one at which `ct` reaches its lowest validation bits per byte with the first
    seed; empty: `optimizer.learning_rate`. A method whose `overrides` name a rate keeps that."""
    tune_each: Added[bool] = False
    """Whether every method uses the rate of `tune` that is best for itself."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, its schedule, batches and passes."""
    run: RunConfig = RunConfig()
    """How a training is carried out."""
    jobs: Operational[int] = Field(1, ge=1)
    """Trainings; that run at the same time on this machine."""

    @model_validator(mode="after")
    def _methods_exist(self) -> TrainConfig:
        problems: list[str] = []
        for name in dict.fromkeys([*self.methods, *self.overrides]):
            try:
                self.method(name)
                self.optimizer_of(name)
            except ValidationError as error:
                problems += [f"overrides.{name}: {problem}" for problem in problems_of(MethodConfig, error)]
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        if len(set(self.methods)) < len(self.methods) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a method or a seed is listed twice")
        if self.run.shards == "fsdp" and self.optimizer.lora and self.optimizer.lora.quantization != "none":
            raise ValueError("run.shards 'fsdp' cannot divide quantised weights; use 'none'")
        return self

    def method(self, name: str) -> MethodConfig:
        """The method `name`: its preset with this run's overrides."""
        changed = {field: value for field, value in self.overrides.get(name, {}).items() if field not in _SCHEDULE}
        preset_name = str(changed.pop("preset", name))
        if preset_name not in PRESETS:
            raise ValueError(
                f"unknown method '{preset_name}'; known: {', '.join(PRESETS)}, and those that train.overrides makes"
                f" of them ({name}: {{preset: fusellm, alignment: walk}})"
            )
        if not _NAME.fullmatch(name) or (name in PRESETS and preset_name != name):
            raise ValueError(
                f"'{name}' cannot be the name of a form of '{preset_name}'; take another one, such as"
                f" {preset_name}-walk"
            )
        preset, selection = PRESETS[preset_name].model_dump(), changed.get("selection", {})
        if selection and (teacher := changed.get("teacher", preset["teacher"])) != "asn":
            raise ValueError(
                f"overrides.{name}: selection: teacher '{teacher}' has no selection network: take the"
                " preset fusionx-network or paper"
            )
        if isinstance(selection, dict):  # what is no mapping is for the validation to refuse
            changed["selection"] = {**preset["selection"], **selection}
        return MethodConfig.model_validate({**preset, **changed})

    def optimizer_of(self, name: str) -> OptimizerConfig:
        """The optimizer with what the method `name` has of its own."""
        own = {field: value for field, value in self.overrides.get(name, {}).items() if field in _SCHEDULE}
        return OptimizerConfig.model_validate({**self.optimizer.model_dump(), **own})

    def searched(self) -> list[str]:
        """The methods that are trained at every rate of `tune`: the baseline, or all; not those whose rate is named."""
        methods = dict.fromkeys([BASELINE, *(self.methods if self.tune_each else [])]) if self.tune else {}
        return [name for name in methods if name not in self.own_rates()]

    def own_rates(self) -> dict[str, float]:
        """Of the methods whose `overrides` name a learning rate."""
        named = [name for name in self.overrides if "learning_rate" in self.overrides[name]]
        return {name: self.optimizer_of(name).learning_rate for name in named}


class TrainJob(Config):
    """One training: a target, its aligned shards, a method, a seed.

    `aligned` maps each candidate to its folder. `sources` says where their models are (path, revision), for the card.
    `end_id`: the target's token at the end of documents. `chat_template`: what the exported tokenizer is given in place
    of its own.
    """

    method_name: str
    method: MethodConfig
    seed: int = Field(ge=0)
    optimizer: OptimizerConfig
    run: RunConfig
    target: str
    target_path: Operational[str]
    target_revision: str | None = None
    target_weights: str
    sources: Operational[dict[str, dict[str, str]]] = {}
    corpus: Operational[str] = ""
    tokens: Operational[str]
    aligned: Operational[dict[str, str]]
    end_id: Added[int | None] = None
    chat_template: Added[str | None] = None
    inputs: dict[str, str]
    output: Operational[str]

    @model_validator(mode="after")
    def _teacher_has_candidates(self) -> TrainJob:
        if self.method.teacher != "none" and not self.aligned:
            raise ValueError(f"teacher '{self.method.teacher}' needs aligned shards, and `aligned` is empty")
        return self
