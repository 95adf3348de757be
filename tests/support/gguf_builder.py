"""Tiny GGUF files, written with the `gguf` package from random Llamas, as llama.cpp converts them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizer_builder import byte_level_bpe
from transformers import LlamaConfig, LlamaForCausalLM

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
KINDS = {"attn_q": Kind.Q8_0, "attn_k": Kind.Q4_0, "attn_v": Kind.Q5_0, "ffn_up": Kind.F16, "ffn_down": Kind.Q4_K}
"""What `llama` stores its matrices as; the others are F32."""


def llama(tied: bool, vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=256,  # a row of ffn_down is one block of a K-quant
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def stored(values: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """The matrix in the file's form. The package quantises to no K-quant: of Q4_K, blocks of random bits."""
    if kind is not Kind.Q4_K:
        return gguf.quants.quantize(values, kind)
    blocks = rng.integers(0, 256, (values.size // 256, 144), dtype=np.uint8)
    blocks[:, :4] = rng.uniform(0.0, 0.01, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    return blocks.reshape(values.shape[0], -1)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows in llama.cpp's order: of each head, the pairs that one angle turns stand together."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    tied: bool = True,
    kinds: Mapping[str, Kind] = KINDS,
    metadata: Mapping[str, Any] | None = None,
    leave_out: str = "",
    more_tensors: Mapping[str, np.ndarray] | None = None,
    tokens: list[str] | None = None,
) -> Path:
    """A Llama with a byte-level BPE tokenizer; `metadata` adds to what is stated, or replaces it."""
    tokenizer = byte_level_bpe()
    spelled = tokens or tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    model = llama(tied, len(spelled))
    config, rng = model.config, np.random.default_rng(7)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    added = {id: CONTROL if token.special else USER_DEFINED for id, token in tokenizer.added_tokens_decoder.items()}
    stated: dict[str, Any] = {
        "general.name": "A tiny Llama",
        "general.license": "apache-2.0",
        "llama.context_length": config.max_position_embeddings,
        "llama.block_count": config.num_hidden_layers,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": spelled,
        "tokenizer.ggml.token_type": [added.get(id, NORMAL) for id in range(len(spelled))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    stated |= metadata or {}
    writer = gguf.GGUFWriter(path, stated.pop("general.architecture", "llama"))
    for key, value in stated.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        in_file = name_map.get_name(name, try_suffixes=(".weight",))
        role = in_file.split(".")[-2]
        weight = permuted(tensor.numpy(), heads[role]) if role in heads else tensor.numpy()
        if in_file != leave_out:
            kind = kinds.get(role, Kind.F32)
            writer.add_tensor(in_file, stored(weight, kind, rng), raw_dtype=kind)
    for name, values in (more_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_in(assets: str, file: str) -> tuple[str, bool]:
    """The folder of a file in another cache, and whether this process made it."""
    os.environ["HF_ASSETS_CACHE"] = assets
    from fusionx.contract.models import gguf_folder

    said: list[str] = []
    gguf_folder._say = said.append
    write, made = gguf_folder.write_folder, []
    gguf_folder.write_folder = lambda *places: made.append(write(*places))
    return str(gguf_folder.gguf_folder(Path(file))), bool(made)


def as_stated(path: Path, heads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Every tensor of a file as the `gguf` package unpacks it, rows of queries and keys in transformers' order."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        count = next((heads[role] for role in heads if f".{role}.weight" in tensor.name), 0)
        if count:
            values = values.reshape(count, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        found[tensor.name] = values
    return found
