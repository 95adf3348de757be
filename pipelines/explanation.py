"""What a source teaches the target about a text, and where its tokens go: for a person, from the models themselves.

Needs no shards and makes none; `align.walk.explain` and `align.explain` turn what is found here into lines.
"""

from __future__ import annotations

from fusionx.align.vocabulary.vocab_map import Mode
from fusionx.align.walk.explain import Reading, explain_walk
from fusionx.align.walk.explained_lines import Line, walk_lines
from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.encoding import valid_text
from fusionx.pipelines.pipeline import Pipeline
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits.logits_stage import LogitsWorker


def walk_of_text(pipeline: Pipeline, source: str, text: str) -> list[Line]:
    """Runs the target and `source` over `text`, in this process, and shows the walk.

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
    positions = explain_walk(source_encoder, target_encoder, text, by_source, by_target, k)
    return walk_lines(positions, chosen.id, config.target.id)


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


def _refuse_invalid(text: str) -> None:
    if not valid_text(text):
        raise ConfigError("The text is no valid UTF-8.", field="TEXT", found=repr(text), expected="UTF-8")
