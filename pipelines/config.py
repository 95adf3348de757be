"""The config of a whole run: one YAML file, from the corpus to the report."""

from __future__ import annotations

from collections import Counter
from os.path import normpath
from typing import Any, Literal

from pydantic import Field, model_validator

from fusionx.align.config import AlignConfig
from fusionx.contract.config import Config, Operational
from fusionx.eval.config import EvalConfig
from fusionx.precompute.config import ChunkConfig, CorpusConfig, GenerateConfig, ModelConfig, PrecomputeConfig
from fusionx.train.config import MethodConfig, OptimizerConfig, SelectionConfig, TrainConfig


class ExecutorConfig(Config):
    """Where workers run."""

    kind: Literal["ray", "inline"] = "ray"
    """`ray` (a local one, or the cluster at `address`), or `inline`: this process, which needs no ray."""
    address: str | None = None
    """The cluster to join: `auto`, or `host:port`; none: a local Ray."""
    num_cpus: int | None = Field(None, ge=1)
    """Cores; of a local Ray, none: all of the machine."""
    object_store_mb: int = Field(256, ge=80)
    """MiB; the shared memory of a local Ray."""
    retries: int = Field(3, ge=0)
    """Times; how often a unit whose worker was lost is tried again."""
    deadline: float | None = Field(21600.0, gt=0)
    """Seconds; a worker of Ray that takes longer for one unit, or to load a model, is ended and counts as lost, with a
    traceback of its threads in the log. none: it may take as long as it takes."""
    env: list[str] = ["AWS_*", "HF_*", "GOOGLE_APPLICATION_CREDENTIALS"]
    """Environment variables of the command that a cluster's workers get, too; `*` for any ending."""


class RecipeConfig(Config):
    """The search of `fusionx study recipe`: every method of the run at `trials` settings, or as many as there are."""

    trials: int = Field(8, ge=1)
    """Settings; how many each method is trained at."""
    space: dict[str, list[Any]] = {}
    """Field -> values to try: `optimizer.FIELD`, or a field of the methods (`lambda_fuse`, `selection.tau`), which only
    those are given that it means something for."""

    @model_validator(mode="after")
    def _fields_exist(self) -> RecipeConfig:
        known = {f"optimizer.{name}" for name in OptimizerConfig.model_fields}
        known |= {f"selection.{name}" for name in SelectionConfig.model_fields}
        known |= set(MethodConfig.model_fields) - {"selection"}
        for name, values in self.space.items():
            if name not in known:
                raise ValueError(f"space: there is no field '{name}'; it takes {', '.join(sorted(known))}")
            if not values:
                raise ValueError(f"space: '{name}' has no value to be tried")
        return self


class FusionConfig(Config):
    """A run. The target is a candidate too (paper, section 3); `sources` are the others."""

    name: str
    """What the report calls the run."""
    output: Operational[str]
    """The folder of everything that the run makes; `s3://...` or the like for the data stages."""
    target: ModelConfig
    """The model that learns."""
    sources: list[ModelConfig] = []
    """The models that it learns from."""
    corpus: CorpusConfig
    """The text that all models read."""
    chunk: ChunkConfig = ChunkConfig()
    """How documents are cut."""
    generate: Operational[GenerateConfig] = GenerateConfig()
    """What `fusionx generate` has the sources write."""
    precompute: PrecomputeConfig = PrecomputeConfig()
    """How every candidate's distributions are computed and kept."""
    align: AlignConfig = AlignConfig()
    """How they become distributions over the target's tokens."""
    train: TrainConfig = TrainConfig()
    """Methods, seeds, learning rates, optimisation."""
    eval: EvalConfig = EvalConfig()
    """What every model is judged by."""
    executor: Operational[ExecutorConfig] = ExecutorConfig()
    """Where workers run."""
    recipe: Operational[RecipeConfig] = RecipeConfig()
    """The search of `fusionx study recipe`."""

    @property
    def models(self) -> list[ModelConfig]:
        """All candidates, the target first."""
        return [self.target, *self.sources]

    @model_validator(mode="after")
    def _consistent(self) -> FusionConfig:
        problems = [
            *_listed_twice("id", [model.id for model in self.models]),
            *_listed_twice("path", [_place(model) for model in self.models]),
        ]
        for name in self.train.methods:
            method = self.train.method(name)
            if method.teacher != "none" and method.alignment not in self.align.methods:
                problems.append(
                    f"train.methods: method '{name}' reads the alignment '{method.alignment}', which align.methods "
                    f"does not make (found {self.align.methods})"
                )
        taken = {"target", *self.train.methods, *self.eval.merge_rows} & set(self.eval.rivals)
        problems += [f"eval.rivals: '{name}' is the name of another row of the report" for name in sorted(taken)]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _place(model: ModelConfig) -> str:
    """Path and revision; `models/a`, `./models/a` and `models/a/` are one place."""
    return normpath(model.path) + (f"@{model.revision}" if model.revision else "")


def _listed_twice(field: str, values: list[str]) -> list[str]:
    return [
        f"sources: a source is listed twice ({field} '{value}')"
        for value, count in Counter(values).items()
        if count > 1
    ]
