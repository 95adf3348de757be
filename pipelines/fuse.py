"""`fusionx.fuse`: a whole run from Python, in one call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionx.contract.config import parse_config
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.run_result import RunResult
from fusionx.pipelines.pipeline import open_pipeline
from fusionx.precompute.config import CorpusConfig, ModelConfig

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NO_ID = re.compile(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+")
"""What no id of a model may hold."""


def fuse(
    target: str | Path | Mapping[str, Any] | ModelConfig,
    sources: Sequence[str | Path | Mapping[str, Any] | ModelConfig],
    corpus: str | Path | Mapping[str, Any] | CorpusConfig,
    output: str | Path,
    *,
    overwrite: bool = False,
    **sections: Any,
) -> RunResult:
    """Makes `target` stronger by what `sources` know of `corpus`: all stages, as `fusionx run` carries them out.

    Called again it goes on where it was stopped, and keeps what is done. `output/run.yaml` is the config for the
    command line (`fusionx status`, `fusionx study`, ...).

    Args:
        target, sources: hub ids, folders or GGUF files, or with more settings (`ModelConfig`): a model's `id` is the
            last part of its path unless it is given.
        corpus: a file or folder, local or behind a URI, or a hub data set's id; or with more settings (`CorpusConfig`).
            Without splits in it give the shares to hold out: `{"path": ..., "holdout": {"validation": 0.05, "test":
            0.05}}`.
        output: the run's folder, which gives the run its name unless `name` is among `sections`.
        overwrite: what another config made there is made again instead of refused.
        sections: the config's others, each as its keys: `train={"methods": ["ct", "fusionx"]}`, `precompute={"k": 16}`,
            `executor={"kind": "inline"}`; what is left out has its default.

    Returns:
        The numbers, and where report and model lie.

    Raises:
        ConfigError: the config is wrong or cannot work here; all problems of one kind are told together.
        IncompleteError, DataError: as the command's exit code 1; what is done is kept.
    """
    raw = {
        "name": Path(output).name,
        "output": str(output),
        "target": _model(target),
        "sources": [_model(source) for source in sources],
        "corpus": _corpus(corpus),
        **sections,
    }
    with open_pipeline(parse_config(FusionConfig, raw, "fusionx.fuse"), overwrite=overwrite) as pipeline:
        return pipeline.run()


def _model(given: str | Path | Mapping[str, Any] | ModelConfig) -> dict[str, Any] | ModelConfig:
    if isinstance(given, ModelConfig):
        return given
    content = dict(given) if isinstance(given, Mapping) else {"path": str(given)}
    if isinstance(content.get("path"), str | Path):
        place = Path(content["path"])
        content["path"] = str(content["path"])
        content.setdefault("id", _NO_ID.sub("-", place.stem if place.suffix == ".gguf" else place.name).strip("-"))
    return content


def _corpus(given: str | Path | Mapping[str, Any] | CorpusConfig) -> dict[str, Any] | CorpusConfig:
    """A text that could be both is a file where there is one, else a hub data set's id."""
    if isinstance(given, CorpusConfig):
        return given
    if isinstance(given, Mapping):
        return dict(given)
    is_id = isinstance(given, str) and _HUB_ID.fullmatch(given) is not None and not Path(given).exists()
    return {"dataset" if is_id else "path": str(given)}
