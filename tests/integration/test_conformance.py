"""Every architecture as a source and as a target.

What is stored is what the plain model says, position by position; what is exported is what was trained. The table in
docs/models.md says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_builder import Chunk, make_job, write_tokens
from source_models import CPU, TEXTS, VOCAB, log_softmax, save_model, stage_of, stored, write_chunks
from trainings import ALONE

from fusionx.contract.errors import ConfigError
from fusionx.contract.shards.parts import read_part
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.precompute.logits.logits_stage import LogitsStage, LogitsWorker
from fusionx.precompute.logits.source_model import load_model
from fusionx.train.loop.trainer import Trainer
from fusionx.train.model.target import load_target

CONTEXT, OVERLAP, STEPS = 32, 8, 3


@dataclass(frozen=True)
class Expected:
    """What an architecture can do. windows: its context ends somewhere. mask: packed documents can be kept apart."""

    windows: bool = True
    mask: bool = True


FAMILIES = {
    "llama": Expected(),
    "mistral": Expected(),
    "mixtral": Expected(),
    "qwen2": Expected(),
    "qwen3": Expected(),
    "gemma": Expected(),
    "gemma2": Expected(),
    "gemma3_text": Expected(),
    "phi": Expected(),
    "phi3": Expected(),
    "gpt2": Expected(),
    "gpt_neo": Expected(),
    "gpt_neox": Expected(),
    "gpt_bigcode": Expected(),
    "opt": Expected(mask=False),
    "bloom": Expected(windows=False, mask=False),
    "falcon": Expected(mask=False),
    "mpt": Expected(windows=False, mask=False),
    "olmo2": Expected(),
    "smollm3": Expected(),
    "starcoder2": Expected(),
    "cohere": Expected(),
    "granite": Expected(),
    "mamba": Expected(windows=False, mask=False),
    "lfm2": Expected(mask=False),
}
LONG = {"mpt": {"max_seq_len": 128}}
"""The others' context is 128 tokens in `source_models`."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """Two tokenizers, chunks for the sources, the target's tokens under each tokenizer."""
    root = tmp_path_factory.mktemp("conformance")
    write_chunks(root / "chunks", TEXTS, parts=1)
    for name, bos in (("plain", False), ("bos", True)):
        make_tokenizer(root / name, VOCAB, bos=bos)
        tokens_under(root / name, root / f"{name}-tokens")
    return root


def tokens_under(tokenizer: Path, output: Path) -> str:
    encodings = load_encoder(str(tokenizer)).encode(TEXTS)
    rows = [
        Chunk(number, 0, "d", text, encoding.ids, encoding.ends)
        for number, (text, encoding) in enumerate(zip(TEXTS, encodings, strict=True))
    ]
    return write_tokens(output, [("train", rows[:4]), ("validation", rows[:1])])


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture(world: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected, tokenizer = FAMILIES[family], "bos" if family.startswith(("llama", "gemma")) else "plain"
    folder = save_model(tmp_path / "model", world / tokenizer, family, **LONG.get(family, {}))
    model: Any = load_model(stage_of(world, folder).model, CPU)

    def plain(tokens: np.ndarray) -> np.ndarray:
        return log_softmax(model, tokens)

    stage = stage_of(world, folder, {"window_overlap": OVERLAP})
    worker: Any = stage.worker()
    assert not worker.source.by_rows
    assert (worker.context is not None) == expected.windows
    assert_stored(stage, replace(worker, context=None), plain)
    assert_stored(stage, replace(worker, context=CONTEXT), in_windows(worker.encoder, plain))
    tokens = str(world / f"{tokenizer}-tokens")
    train(folder, tokens, tmp_path / "plain", document_mask=False)
    if expected.mask:
        train(folder, tokens, tmp_path / "masked", document_mask=True)
    else:
        with pytest.raises(ConfigError, match="does not keep packed documents apart"):
            train(folder, tokens, tmp_path / "masked", document_mask=True)


def test_the_table_in_the_docs_is_this(root: Path) -> None:
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", (root / "docs" / "models.md").read_text(), re.MULTILINE)
    said = {family: [cell.strip() for cell in cells.split("|")[:4]] for family, cells in lines}
    assert said == {
        family: ["yes", "yes" if able.windows else "none", "yes", "yes" if able.mask else "no"]
        for family, able in FAMILIES.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen", "gemma"])
def test_real_source(world: Path, root: Path, tmp_path: Path, name: str) -> None:
    """Gemma has a BOS, windows inside its layers, and a tokenizer with more ids than its head has rows."""
    folder = real_model(root, name)
    stage = stage_of(world, folder, {"window_overlap": OVERLAP, "dtype": "float32"})
    worker: Any = replace(stage, output=str(tmp_path)).worker()
    assert not worker.source.by_rows
    assert worker.encoder.add_bos == (name == "gemma")
    model: Any = load_model(stage.model, CPU)

    def plain(tokens: np.ndarray) -> np.ndarray:
        return log_softmax(model, tokens)

    assert_stored(worker.stage, replace(worker, context=None), plain)
    assert_stored(worker.stage, replace(worker, context=CONTEXT), in_windows(worker.encoder, plain))


@pytest.mark.slow
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("name", ["smollm2", "qwen", "gemma"])
def test_real_target(root: Path, tmp_path: Path, name: str, document_mask: bool) -> None:
    folder = real_model(root, name)
    tokens = tokens_under(folder, tmp_path / "tokens")
    train(folder, tokens, tmp_path / "output", document_mask, pack=500, batch_size=1)  # all chunks in a block


def real_model(root: Path, name: str) -> Path:
    folder = root / "data" / "real" / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: `make demo-real` makes it")
    return folder


def test_a_model_that_leaks_but_little_over_the_document_mask_is_refused(world: Path, tmp_path: Path) -> None:
    def weaken(model: Any) -> None:
        for layer in model.model.layers:
            if hasattr(layer, "conv"):
                layer.conv.out_proj.weight.data *= 1e-4

    folder = save_model(tmp_path / "model", world / "plain", "lfm2", prepare=weaken)
    target = load_target(str(folder), None, CPU)
    with pytest.raises(ConfigError, match="does not keep packed documents apart"):
        target.verify_document_mask()


def in_windows(encoder: Encoder, plain: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A text in windows of CONTEXT tokens, each run alone and each with a BOS where the tokenizer puts one first."""

    def says(tokens: np.ndarray) -> np.ndarray:
        bos = tokens[: encoder.add_bos]
        rows, start = [plain(tokens[:CONTEXT])], CONTEXT
        while start < len(tokens):
            first = start - OVERLAP
            window = np.concatenate([bos, tokens[first : first + CONTEXT - len(bos)]])
            rows.append(plain(window)[OVERLAP + len(bos) :])
            start += len(rows[-1])
        return np.concatenate(rows)

    return says


