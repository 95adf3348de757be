"""Model folders that are damaged, cut short, or were put together wrongly: refused by file, field and remedy, by every
loader, and as early as it can be known.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionx.contract.errors import DataError, FusionXError
from fusionx.contract.models.causal_lm import load_causal_lm
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.eval.models.loaded_model import load_model
from fusionx.pipelines.model_description import describe_model
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage, LogitsWorker
from fusionx.precompute.logits.source_model import load_source
from fusionx.train.model.target import load_target

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
UP, HEAD = "model.layers.1.mlp.up_proj.weight", "lm_head.weight"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "whole", "llama", 300)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "damaged")


def stage(folder: Path) -> LogitsStage:
    return LogitsStage(ModelConfig(id="m", path=str(folder)), PrecomputeConfig(k=8), "nowhere", "nowhere")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "source": lambda folder: load_source(ModelConfig(id="m", path=str(folder)), 300, CPU),
    "target": lambda folder: load_target(str(folder), None, CPU),
    "evaluation": lambda folder: load_model(folder, "cpu"),
}


def refused(call: Callable[[], Any], *found: str) -> FusionXError:
    """The error, which says all that a person needs."""
    with pytest.raises(FusionXError) as caught:
        call()
    error = caught.value
    assert {"file", "found", "expected", "remedy"} <= {*error.details} or isinstance(error, DataError), str(error)
    for text in found:
        assert text in str(error)
    return error


def change_config(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("loader", LOADERS)
def test_a_whole_folder_is_loaded(loader: str, whole: Path) -> None:
    stage(whole).check(64)
    LOADERS[loader](whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("hidden_size", value) for value in ("x", None, -1, 0, 1.5, [1], True)],
        *[("num_hidden_layers", value) for value in ("two", None, -1, 0, 10**9)],
        *[("vocab_size", value) for value in ("many", None, 0, -5)],
        *[("num_attention_heads", value) for value in ("a", 0, 3)],
        *[("architectures", value) for value in (5, "LlamaForCausalLM", {}, [5])],
        *[("model_type", value) for value in (None, 5, "nope", ["llama"])],
        ("max_position_embeddings", "long"),
        ("rms_norm_eps", "x"),
        ("rope_parameters", "x"),
        ("eos_token_id", "x"),
        ("intermediate_size", "x"),
    ],
)
def test_a_config_that_no_model_has_is_refused_before_any_work(field: str, value: Any, folder: Path) -> None:
    change_config(folder, **{field: value})
    error = refused(lambda: stage(folder).check(64), str(folder))
    assert error.details["field"] == "path of model 'm'"
    for load in LOADERS.values():
        refused(lambda load=load: load(folder))
    try:
        found = describe_model(str(folder))
    except FusionXError:
        return
    assert not found.source.possible
    assert not found.target.possible


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5",
        b"null",
        b"[1]",
        b"{}",
        b"[" * 20_000,
        b'{"model_type": "lla',
        bytes(range(256)),
        b'{"a": ' + b"9" * 9999,
    ],
    ids=["empty", "number", "null", "list", "nothing", "deep", "cut", "binary", "digits"],
)
def test_a_config_that_is_none_is_refused(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    refused(lambda: stage(folder).check(64), str(folder))
    for load in LOADERS.values():
        refused(lambda load=load: load(folder))


def head(content: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if size is None else size) + content


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in its head": lambda data: data[:100],
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "zeros": lambda data: bytes(4096),
    "other bytes": lambda data: bytes(range(256)) * 16,
    "a head of exabytes": lambda data: head(b"{}", 1 << 60),
    "a head that is no JSON": lambda data: head(b"not JSON") + bytes(64),
    "offsets beyond": lambda data: head(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}') + bytes(64),
}


@pytest.mark.parametrize("damage", BYTES)
def test_a_damaged_weight_file_is_named_before_any_work(damage: str, folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(BYTES[damage](file.read_bytes()))
    for call in (lambda: stage(folder).check(64), lambda: describe_model(str(folder))):
        error = refused(call, str(file), "damaged or cut short")
        assert error.exit_code == 1
    for load in LOADERS.values():
        refused(lambda load=load: load(folder), str(file))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights_are_refused_before_any_work(dtype: torch.dtype, folder: Path) -> None:
    change_weights(folder, lambda weights: {**weights, UP: weights[UP].to(dtype)})
    refused(lambda: stage(folder).check(64), str(folder / WEIGHTS), UP, "BF16")
    for load in LOADERS.values():
        refused(lambda load=load: load(folder), UP)


def test_more_layers_than_tensors_are_refused_before_any_work(folder: Path) -> None:
    change_config(folder, num_hidden_layers=999)
    refused(lambda: stage(folder).check(64), str(folder / "config.json"), "num_hidden_layers: 999")


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def with_value(name: str, place: int, value: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights[name] = weights[name].clone()
        weights[name].view(-1)[place] = value
        return weights

    return change


WRONG: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a matrix is missing": (without(UP), UP),
    "the embedding is missing": (without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "the head is missing": (without(HEAD), HEAD),
    "a norm is missing": (without("model.norm.weight"), "model.norm.weight"),
    "all have other names": (
        lambda weights: {name.replace("layers", "blocks"): tensor for name, tensor in weights.items()},
        "and 15 more",
    ),
    "a NaN": (with_value(UP, 3, math.nan), UP),
    "an infinity": (with_value("model.layers.0.self_attn.q_proj.weight", 0, math.inf), "q_proj"),
    "a NaN for a rare token": (with_value("model.embed_tokens.weight", 250 * 32, math.nan), "embed_tokens"),
    "-inf in a norm": (with_value("model.norm.weight", 0, -math.inf), "model.norm.weight"),
    "only NaN": (lambda weights: {name: tensor * math.nan for name, tensor in weights.items()}, "NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_are_missing_or_not_finite_are_refused_by_their_names(wrong: str, folder: Path) -> None:
    change, name = WRONG[wrong]
    change_weights(folder, change)
    for load in LOADERS.values():
        error = refused(lambda load=load: load(folder), str(folder), name)
        assert error.exit_code == 1
        assert "field" in error.details


@pytest.mark.parametrize("shape", [(16,), (10, 32)])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...], folder: Path) -> None:
    name = "model.norm.weight" if len(shape) == 1 else HEAD
    change_weights(folder, lambda weights: {**weights, name: torch.ones(shape)})
    for load in LOADERS.values():
        refused(lambda load=load: load(folder), str(folder), f"{name}: {list(shape)}")


def test_a_source_whose_missing_layer_would_be_random_says_what_the_config_states(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)
    refused(lambda: LOADERS["source"](folder), "model.layers.2.", "random numbers")


RIGHT: dict[str, Callable[[Weights], Weights]] = {
    "float64": lambda weights: {name: tensor.double() for name, tensor in weights.items()},
    "float16": lambda weights: {name: tensor.half() for name, tensor in weights.items()},
    "a tensor that nothing reads": lambda weights: {**weights, "extra.bias": torch.ones(3, dtype=torch.int64)},
    "a sum that overflows": lambda weights: {**weights, UP: weights[UP].half() * 0 + 60_000},
}


@pytest.mark.parametrize("right", RIGHT)
def test_what_is_unusual_but_right_is_loaded(right: str, folder: Path) -> None:
    change_weights(folder, RIGHT[right])
    stage(folder).check(64)
    load_causal_lm(folder, field="path", dtype="auto")


def test_a_head_that_is_the_embedding_is_not_missing(folder: Path) -> None:
    change_weights(folder, without(HEAD))
    change_config(folder, tie_word_embeddings=True)
    for load in LOADERS.values():
        load(folder)


def test_a_head_may_rule_ids_out_by_its_bias(tmp_path: Path, make_model: Any) -> None:
    folder = make_model(tmp_path / "phi", "starcoder2", 300)
    change_weights(folder, with_value("model.layers.0.mlp.c_fc.bias", 0, -math.inf))
    load_causal_lm(folder, field="path")
    change_weights(folder, with_value("model.layers.0.mlp.c_fc.bias", 0, math.nan))
    refused(lambda: load_causal_lm(folder, field="path"), "c_fc.bias")


def test_logits_that_overflow_are_refused_by_the_target_and_on_a_sources_first_text(folder: Path) -> None:
    change_weights(folder, lambda weights: {**weights, HEAD: weights[HEAD].sign() * 3e38})
    refused(lambda: load_target(str(folder), None, CPU), "logits are not finite", "target.path")
    worker = LogitsWorker(stage(folder), load_encoder(str(folder)), LOADERS["source"](folder), None)
    texts = worker.encoder.encode(["The quick brown fox jumps."])
    refused(lambda: worker.read(texts, "part-00000.parquet"), "'m'", "part-00000.parquet", "NaN or infinite logits")


def change_tokenizer(folder: Path, **vocabulary: int) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"].update(vocabulary)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("token", [4_000_000_000, 100_000_000, 1 << 22])
def test_an_id_beyond_any_vocabulary_is_refused_at_once(token: int, folder: Path) -> None:
    """The tokenizers library would serialise four billion ids, and abort the process for want of memory."""
    change_tokenizer(folder, zzzz=token)
    refused(lambda: load_encoder(str(folder)), str(folder), f"'zzzz' has the id {token:,}", "4,194,304")


SETTINGS: dict[str, tuple[str, bytes]] = {
    "no JSON": ("tokenizer.json", bytes(range(256))),
    "a list": ("tokenizer.json", b"[]"),
    "nothing in it": ("tokenizer.json", b"{}"),
    "a length that is none": ("tokenizer_config.json", b'{"model_max_length": "x"}'),
    "a class that is none": ("tokenizer_config.json", b'{"tokenizer_class": 5}'),
    "added tokens that are none": ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
    "an id that is none": ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}'),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_tokenizer_that_is_none_is_refused(setting: str, folder: Path) -> None:
    name, content = SETTINGS[setting]
    (folder / name).write_bytes(content)
    refused(lambda: load_encoder(str(folder)), "The tokenizer cannot be loaded.", str(folder))
    assert not describe_model(str(folder)).source.possible
