"""Any causal language model as a source: what is stored equals what the model itself says, row by row in float64."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.shards.codec import read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, read_part, write_part
from fusionx.contract.shards.schema import CHUNKS, text_hash
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits import source_model
from fusionx.precompute.logits.logits_stage import LogitsStage, UnitTokens, Window, windows_of
from fusionx.precompute.logits.source_model import context_length, load_model, load_source, split_model

K, BLOCK, VOCAB = 6, 96, 300
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 2,
    "naïve café, 你好世界",
    "x",
    "def f():\n    return 1\n\n" * 3,
    "a",
    "",
]
CPU = torch.device("cpu")

_WIDE = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 128, "num_hidden_layers": 2}
_USUAL = {**_WIDE, "intermediate_size": 64}
_GROUPED = {**_USUAL, "num_key_value_heads": 1, "head_dim": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _USUAL),  # Yi is a Llama, too
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 12}),
    "gpt_neox": ("gpt_neox", _USUAL),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_heads": 2,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
            "max_position_embeddings": 128,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "starcoder2": ("starcoder2", _USUAL | {"num_key_value_heads": 1}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),  # linear biases: goes beyond
    "bloom": ("bloom", {"hidden_size": 32, "n_head": 2, "n_layer": 2}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "sliding_window": 12, "final_logit_softcapping": 2.0}),
    "qwen2": ("qwen2", _USUAL | {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", _GROUPED),
    "cohere": ("cohere", {**_USUAL, "logit_scale": 0.25}),
    "granite": ("granite", {**_USUAL, "logits_scaling": 3.0}),
    "phi": ("phi", _USUAL),  # the head has a bias
    "opt": ("opt", _WIDE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),  # calls `model.decoder`
    "mixtral": ("mixtral", _USUAL | {"num_key_value_heads": 1, "num_local_experts": 4}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """Two tokenizers and two parts of chunks."""
    root = tmp_path_factory.mktemp("sources")
    make_tokenizer(root / "plain", VOCAB)
    make_tokenizer(root / "bos", VOCAB, bos=True)
    write_chunks(root / "chunks", TEXTS)
    return root


def write_chunks(folder: Path, texts: list[str], block_size: int = BLOCK, parts: int = 2) -> None:
    entries = []
    provenance = Provenance("chunks", "train", {"block_size": block_size}, {})
    for part in range(parts):
        rows = [(doc, 0, text_hash(text), "d", text) for doc, text in enumerate(texts) if doc % parts == part]
        table = pa.table(dict(zip(CHUNKS.names, map(list, zip(*rows, strict=True)), strict=True)), schema=CHUNKS)
        entries.append(write_part(str(folder / f"part-{part:05d}.parquet"), table, provenance, tokens=0))
    write_manifest(str(folder), build_manifest("chunks", provenance.config, {}, entries))


def save_model(
    folder: Path,
    tokenizer: Path,
    architecture: str,
    dtype: torch.dtype = torch.float32,
    padding: int = 7,
    prepare: Callable[[Any], None] | None = None,
    **changes: Any,
) -> Path:
    """Random weights with a spread that gives peaked distributions; the head is `padding` places too large."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = ARCHITECTURES[architecture]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=VOCAB + padding, **special, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            elif parameter.abs().max() == 0:
                parameter.normal_(0, 0.5)  # biases
    if prepare is not None:
        prepare(model)
    shutil.copytree(tokenizer, folder)
    model.to(dtype).save_pretrained(folder)
    return folder


def stage_of(root: Path, folder: Path, options: dict[str, Any] | None = None, **config: Any) -> LogitsStage:
    model = ModelConfig(id="m", path=str(folder), **(options or {}))
    settings = PrecomputeConfig(**{"k": K, "batch_tokens": 256, "device": "cpu", **config})
    return LogitsStage(model, settings, str(root / "chunks"), str(folder) + "-logits")


def run(stage: LogitsStage) -> list[PartEntry]:
    worker = stage.worker()
    return [worker(unit) for unit in stage.units()]


