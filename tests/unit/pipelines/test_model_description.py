"""`fusionx inspect model`: what it says of a model, and of what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gguf_builder import write_gguf
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, T5Config

from fusionx.cli.main import main
from fusionx.contract.errors import ConfigError, DamageError
from fusionx.pipelines.model_description import describe_model


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: Any, make_model: Any) -> Path:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 300, bos=True)
    model: Path = make_model(tmp_path / "model", "llama", 300)
    for file in Path(tokenizer).iterdir():
        shutil.copy(file, model)
    return model


def inspected(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", "model", *map(str, arguments)])


def test_a_folder_is_what_the_loaded_model_is(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    found, model = describe_model(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.stored == {"F32": found.parameters}
    assert found.run_bytes == 4 * found.parameters
    assert found.train_bytes == 16 * found.parameters
    assert found.head == model.get_output_embeddings().weight.shape[0]
    assert found.tied is model.config.tie_word_embeddings
    assert (found.layers, found.hidden_size) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert found.tokens is not None
    assert (found.tokens.bos_added, found.tokens.eos_added, found.tokens.chat_template) == (True, False, False)
    assert found.licence == "mit"
    assert found.source.possible
    assert found.target.possible


def test_the_command_prints_a_table_or_json(folder: Path) -> None:
    table, content = inspected(folder), json.loads(inspected(folder, "--json").output)
    assert table.exit_code == 0
    assert "BOS, by the tokenizer" in table.output
    assert "x 16 bytes (fp32 weights, gradients, AdamW's two moments)" in table.output
    assert content["source"] == {"possible": True, "reason": ""}
    assert content["train_bytes"] == 16 * content["parameters"]


def test_a_gguf_file_is_described_by_its_head_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    found = describe_model(str(write_gguf(tmp_path / "tiny.gguf", tied=False)))
    assert found.kind == "GGUF file, quantised"
    assert (found.architecture, found.layers, found.hidden_size, found.context) == ("llama", 2, 64, 128)
    assert found.parameters == sum(found.stored.values())
    assert found.tied is False
    assert found.dtype == "bfloat16"
    assert found.licence == "apache-2.0"
    assert found.source.possible
    assert found.target.possible
    assert found.target.reason.endswith("what is trained is not quantised")


def test_an_unknown_architecture_is_neither(tmp_path: Path) -> None:
    found = describe_model(str(write_gguf(tmp_path / "tiny.gguf", metadata={"general.architecture": "grok"})))
    assert not found.source.possible
    assert not found.target.possible
    assert "grok" in found.source.reason


def changed_config(folder: Path, **changes: Any) -> Path:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


def test_why_a_folder_can_be_neither(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    assert "no safetensors weights" in describe_model(str(folder)).source.reason
    (folder / "elsewhere.safetensors").rename(folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    found = describe_model(str(folder))
    assert found.tokens is None
    assert found.source.reason.startswith("no tokenizer")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (T5Config(), "an encoder with a decoder"),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM, which is no causal"),
        (LlamaConfig(architectures=["LlamaModel"]), "LlamaModel, which is no causal"),
    ],
)
def test_other_kinds_of_models(folder: Path, config: Any, why: str) -> None:
    config.save_pretrained(folder)
    found = describe_model(str(folder))
    assert not found.source.possible
    assert why in found.target.reason


def test_quantised_and_foreign_models_are_sources_only(folder: Path) -> None:
    changed_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    found = describe_model(str(folder))
    assert found.source.possible
    assert "cannot be trained so" in found.target.reason
    changed_config(folder, quantization_config=None, model_type="own", auto_map={"AutoModelForCausalLM": "own.Own"})
    found = describe_model(str(folder))
    assert "trust_remote_code" in found.source.reason
    assert not found.target.possible


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, said in ((tmp_path / "empty", "holds no model"), (tmp_path / "none", "no such model folder")):
        with pytest.raises(ConfigError, match=said) as error:
            describe_model(str(place))
        assert error.value.details["file"] == str(place)
        assert "remedy" in error.value.details
    result = inspected(tmp_path / "none.gguf")
    assert result.exit_code == 2
    assert "There is no such GGUF file" in result.output
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(DamageError, match="damaged or cut short"):
        describe_model(str(folder))
