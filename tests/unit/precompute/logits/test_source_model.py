"""Any causal language model as a source: what is stored equals what the model itself says, row by row in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from source_models import (
    ARCHITECTURES,
    BLOCK,
    CPU,
    TEXTS,
    VOCAB,
    K,
    assert_stored,
    log_softmax,
    run,
    save_model,
    stage_of,
    write_chunks,
)
from told_clock import Clock

from fusionx.contract import extras
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.stage import OverlappingWorker
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits import cpu_dtype, logits_stage
from fusionx.precompute.logits.batches import UnitTokens, Window, windows_of
from fusionx.precompute.logits.logits_stage import LogitsWorker
from fusionx.precompute.logits.source_model import context_length, load_model, load_source, split_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """Two tokenizers and two parts of chunks."""
    root = tmp_path_factory.mktemp("sources")
    make_tokenizer(root / "plain", VOCAB)
    make_tokenizer(root / "bos", VOCAB, bos=True)
    write_chunks(root / "chunks", TEXTS)
    return root


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
    options = {"dtype": str(dtype).removeprefix("torch.")}
    worker: Any = stage_of(root, folder, options).worker()
    model = load_model(worker.stage.model, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    encodings = worker.encoder.encode(TEXTS[:1])
    found = worker._run(UnitTokens.of(encodings))
    exact = log_softmax(model, encodings[0].ids)[:, :VOCAB]
    assert np.abs(found.logprobs.numpy() - -np.sort(-exact)[:, :K]).max() < 1e-5
    tail = 1 - np.exp(log_softmax(model, encodings[0].ids))[np.arange(len(exact))[:, None], found.ids].sum(1)
    assert np.abs(found.tail.numpy() - tail).max() < 1e-5


@pytest.mark.parametrize("has", [True, False])
def test_half_precision_is_used_where_the_cpu_has_it(
    root: Path, tmp_path: Path, has: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "half", root / "plain", "llama", torch.bfloat16)
    monkeypatch.setattr(cpu_dtype, "cpu_capabilities", lambda: {"avx512_bf16": has})
    model: Any = load_model(ModelConfig(id="m", path=str(folder)), CPU)
    used = "bfloat16" if has else "float32"
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{used}"}
    assert f"stored in bfloat16, computed in {used}: this CPU has" in capsys.readouterr().err
    assert "avx512_bf16" in cpu_dtype.cpu_capabilities()


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
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else SimpleNamespace())
    wrong: list[tuple[dict[str, Any], str, float, str]] = [
        ({"attention": "flash_attention_2"}, "cpu", 0, "(?s)cannot be loaded.*MPT"),
        ({"quantization": "4bit"}, "cpu", 0, "Quantised weights need a GPU"),
        ({"quantization": "8bit"}, "cuda", 1, r"package bitsandbytes[\s\S]*\.\[large\]"),
        ({}, "cuda", 2, r"package accelerate[\s\S]*\.\[large\]"),
    ]
    for options, device, gpus, said in wrong:
        with pytest.raises(ConfigError, match=f"(?i){said}"):
            load_model(ModelConfig(id="m", path=str(folder), **options), torch.device(device), gpus)


@pytest.mark.parametrize("overlap", [0, 9, 30])
@pytest.mark.parametrize(("name", "tokenizer"), [("gpt_neo", "plain"), ("llama", "bos")])
def test_windows_equal_each_window_run_alone(
    root: Path, tmp_path: Path, name: str, tokenizer: str, overlap: int
) -> None:
    """Each begins as the model was trained to begin: with a BOS where the tokenizer puts one first."""
    folder = save_model(tmp_path / name, root / tokenizer, name, max_position_embeddings=32)
    stage = stage_of(root, folder, {"window_overlap": overlap})
    stage.check(BLOCK)
    model = load_model(stage.model, CPU)
    lead = [0] if tokenizer == "bos" else []
    room = 32 - len(lead)

    def says(tokens: np.ndarray) -> np.ndarray:
        rows: list[np.ndarray] = []
        text = tokens[len(lead) :]
        for position in range(-len(lead), len(text)):
            # Of all windows with this position: the one that begins first.
            starts = [at for at in range(0, max(1, len(text)), room - overlap) if position < at + room]
            window = np.array([*lead, *text[starts[0] : starts[0] + room]])
            rows.append(log_softmax(model, window)[position - starts[0] + len(lead)])
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
    assert list(windows_of([9], 5, 1, add_bos=True)) == [
        Window(0, 0, 0, 5),
        Window(0, 4, 5, 8, 1),
        Window(0, 7, 8, 9, 1),
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


def test_ids_that_a_head_lacks_are_refused_where_the_text_holds_them(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "small", root / "plain", "llama", padding=-20)
    with pytest.raises(DataError, match=r"(?s)does not know.*id 2[89].*behind.*ids below 280"):
        run(stage_of(root, folder))


def test_ids_that_a_head_lacks_do_no_harm_where_no_text_holds_them(root: Path, tmp_path: Path) -> None:
    """As Gemma 3's <image_soft_token>: one id more than the head has rows."""
    from transformers import AutoTokenizer

    folder = save_model(tmp_path / "small", root / "plain", "llama", padding=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.add_tokens(["zxzx"])
    tokenizer.save_pretrained(folder)
    stage = stage_of(root, folder)
    encoder = load_encoder(str(folder))
    assert (encoder.vocab_size, len(encoder.tokenizer)) == (VOCAB, VOCAB + 2)
    assert b"zxzx" not in encoder.table.by_bytes
    with pytest.raises(ConfigError, match="k is larger"):
        stage_of(root, folder, k=VOCAB + 1).check(BLOCK)
    model = load_model(stage.model, CPU)
    assert_stored(root, stage, lambda tokens: log_softmax(model, tokens))
    write_chunks(tmp_path / "chunks", ["a zxzx b"], parts=1)
    with pytest.raises(DataError, match=r"(?s)id 301, 'zxzx' behind 'a '.*ids below 300"):
        run(stage_of(tmp_path, folder))


def test_tokens_of_the_text_that_a_head_rules_out_are_named(root: Path, tmp_path: Path) -> None:
    def mask(model: Any) -> None:
        model.lm_head.bias.data[3:100] = -torch.inf

    folder = save_model(tmp_path / "masked", root / "plain", "phi", prepare=mask)
    with pytest.raises(DataError, match=r"(?s)rules out \d+ of the text's.*probability 0 for id \d+, '.' behind '"):
        run(stage_of(root, folder))


def test_what_a_head_rules_out_besides_has_no_probability(root: Path, tmp_path: Path) -> None:
    def mask(model: Any) -> None:
        used = {token for text in TEXTS for token in load_encoder(str(root / "plain")).encode([text])[0].ids.tolist()}
        model.lm_head.bias.data[[token for token in range(VOCAB) if token not in used]] = -torch.inf

    folder = save_model(tmp_path / "masked", root / "plain", "phi", prepare=mask)
    for entry in run(stage_of(root, folder)):
        assert np.isfinite(entry.stats["nll"])


@pytest.mark.parametrize("batch_tokens", [64, 2048])
def test_rotary_frequencies_of_a_text_do_not_depend_on_its_batch(root: Path, tmp_path: Path, batch_tokens: int) -> None:
    """LongRoPE takes others for the whole batch when its longest row is beyond the length of pretraining."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 32,
        "factor": 8.0,
    }
    folder = save_model(tmp_path / "phi3", root / "plain", "phi3", rope_parameters=scaling, max_position_embeddings=256)
    stage = stage_of(root, folder, batch_tokens=batch_tokens)
    model = load_model(stage.model, CPU)
    lengths = [len(encoding.ids) for encoding in load_encoder(str(folder)).encode(TEXTS)]
    assert min(lengths) < 32 < max(lengths)
    assert_stored(root, stage, lambda tokens: log_softmax(model, tokens))


def test_a_source_that_joined_later_with_longer_chunks_is_refused(root: Path, tmp_path: Path) -> None:
    write_chunks(tmp_path / "chunks", TEXTS, block_size=40)
    stage = stage_of(tmp_path, root / "plain", {"kind": "fake"})
    with pytest.raises(DataError, match=r"(?s)tokenizer of 'm'.*chunk --overwrite"):
        run(stage)


def test_a_worker_measures_how_many_units_keep_it_busy(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fusionx.contract.stage.time", clock)

    def lasting(seconds: float, work: Any) -> Any:
        def longer(*args: Any, **options: Any) -> Any:
            clock.now += seconds
            return work(*args, **options)

        return longer

    stage = stage_of(root, root / "plain", {"kind": "fake"})
    worker: Any = replace(stage, output=str(tmp_path)).worker()
    assert isinstance(worker, OverlappingWorker)
    for name, seconds in (("read_part", 3.0), ("write_part", 7.0)):
        monkeypatch.setattr(logits_stage, name, lasting(seconds, getattr(logits_stage, name)))
    monkeypatch.setattr(LogitsWorker, "_results", lasting(4.0, LogitsWorker._results))
    worker(stage.units()[0])
    assert worker.occupancy.units_needed == 1 + 3, "ten seconds without the device per four with it"
