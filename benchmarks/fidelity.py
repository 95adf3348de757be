"""What alignment costs between real tokenizers: the fidelity of every map, by the project's own stages.

The sources are two small Llamas, one per tokenizer, trained once on the text that the demo's models learn from and kept
under `data/`. Everything after that is an ordinary run over text that they have not seen. A tokenizer onto itself shows
what its k entries leave out, over all positions; a pair is measured on the aligned ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import MapMode
from fusionx.align.fidelity import shares, summary
from fusionx.align.tokens_stage import TokensStage
from fusionx.benchmarks.align import aligned_stage, make
from fusionx.benchmarks.map import llama_128k, mistral_32k, tekken_131k
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.config import digest_of, load_config
from fusionx.contract.errors import DataError
from fusionx.contract.files import done_marks
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.pipelines.demo.config import DemoInputs, DemoModelConfig, TokenizerKind
from fusionx.pipelines.demo.models import Training, train
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig, Split
from fusionx.precompute.logits.logits_stage import LogitsStage

PAIRS = {
    "128k to 32k": ("llama_128k", "mistral_32k"),
    "32k to 131k": ("mistral_32k", "tekken_131k"),
    "128k to itself": ("llama_128k", "llama_128k"),
    "32k to itself": ("mistral_32k", "mistral_32k"),
}
"""Source and target, by their tokenizers."""

DEMO, KEPT = Path("data/demo"), Path("data/benchmarks")
HELD_OUT: list[Split] = ["validation", "test"]
BLOCK, K = 256, 32
TRAINING_TOKENS = 60_000
"""Few, since a step's cost is the softmax over 128,000 tokens; a token of such a vocabulary stands for four bytes."""
_TOKENIZERS = {maker.__name__: maker for maker in (llama_128k, mistral_32k, tekken_131k)}
_KINDS: dict[str, TokenizerKind] = {"llama_128k": "byte_bpe", "mistral_32k": "sentencepiece_bpe"}


def figures() -> Iterator[Figure]:
    """Of every pair and map: bits per byte, what alignment costs, and how often and how well positions are aligned.

    Raises:
        DataError: the demo's corpus is not there.
    """
    if done_marks.read_mark(DEMO / "corpus") is None:
        raise DataError("The demo's corpus is missing.", file=DEMO / "corpus", remedy="run `make demo-inputs`")
    with TemporaryDirectory() as folder:
        models = {name: ModelConfig(id=name, path=str(_model(name, Path(folder)))) for name in _TOKENIZERS}
        chunks = f"{folder}/chunks"
        corpus = CorpusConfig(path=str(DEMO / "corpus"), domain="domain", splits=HELD_OUT)
        make(ChunkStage(corpus, ChunkConfig(block_size=BLOCK), list(models.values()), chunks))
        for name, model in models.items():
            make(TokensStage(name, model.path, None, list(HELD_OUT), chunks, f"{folder}/tokens-{name}"))
        for name in _KINDS:
            config = PrecomputeConfig(k=K, splits=HELD_OUT, threads=torch.get_num_threads())
            make(LogitsStage(models[name], config, chunks, f"{folder}/{name}"))
        for pair, (source, target) in PAIRS.items():
            # A tokenizer's map onto itself is the same in every mode.
            modes: tuple[MapMode, ...] = get_args(MapMode) if source != target else ("exact",)
            for mode in modes:
                shards = (f"{folder}/{source}", f"{folder}/tokens-{target}")
                yield from _fidelity(pair, aligned_stage(models[source], models[target], mode, *shards))


def _fidelity(pair: str, stage: AlignedStage) -> Iterator[Figure]:
    stats = make(stage).stats
    case = pair if stage.source == stage.target else f"{pair}, {stage.mode}"
    aligned = 1 - shares(stats["status"])["not_aligned"]
    for metric, value in {**summary(stats["fidelity"]), "aligned": aligned}.items():
        share = metric in ("hits", "aligned")
        yield Figure("fidelity", case, metric, value, "of positions" if share else "bits per byte")


def _model(name: str, folder: Path) -> Path:
    """A folder with the tokenizer `name` and, for a source, the model that goes with it."""
    tokenizer = folder / "tokenizers" / name
    _TOKENIZERS[name]().save_pretrained(tokenizer)
    return _learned(name, tokenizer) if name in _KINDS else tokenizer


def _learned(name: str, tokenizer: Path) -> Path:
    """The source's model, trained unless the one that is kept was made from the same."""
    inputs = load_config(DemoInputs, Path("configs/inputs/demo.yaml"))
    encoder = load_encoder(str(tokenizer))
    config = DemoModelConfig(
        id=name.replace("_", "-"),
        architecture="llama",
        tokenizer=_KINDS[name],
        vocab_size=encoder.vocab_size,
        hidden_size=64,
        layers=2,
        heads=2,
        context=BLOCK,
        mix=dict.fromkeys(inputs.corpus.domains(), 1.0),
        training_tokens=TRAINING_TOKENS,
        batch_tokens=512,
        learning_rate=3e-3,
    )
    text = done_marks.read_mark(DEMO / "corpus")
    assert text is not None
    digest = digest_of([config.content(), inputs.optimizer.content(), inputs.seed, text["files"], encoder.fingerprint])
    training = Training(inputs, config, tokenizer, DEMO / "experts", KEPT / name, digest)
    if not done_marks.is_done(training.output, digest):
        train(training, partial(print, file=sys.stderr))  # figures have stdout to themselves
        done_marks.write_mark(training.output, digest, list(training.output.iterdir()))
    return training.output
