"""Three real GGUF files, where they lie on this machine: `FUSIONX_REAL_GGUF` names the folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from fusionx.contract.models.gguf_header import read_header
from fusionx.contract.models.place import loadable

FOLDER = os.environ.get("FUSIONX_REAL_GGUF", "")
FILES = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []
AS_THEY_ARE = {"token_embd": "embed_tokens", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
AS_THEY_ARE |= {"ffn_down": "mlp.down_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
TURNED = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"}


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="no real GGUF files here")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_matrices_of_a_real_file_are_exactly_what_the_package_unpacks(file: Path) -> None:
    """All of them; norms, which some families store with one added, by their number alone."""
    folder, header, compared = loadable(file), read_header(file), 0
    with safe_open(Path(folder) / "model.safetensors", framework="np") as weights:
        for tensor in gguf.GGUFReader(file).tensors:
            *block, role, kind = tensor.name.split(".")
            name = {**AS_THEY_ARE, **TURNED}.get(role)
            if tensor.name == "output.weight":
                name = "lm_head"
            if name is None or kind != "weight":
                continue
            place = "" if name == "lm_head" else "model." + (f"layers.{block[1]}." if block else "")
            found = weights.get_tensor(f"{place}{name}.weight")
            stated = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if role in TURNED and header.architecture == "llama":
                heads = header.of_architecture("attention.head_count" + ("_kv" if role == "attn_k" else ""))
                stated = stated.reshape(heads, -1, 2, stated.shape[1]).swapaxes(1, 2).reshape(stated.shape)
            assert np.array_equal(found, stated), tensor.name
            compared += stated.size
    assert compared > 0.99 * header.parameters
