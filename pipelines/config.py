"""The config of a whole run: one YAML file, from the corpus to the report."""

from __future__ import annotations

from collections import Counter
from os.path import normpath
from typing import Any, Literal

from pydantic import Field, model_validator

from fusionx.align.config import AlignConfig
from fusionx.contract.config import Config, Operational
from fusionx.eval.config import EvalConfig
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.train.config import MethodConfig, OptimizerConfig, SelectionConfig, TrainConfig


class ExecutorConfig(Config):
    """Where workers run: `ray` (a local one, or the cluster at `address`) or `inline` (this process).

    `env`: names (`*` for any ending) of the command's environment variables that a cluster's workers get, too. A local
    Ray inherits all of them. `num_cpus` and `object_store_mb` size a local Ray.
    """

    kind: Literal["ray", "inline"] = "ray"
    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    object_store_mb: int = Field(256, ge=80)
    retries: int = Field(3, ge=0)
    env: list[str] = ["AWS_*", "HF_*", "GOOGLE_APPLICATION_CREDENTIALS"]


class RecipeConfig(Config):
    """The search of `fusionx study recipe`: every method of the run at `trials` settings, or as many as there are.

    `space`: field -> the values that are tried; `optimizer.FIELD`, or a field of the methods (`lambda_fuse`,
    `selection.tau`), which only those are given that it means something for.
    """

    trials: int = Field(8, ge=1)
    space: dict[str, list[Any]] = {}

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
    output: Operational[str]
    target: ModelConfig
    sources: list[ModelConfig] = []
    corpus: CorpusConfig
    chunk: ChunkConfig = ChunkConfig()
    precompute: PrecomputeConfig = PrecomputeConfig()
    align: AlignConfig = AlignConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    executor: Operational[ExecutorConfig] = ExecutorConfig()
    recipe: Operational[RecipeConfig] = RecipeConfig()

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
