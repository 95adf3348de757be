"""Evaluates one model: held-out text and tasks in, one JSON file out. A valid file is not computed again."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import write_sealed
from fusionx.contract.files.storage import exists
from fusionx.eval.config import EvalConfig
from fusionx.eval.models.loaded_model import (
    LoadedModel,
    check_model_folder,
    limited_threads,
    load_model,
    settings_digest,
    weights_digest,
)
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.tasks.exact_match import Task, load_tasks, run_task
from fusionx.eval.text.continuations import beginnings, continuations
from fusionx.eval.text.perplexity import Chunk, aggregate, overall, score_chunks

log = logging.getLogger(__name__)


def evaluate_model(
    model_folder: str | Path,
    chunks: Sequence[Chunk],
    config: EvalConfig,
    output: str | Path | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluates an exported model and writes the result to `output` (whole or not at all).

    An `output` that exists and was made of the same weights, settings and data is returned as it is; one beside it that
    was is taken over, as where the best step of a training is its last.

    Returns:
        `model`, the digests of weights, settings (config and tokenizer), evaluation config and data (held-out text
        and prompts), `domains` (per domain nll in nats, tokens, bytes, perplexity, bits_per_byte, n_chunks, n_docs),
        `overall`, `tasks` (n, score, stderr, truncated), `documents` ([nll, bytes] per document, by id), `items` (0 or
        1 per item), `continuations` of a few documents, `versions`, `seconds`.

    Raises:
        ConfigError: there is no such folder, or a task is missing.
        DataError: the folder is no safetensors model, there is nothing to evaluate, or data does not fit the model.
    """
    folder = check_model_folder(model_folder)
    tasks = load_tasks(config)
    if not chunks and not tasks:
        raise DataError("There is nothing to evaluate.", field="split", found=f"no {config.split} chunks and no tasks")
    identity = {
        "weights_digest": weights_digest(folder),
        "settings_digest": settings_digest(folder),
        "config_digest": config.measurement_digest(),
        "data_digest": data_digest(chunks, tasks),
    }
    if output is not None:
        finished = _finished(output, identity)
        if finished is not None:
            log.info("%s: evaluated before, kept", folder)
            return finished
        twin = _twin(Path(output), identity)
        if twin is not None:
            result = {**twin, "model": str(folder)}
            log.info("%s: the same weights as another model's, evaluated before", folder)
            write_sealed(output, result, finite=True)
            return result
    start = time.perf_counter()
    result = {"model": str(folder), **identity, **_measure(folder, chunks, tasks, config, trust_remote_code)}
    result["seconds"] = round(time.perf_counter() - start, 3)
    log.info("%s: %d chunks and %d tasks in %.1f s", folder, len(chunks), len(tasks), result["seconds"])
    if output is not None:
        write_sealed(output, result, finite=True)
    return result


def data_digest(chunks: Sequence[Chunk], tasks: Sequence[Task]) -> str:
    """Digest of the held-out text and of every prompt and target; independent of the order of the chunks.

    Chunks of one document are told apart by their number where the records have one (`chunk`).
    """
    texts = sorted([str(c["domain"]), str(c["doc_id"]), int(c.get("chunk", 0)), c["text"]] for c in chunks)
    return digest_of({"chunks": texts, "tasks": {task.name: task.digest() for task in tasks}})


def _finished(output: str | Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """The existing result if it is one of this very evaluation, else None."""
    if not exists(output):
        return None
    try:
        found = Evaluation.load(output)
    except DamageError as error:
        log.warning("evaluated anew. %s", error)
        return None
    return dict(vars(found)) if _is_of(found, identity) else None


def _twin(output: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """The result of this very evaluation that stands beside `output`, if there is one."""
    for other in sorted(output.parent.glob("*.json")):
        try:
            found = Evaluation.load(other)
        except DataError:  # no evaluation, or a damaged one: not what is asked for here
            continue
        if other != output and _is_of(found, identity):
            return dict(vars(found))
    return None


def _is_of(found: Evaluation, identity: dict[str, str]) -> bool:
    return all(getattr(found, name) == digest for name, digest in identity.items())


def _measure(
    folder: Path, chunks: Sequence[Chunk], tasks: Sequence[Task], config: EvalConfig, trust_remote_code: bool
) -> dict[str, Any]:
    with limited_threads(config.threads):
        loaded = load_model(folder, config.device, config.dtype, trust_remote_code=trust_remote_code)
        held_out = aggregate(chunks, score_chunks(loaded, chunks, config.batch_tokens))
        results = {task.name: run_task(loaded, task, config) for task in tasks}
        written = continuations(loaded, beginnings(chunks, config.examples), config.batch_tokens)
    return {
        "domains": held_out.domains,
        "overall": overall(held_out.domains),
        "tasks": {name: result.figures() for name, result in results.items()},
        "documents": held_out.documents,
        "items": {name: result.correct for name, result in results.items()},
        "continuations": written,
        "versions": _versions(loaded),
    }


def _versions(loaded: LoadedModel) -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {**packages, "device": loaded.device.type, "dtype": str(loaded.model.dtype).removeprefix("torch.")}
