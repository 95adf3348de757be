"""GGUF files become Hugging Face folders: exact, once, whole; and what is wrong with one is said before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_builder import KINDS, as_stated, write_gguf
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.models import gguf_folder as subject
from fusionx.contract.models.place import loadable
from fusionx.contract.models.rope_factors import LLAMA3
from fusionx.contract.weights import weights_identity

HEADS = {"attn_q": 4, "attn_k": 2}
IN_TRANSFORMERS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "fusionx" / "gguf"


def name_in_transformers(name: str) -> str:
    if name == "output.weight":
        return "lm_head.weight"
    *block, role, _ = name.split(".")
    layer = f"layers.{block[1]}." if block else ""
    return f"model.{layer}{IN_TRANSFORMERS[role]}.weight"


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_what_the_package_unpacks(tmp_path: Path, tied: bool) -> None:
    kinds = {**KINDS, "token_embd": Kind.BF16}
    folder = loadable(write_gguf(tmp_path / "tiny.gguf", tied, kinds))
    stated = as_stated(tmp_path / "tiny.gguf", HEADS)
    found = load_file(Path(folder) / "model.safetensors")
    assert {name_in_transformers(name) for name in stated} == set(found)
    for name, values in stated.items():
        read = found[name_in_transformers(name)]
        assert torch.equal(read.float(), torch.from_numpy(np.array(values))), name
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16, "16 bits hold its values"
    assert found["model.layers.0.mlp.down_proj.weight"].dtype == torch.float32, "16 bits would round them"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16, "as quantised models are published"
    assert model.config.tie_word_embeddings is tied


def test_the_tokenizer_is_the_one_that_was_written(tmp_path: Path) -> None:
    from tokenizer_builder import CORPUS, byte_level_bpe

    read = AutoTokenizer.from_pretrained(loadable(write_gguf(tmp_path / "tiny.gguf")))
    written = byte_level_bpe()
    for text in CORPUS:
        assert read(text)["input_ids"] == written(text)["input_ids"]
    assert (read.bos_token_id, read.eos_token_id) == (written.bos_token_id, written.eos_token_id)


def test_types_that_hold_values_are_asked_for_as_they_are(tmp_path: Path) -> None:
    plain = loadable(write_gguf(tmp_path / "plain.gguf", kinds={}))
    half = loadable(write_gguf(tmp_path / "half.gguf", kinds={"ffn_up": Kind.F16}))
    dtypes = [json.loads((Path(folder) / "config.json").read_text())["dtype"] for folder in (plain, half)]
    assert dtypes == ["float32", "float16"]
    assert subject.dequantised_from(plain) is None
    said = subject.dequantised_from(loadable(write_gguf(tmp_path / "packed.gguf")))
    assert said is not None
    assert said.startswith("packed.gguf (F32 ")
    assert "Q4_K " in said


def test_it_is_read_once_and_known_by_its_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = loadable(file)
    assert "reading it once" in capsys.readouterr().err
    monkeypatch.setattr(subject, "write_folder", None)
    copy = tmp_path / "models" / "copy.gguf"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert loadable(file) == loadable(copy) == loadable(copy.parent) == folder
    sha256 = subject.gguf_sha256(file)
    assert Path(folder) == cache / sha256[:32]
    assert weights_identity(str(file)) == weights_identity(str(copy.parent)) == f"gguf:{sha256[:16]}"
    assert 'license: "apache-2.0"' in (Path(folder) / "README.md").read_text()


def test_a_changed_file_and_a_damaged_folder_are_noticed(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    before = subject.gguf_sha256(file)
    folder = Path(loadable(file))
    (folder / "model.safetensors").write_bytes(b"cut")
    assert Path(loadable(file)) == folder
    assert len(load_file(folder / "model.safetensors")) == 2 + 9 * 2
    write_gguf(file, tied=False)
    os.utime(file, ns=(1, 1))
    assert subject.gguf_sha256(file) != before


def damaged(file: Path, how: str) -> Path:
    content = file.read_bytes()
    changed = {
        "cut in its data": content[:-1000],
        "cut in its head": content[:3000],
        "empty": b"",
        "another format": b"PK\x03\x04" + content[4:],
        "old version": content[:4] + (1).to_bytes(4, "little") + content[8:],
        "wrong count": content[:16] + (2**40).to_bytes(8, "little") + content[24:],
    }[how]
    file.write_bytes(changed)
    return file


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut in its data", "cut short"),
        ("cut in its head", "damaged"),
        ("empty", "damaged"),
        ("another format", "no GGUF file"),
        ("old version", "of a version"),
        ("wrong count", "damaged"),
    ],
)
def test_a_damaged_file_is_refused_before_any_work(tmp_path: Path, cache: Path, how: str, said: str) -> None:
    file = damaged(write_gguf(tmp_path / "tiny.gguf"), how)
    with pytest.raises(DataError, match=said) as error:
        loadable(file)
    assert error.value.details["file"] == str(file)
    assert "remedy" in error.value.details
    assert not [item for item in cache.iterdir() if item.name != "hashes"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"leave_out": "blk.1.ffn_up.weight"}, "missing_keys: model.layers.1.mlp.up_proj.weight"),
        ({"more_tensors": {"rope_freqs.weight": np.arange(8, dtype=np.float32)}}, "it has rope_freqs.weight"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "yarn is lost"),
        ({"metadata": {"llama.attention.head_count_kv": 4}}, "The model in a GGUF file cannot be read"),
        ({"metadata": {"tokenizer.ggml.model": "rwkv"}}, "Cannot build a tokenizer"),
        ({"metadata": {"general.architecture": "grok"}}, "not supported"),
    ],
)
def test_what_would_be_misread_is_refused(tmp_path: Path, cache: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        loadable(write_gguf(tmp_path / "tiny.gguf", **options))
    assert said in str(error.value)
    assert {item.name for item in cache.iterdir()} <= {"hashes", ".lock"}


def test_llama3s_stretched_frequencies_are_kept(tmp_path: Path) -> None:
    """As transformers computes them for the same settings, the file's factors inverted."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, **LLAMA3}
    settings = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    plain = LlamaConfig(hidden_size=64, num_attention_heads=4)
    stretched, own = (LlamaRotaryEmbedding(config).inv_freq for config in (settings, plain))
    factors = {"rope_freqs.weight": (own / stretched).numpy()}
    config = AutoConfig.from_pretrained(loadable(write_gguf(tmp_path / "tiny.gguf", more_tensors=factors)))
    assert config.rope_parameters == rope


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    (embedding,) = (tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "token_embd.weight")
    content = bytearray(file.read_bytes())
    content[embedding.data_offset : embedding.data_offset + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(content)
    with pytest.raises(DataError, match="not read as the file states") as error:
        loadable(file)
    assert "NaN or infinity (lm_head.weight" in error.value.details["found"] or "embed" in error.value.details["found"]


def test_paths_that_mean_no_one_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such GGUF file"):
        loadable(tmp_path / "none.gguf")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="several GGUF files"):
        loadable(tmp_path)
    part = tmp_path / "big-00001-of-00003.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(DataError, match="one part of a split") as error:
        loadable(part)
    assert "llama-gguf-split --merge big-00001-of-00003.gguf big.gguf" in error.value.details["remedy"]
    split = write_gguf(tmp_path / "renamed.gguf", metadata={"split.count": 2})
    with pytest.raises(DataError, match="one part of a split"):
        loadable(split)
    for wrong in ("hf://owner/repo", "hf://owner/repo/model.safetensors", "hf://model.gguf"):
        with pytest.raises(ConfigError, match="names no GGUF file on the hub"):
            loadable(wrong)


def test_files_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = write_gguf(tmp_path / "tiny.gguf"), []

    def download(repo: str, name: str, revision: str | None) -> str:
        if repo == "owner/gated":
            raise OSError("401 Client Error")
        asked.append((repo, name, revision))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert loadable("hf://owner/repo@v2/q8/tiny.gguf") == loadable("hf://owner/repo/q8/tiny.gguf", "v2")
    assert asked == [("owner/repo", "q8/tiny.gguf", "v2")] * 2
    with pytest.raises(ConfigError, match="cannot be had from the hub"):
        loadable("hf://owner/gated/tiny.gguf")
    with pytest.raises(ConfigError, match="names no GGUF file"):
        loadable("hf://owner/repo@v2/tiny.gguf", "v1")


def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ConfigError, match="package accelerate") as error:
        loadable(write_gguf(tmp_path / "tiny.gguf"))
    assert "real" in error.value.details["remedy"]