def stored(stage: LogitsStage, entry: PartEntry) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per row of a part: ids int [T, k], logprobs float16 [T, k], nll [T] (0 at the end)."""
    table, _ = read_part(f"{stage.output}/{entry.name}", "logits")
    distributions = read_distributions(table)
    whole = (*distributions.padded(K), read_token_nll(table, distributions))
    offsets = read_tokens(table)[0].offsets
    return [tuple(values[start:stop] for values in whole) for start, stop in pairwise(offsets)]


def log_softmax(model: Any, tokens: np.ndarray) -> np.ndarray:
    """float64 [T, V] of one text alone: no batch, no padding, no mask."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def assert_stored(root: Path, stage: LogitsStage, says: Callable[[np.ndarray], np.ndarray]) -> None:
    """What the parts hold, in fp16, against `says` (tokens -> log-probabilities float64 [T, V])."""
    encoder = load_encoder(stage.model.path)
    for entry in run(stage):
        chunks, _ = read_part(str(root / "chunks" / entry.name), "chunks")
        nll_sum = 0.0
        for text, (ids, logprobs, nll) in zip(chunks.column("text").to_pylist(), stored(stage, entry), strict=True):
            tokens = encoder.encode([text])[0].ids
            assert len(ids) == len(tokens)
            if not len(tokens):
                continue
            expected = says(tokens)
            exact_nll = -np.take_along_axis(expected[:-1], tokens[1:, None].astype(np.int64), 1)[:, 0]
            nll_sum += exact_nll.sum()
            known = expected[:, : encoder.vocab_size]
            assert ids.max() < encoder.vocab_size
            assert all(len(set(row)) == K for row in ids.tolist())
            close = {"rtol": 2**-11, "atol": 1e-4}
            np.testing.assert_allclose(nll, np.append(exact_nll, 0), **close)
            np.testing.assert_allclose(logprobs, -np.sort(-known)[:, :K], **close)
            np.testing.assert_allclose(logprobs, np.take_along_axis(known, ids, 1), **close)
        assert entry.stats["nll"] == pytest.approx(nll_sum, rel=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_stored_is_what_the_model_says(root: Path, tmp_path: Path, name: str) -> None:
    folder = save_model(tmp_path / name, root / ("bos" if name in ("llama", "mpt", "gemma") else "plain"), name)
    stage = stage_of(root, folder)
    stage.check(BLOCK)
    model = load_model(stage.model, CPU)
    if name == "mpt":
        model.config.max_seq_len = 128  # the plain model fails beyond the length its config states
    assert not load_source(stage.model, VOCAB, CPU).by_rows, "the head was not parted from the trunk"
    assert_stored(root, stage, lambda tokens: log_softmax(model, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_weights_are_fp32(root: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """One text alone: the same logits as the model's own, and a precision that neither dtype could tell apart."""
    folder = save_model(tmp_path / "half", root / "plain", "llama", dtype)
    worker: Any = stage_of(root, folder).worker()
    model = load_model(worker.stage.model, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    encodings = worker.encoder.encode(TEXTS[:1])
    found = worker._run(UnitTokens.of(encodings))
    exact = log_softmax(model, encodings[0].ids)[:, :VOCAB]
    assert np.abs(found.logprobs.numpy() - -np.sort(-exact)[:, :K]).max() < 1e-5
    tail = 1 - np.exp(log_softmax(model, encodings[0].ids))[np.arange(len(exact))[:, None], found.ids].sum(1)
    assert np.abs(found.tail.numpy() - tail).max() < 1e-5


def test_other_dtype_than_the_folders(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "half", root / "plain", "llama", torch.bfloat16)
    stage = stage_of(root, folder, {"dtype": "float32"})
    model = load_model(ModelConfig(id="m", path=str(folder)), CPU).float()
    assert_stored(root, stage, lambda tokens: log_softmax(model, tokens))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_kernel_is_the_one_asked_for(root: Path, tmp_path: Path, attention: str) -> None:
    folder = save_model(tmp_path / "m", root / "plain", "llama")
    model: Any = load_model(ModelConfig(id="m", path=str(folder), attention=attention), CPU)
    assert model.config._attn_implementation == attention
    stages = [stage_of(root, folder, {"attention": name}) for name in (attention, "auto")]
    unit = next(iter(stages[0].units()))
    assert "attention" in stages[1].differences(stages[0].provenance(unit), unit)[0]


def test_what_is_not_installed_or_not_there_is_named(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save_model(tmp_path / "m", root / "plain", "mpt")
    missing = {"bitsandbytes", "accelerate"}
    monkeypatch.setattr(source_model, "find_spec", lambda name: None if name in missing else SimpleNamespace())
    wrong: list[tuple[dict[str, Any], str, float, str]] = [
        ({"attention": "flash_attention_2"}, "cpu", 0, "(?s)cannot be loaded.*MPT"),
        ({"quantization": "4bit"}, "cpu", 0, "Quantised weights need a GPU"),
        ({"quantization": "8bit"}, "cuda", 1, "pip install bitsandbytes"),
        ({}, "cuda", 2, "pip install accelerate"),
    ]
    for options, device, gpus, said in wrong:
        with pytest.raises(ConfigError, match=f"(?i){said}"):
            load_model(ModelConfig(id="m", path=str(folder), **options), torch.device(device), gpus)


@pytest.mark.parametrize("overlap", [0, 9, 31])
@pytest.mark.parametrize("name", ["gpt_neo", "llama"])
def test_windows_equal_each_window_run_alone(root: Path, tmp_path: Path, name: str, overlap: int) -> None:
    folder = save_model(tmp_path / name, root / "bos", name, max_position_embeddings=32)
    stage = stage_of(root, folder, {"window_overlap": overlap})
    stage.check(BLOCK)
    model = load_model(stage.model, CPU)

    def says(tokens: np.ndarray) -> np.ndarray:
        rows: list[np.ndarray] = []
        for position in range(len(tokens)):
            # Of all windows with this position: the one that begins first.
            starts = [start for start in range(0, len(tokens), 32 - overlap) if start <= position < start + 32]
            rows.append(log_softmax(model, tokens[starts[0] : starts[0] + 32])[position - starts[0]])
        return np.stack(rows)

    assert_stored(root, stage, says)


def test_windows_cover_every_position_once() -> None:
    assert list(windows_of([5, 0, 10], 4, 1)) == [
        Window(0, 0, 0, 4),
        Window(0, 3, 4, 5),
        Window(2, 0, 0, 4),
        Window(2, 3, 4, 7),
        Window(2, 6, 7, 10),
    ]
    assert list(windows_of([5], None, 1)) == list(windows_of([5], 5, None)) == [Window(0, 0, 0, 5)]


def test_a_context_too_short_needs_windows_that_advance(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "short", root / "plain", "gpt2", n_positions=32)
    with pytest.raises(ConfigError, match="window_overlap"):
        stage_of(root, folder).check(BLOCK)
    with pytest.raises(ConfigError, match="do not advance"):
        stage_of(root, folder, {"window_overlap": 32}).check(BLOCK)
    stage_of(root, folder, {"window_overlap": 31}).check(BLOCK)


def test_the_context_is_found_under_each_of_its_names() -> None:
    from transformers import AutoConfig

    gemma3 = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 64})
    assert context_length(gemma3) == 64
    assert context_length(AutoConfig.for_model("gpt2", n_positions=77)) == 77
    assert context_length(AutoConfig.for_model("gpt_neo")) == 2048
    assert context_length(AutoConfig.for_model("mpt", max_seq_len=77)) is None
    assert context_length(AutoConfig.for_model("mpt", max_seq_len=77, attn_config={"alibi": False})) == 77
    assert context_length(AutoConfig.for_model("falcon", alibi=True)) is None
    assert context_length(AutoConfig.for_model("bloom")) is None
    assert context_length(AutoConfig.for_model("mamba")) is None


def test_a_model_that_cannot_be_parted_is_computed_row_by_row(root: Path, tmp_path: Path, capsys: Any) -> None:
    folder = save_model(tmp_path / "whole", root / "plain", "llama")
    stage = stage_of(root, folder)
    model: Any = load_model(stage.model, CPU)

    class Stranger(type(model)):  # type: ignore[misc]
        """Its forward pass asks the trunk for more than hidden states."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            assert self.model.embed_tokens.weight.shape[0] > 0
            return super().forward(*args, **kwargs)

    stranger = copy.copy(model)
    stranger.__class__ = Stranger
    source = split_model("m", stranger, VOCAB)
    assert source.by_rows
    assert "cannot be parted" in capsys.readouterr().err
    worker = replace(stage.worker(), source=source)
    found = [worker(unit) for unit in stage.units()]
    assert_stored(root, stage, lambda tokens: log_softmax(model, tokens))
    parted = run(stage)
    assert [entry.rows for entry in found] == [entry.rows for entry in parted]
    assert [e.stats["nll"] for e in found] == pytest.approx([e.stats["nll"] for e in parted], abs=1e-3)


def test_a_model_that_looks_ahead_is_refused(root: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    model = BertLMHeadModel(BertConfig(vocab_size=VOCAB, is_decoder=False, **sizes)).eval()
    with pytest.raises(ConfigError, match="depends on what follows it"):
        split_model("bert", model, VOCAB)


def test_a_head_smaller_than_the_vocabulary_is_refused(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "small", root / "plain", "llama", padding=-20)
    with pytest.raises(ConfigError, match=r"(?s)smaller than its tokenizer.*280 logits"):
        stage_of(root, folder).worker()


def test_a_source_that_joined_later_with_longer_chunks_is_refused(root: Path, tmp_path: Path) -> None:
    write_chunks(tmp_path / "chunks", TEXTS, block_size=40)
    stage = stage_of(tmp_path, root / "plain", {"kind": "fake"})
    with pytest.raises(DataError, match=r"(?s)tokenizer of 'm'.*chunk --overwrite"):
        run(stage)