def assert_stored(stage: LogitsStage, worker: LogitsWorker, says: Callable[[np.ndarray], np.ndarray]) -> None:
    (unit,) = stage.units()
    entry = worker(unit)
    chunks, _ = read_part(unit.inputs["chunks"], "chunks")
    rows = stored(stage, entry)
    texts = chunks.column("text").to_pylist()
    for encoding, (ids, logprobs, nll) in zip(worker.encoder.encode(texts), rows, strict=True):
        if not len(encoding.ids):
            continue
        expected = says(encoding.ids)
        best = -np.sort(-expected[:, : worker.encoder.vocab_size])[:, : ids.shape[1]]
        exact_nll = -np.take_along_axis(expected[:-1], encoding.ids[1:, None].astype(np.int64), 1)[:, 0]
        close = {"rtol": 2**-11, "atol": 1e-4}
        np.testing.assert_allclose(nll, np.append(exact_nll, 0), **close)
        np.testing.assert_allclose(logprobs, best, **close)
        np.testing.assert_allclose(logprobs, np.take_along_axis(expected, ids, 1), **close)


def train(folder: Path, tokens: str, output: Path, document_mask: bool, pack: int = 120, batch_size: int = 2) -> None:
    """Three steps over the same chunks, exported in the dtype of the model's files, loaded again."""
    from transformers import AutoModelForCausalLM

    optimizer = {"pack": pack, "epochs": STEPS, "batch_size": batch_size, "document_mask": document_mask}
    run = {"validate_every": STEPS, "checkpoint_every": 1000}
    trainer = Trainer(make_job(folder, tokens, {}, output, "ct", optimizer=optimizer, run=run), ALONE)
    before = trainer.target.model.get_output_embeddings().weight.detach().clone()  # type: ignore[operator]
    assert trainer.run()["steps"] == STEPS
    trained: Any = trainer.target.model.eval()
    assert not torch.equal(before, trained.get_output_embeddings().weight)
    loaded, info = AutoModelForCausalLM.from_pretrained(output / "last", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for weights in trained.parameters():
        weights.data = weights.data.to(trainer.target.stored_dtype).float()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, trained(ids).logits)
