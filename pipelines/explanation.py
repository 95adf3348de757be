"""What a source teaches the target about a text, and where its tokens go: for a person, from the models themselves.

Needs no shards and makes none; `align.walk.explain` and `align.explain` turn what is found here into lines.
"""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from typing import Any

from fusionx.align.vocabulary.vocab_map import Mode
from fusionx.align.walk.explain import Reading, WalkedPosition, explain_walk
from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.encoding import valid_text
from fusionx.pipelines.pipeline import Pipeline
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits.logits_stage import LogitsWorker


def walk_of_text(pipeline: Pipeline, source: str, text: str) -> list[WalkedPosition]:
    """Runs the target and `source` over `text`, in this process, and explains the walk.

    Raises:
        ConfigError: no such source or model, or a text that makes no chunk.
    """
    _refuse_invalid(text)
    config = pipeline.config
    chosen = pipeline.model(source)
    for model in (config.target, chosen):
        pipeline.logits_stage(model).check(config.chunk.block_size)
    target_encoder, by_target = _read(pipeline, config.target, text)
    source_encoder, by_source = _read(pipeline, chosen, text)
    k = config.align.k or config.precompute.k
    return explain_walk(source_encoder, target_encoder, text, by_source, by_target, k)


def walk_to_json(pipeline: Pipeline, source: str, text: str) -> dict[str, Any]:
    """`walk_of_text` as JSON has it: null for the probability of a token of which the source says nothing."""
    positions = [
        {
            **asdict(position),
            "status": position.status.name.lower(),
            "probability": None if isnan(position.probability) else float(position.probability),
        }
        for position in walk_of_text(pipeline, source, text)
    ]
    return {"source": source, "target": pipeline.config.target.id, "text": text, "positions": positions}


def _read(pipeline: Pipeline, model: ModelConfig, text: str) -> tuple[Encoder, Reading]:
    worker = pipeline.logits_stage(model).worker()
    assert isinstance(worker, LogitsWorker)
    encoder = load_encoder(model.path, model.revision)
    (encoding,) = encoder.encode([text])
    most = pipeline.config.chunk.block_size
    if not 2 <= len(encoding.ids) <= most:
        raise ConfigError(
            "The text is too long or too short.",
            field="TEXT",
            found=f"{len(encoding.ids)} tokens of '{model.id}'",
            expected=f"2 to {most}, as in a chunk",
            remedy="take another piece of it",
        )
    _, stored, token_nll = worker.read([encoding], "TEXT")
    return encoder, Reading(encoding, stored, token_nll)


def map_of_text(pipeline: Pipeline, source: str, mode: Mode, text: str | None) -> list[str]:
    """Lines that say where the tokens of `text`, or of the whole vocabulary, go in the vocabulary map and why."""
    from fusionx.align.explain import description_lines, explain_text

    _refuse_invalid(text or "")
    stage = pipeline.aligned_stage(mode, pipeline.model(source))
    vocab_map = stage.vocab_map()
    return description_lines(vocab_map) if text is None else explain_text(*stage.encoders(), vocab_map, text)


def map_to_json(pipeline: Pipeline, source: str, mode: Mode, text: str | None) -> dict[str, Any]:
    """The map in numbers (`align.explain.describe_map`); of a text, what it does with each of its source tokens."""
    from fusionx.align.explain import describe_map, mapped_text

    _refuse_invalid(text or "")
    stage = pipeline.aligned_stage(mode, pipeline.model(source))
    vocab_map = stage.vocab_map()
    if text is None:
        return describe_map(vocab_map)
    tokens = [asdict(token) for token in mapped_text(*stage.encoders(), vocab_map, text)]
    return {"source": source, "target": pipeline.config.target.id, "map": mode, "text": text, "tokens": tokens}


def _refuse_invalid(text: str) -> None:
    if not valid_text(text):
        raise ConfigError("The text is no valid UTF-8.", field="TEXT", found=repr(text), expected="UTF-8")
