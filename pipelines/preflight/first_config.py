"""`fusionx init`: a first config with comments, which the loader takes and the run can carry out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from fusionx.contract.config import parse_config
from fusionx.contract.errors import FusionXError
from fusionx.contract.files.storage import exists
from fusionx.contract.models.hub import may_be_on_hub
from fusionx.pipelines.config import FusionConfig
from fusionx.precompute.config import CorpusConfig, ModelConfig
from fusionx.precompute.corpus.files import files_of
from fusionx.precompute.logits.source_model import context_length, load_model_config

_BLOCK = 2048
"""Tokens of a chunk, where no model's context is shorter."""
_HELD_OUT = {"validation": 0.02, "test": 0.02}
"""Of a corpus without files of its own for them."""


def first_config(target: str, sources: Sequence[str], corpus: str, output: str) -> str:
    """The text of a YAML file: Fusion-X beside plain continued training, and the choices that most users make.

    Args:
        target, sources: model folders, GGUF files or hub ids. corpus: a file, a folder, a URI, or a hub data set.

    Raises:
        ConfigError: these make no config, such as a source that is the target.
    """
    ids = _ids([target, *sources])
    models = [_flow({"id": id, "path": path}) for id, path in zip(ids, [target, *sources], strict=True)]
    text = "\n".join(
        [
            "# All keys and what they mean: docs/configuration.md. Next: fusionx doctor, plan, run, with this file.",
            f"name: {_flow(Path(output).name)}",
            f"output: {_flow(output)}  # everything that the run makes",
            "",
            f"target: {models[0]}  # the model that learns",
            "sources:  # the models that it learns from, of any tokenizer",
            *(f"  - {model}" for model in models[1:]),
            "",
            f"corpus: {_flow(_corpus(corpus))}  # text: a column; domain: one by which results are told apart",
            "",
            f"chunk: {{block_size: {_block([target, *sources])}}}  # tokens, at most the shortest context",
            "precompute: {k: 32, workers: 1}  # tokens kept per position; with GPUs also num_gpus: 1",
            "train:",
            "  methods: [ct, fusionx]  # ct, training on the text alone, shows what the sources add",
            "  seeds: [0]",
            "  optimizer: {learning_rate: 3.0e-5, batch_size: 8, epochs: 1}",
            "  # tune: [3.0e-5, 1.0e-4, 3.0e-4]  # rates to try first, with ct: they decide more than the method",
            "# executor: {address: auto}  # join a running Ray cluster instead of a Ray of this machine's own",
            "",
        ]
    )
    parse_config(FusionConfig, yaml.safe_load(text), "the new config")
    return text


def missing_places(models: Sequence[str], corpus: str) -> Iterator[str]:
    """What is neither here nor a name that the hub could know; a new config may name it, a run cannot use it."""
    for place in (*models, corpus):
        if "://" not in place and not Path(place).expanduser().exists() and not may_be_on_hub(place):
            yield place


def _ids(paths: Sequence[str]) -> list[str]:
    """A name for each model: what its folder, file or repository is called; numbered where two are called the same."""
    names: list[str] = []
    for path in paths:
        last = re.sub(r"[^a-z0-9._-]+", "-", Path(path).name.removesuffix(".gguf").lower()).strip("-._") or "model"
        numbered = (f"{last}-{number}" for number in count(2))
        names.append(next(name for name in chain([last], numbered) if name not in names))
    return names


def _corpus(corpus: str) -> dict[str, Any]:
    """Where it is, and shares of the training text for the splits that it has no files of."""
    if "://" not in corpus and not exists(corpus) and may_be_on_hub(corpus):
        return {"dataset": corpus, "text": "text", "splits": ["train"], "holdout": _HELD_OUT}
    place = CorpusConfig(path=corpus)
    missing = dict(_HELD_OUT)
    with suppress(FusionXError):  # it is not there yet, or cannot be reached from here
        missing = {split: share for split, share in _HELD_OUT.items() if not files_of(place, split)}  # type: ignore[arg-type]
    return {"path": corpus, "text": "text"} | ({"holdout": missing} if missing else {})


def _block(paths: Sequence[str]) -> int:
    contexts: list[int | None] = []
    for path in paths:
        with suppress(FusionXError):  # not there yet; the doctor says so
            contexts.append(context_length(load_model_config(ModelConfig(id="model", path=path))))
    return min([_BLOCK, *filter(None, contexts)])


def _flow(value: Any) -> str:
    """On one line; strings are quoted where YAML needs it."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
