"""evaluate_model: the file it writes, when it is kept, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fusionx.eval.evaluate as evaluate_module
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.sealed import read_sealed
from fusionx.eval.config import EvalConfig
from fusionx.eval.evaluate import evaluate_model
from fusionx.eval.results.evaluation import Evaluation


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "opposites.json"
    path.write_text(json.dumps({"examples": [{"input": "up", "target": "down"}, {"input": "in", "target": "out"}]}))
    return path


def test_result_file_is_complete_and_kept(
    model_folders: dict[str, Path],
    chunks: list[dict[str, Any]],
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = EvalConfig(tasks=[str(task_file)], max_new_tokens=4, device="cpu", threads=1)
    output = tmp_path / "out" / "llama.json"
    result = evaluate_model(model_folders["llama"], chunks, config, output)
    assert read_sealed(output, "") == result
    assert [path.name for path in output.parent.iterdir()] == ["llama.json"]
    evaluation = Evaluation.load(output)
    assert evaluation == Evaluation.from_dict(result)
    assert set(result["domains"]) == {"code", "english", "mixed"}
    assert len(result["items"]["opposites"]) == result["tasks"]["opposites"]["n"] == 2
    assert evaluation.skill_accuracy == result["tasks"]["opposites"]["score"]

    monkeypatch.setattr(evaluate_module, "load_model", None)  # a second run must not get as far as loading
    assert evaluate_model(model_folders["llama"], chunks[::-1], config, output) == result
    copied = shutil.copytree(model_folders["llama"], tmp_path / "last")
    twin = evaluate_model(copied, chunks, config, output.with_name("last.json"))
    assert twin == {**result, "model": str(copied)} == read_sealed(output.with_name("last.json"), "")
    output.with_name("last.json").unlink()
    with pytest.raises(TypeError):
        evaluate_model(model_folders["llama"], chunks[1:], config, output)
    with pytest.raises(TypeError):
        evaluate_model(model_folders["gpt2"], chunks, config, output)
    output.write_text(output.read_text()[:100])
    with pytest.raises(TypeError):
        evaluate_model(model_folders["llama"], chunks, config, output)


def test_other_tensors_beside_the_weights_do_not_matter(
    model_folders: dict[str, Path], chunks: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folders["gpt2"], folder)
    before = evaluate_model(folder, chunks, EvalConfig(device="cpu"))
    (folder / "asn.safetensors").write_bytes(b"not read")
    after = evaluate_model(folder, chunks, EvalConfig(device="cpu"))
    assert before["weights_digest"] == after["weights_digest"]
    assert before["domains"] == after["domains"]


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modeling_own.py"])
def test_another_tokenizer_config_or_code_makes_a_result_stale(
    name: str, model_folders: dict[str, Path], chunks: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder, output = tmp_path / "model", tmp_path / "out.json"
    shutil.copytree(model_folders["gpt2"], folder)
    first = evaluate_model(folder, chunks, EvalConfig(device="cpu"), output)
    with open(folder / name, "a") as stream:
        stream.write("\n")
    second = evaluate_model(folder, chunks, EvalConfig(device="cpu"), output)
    assert read_sealed(output, "") == second
    assert second["settings_digest"] != first["settings_digest"]
    assert second["domains"] == first["domains"]


def test_tasks_without_held_out_text(model_folders: dict[str, Path], task_file: Path) -> None:
    config = EvalConfig(tasks=[str(task_file)], max_new_tokens=2, device="cpu")
    result = evaluate_model(model_folders["gpt2"], [], config)
    assert (result["domains"], result["overall"]) == ({}, {})
    assert result["tasks"]["opposites"]["n"] == 2


def test_a_task_without_items_is_an_error_before_any_model_loads(
    model_folders: dict[str, Path], chunks: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "load_model", None)
    (tmp_path / "empty.json").write_text('{"examples": []}')
    with pytest.raises(DataError, match="no items"):
        evaluate_model(model_folders["gpt2"], chunks, EvalConfig(tasks=[str(tmp_path)]))


def test_clear_errors(model_folders: dict[str, Path], chunks: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model folder"):
        evaluate_model(tmp_path / "missing", chunks, EvalConfig())
    with pytest.raises(DataError, match="not a model"):
        evaluate_model(tmp_path, chunks, EvalConfig())
    pickled = tmp_path / "pickled"
    shutil.copytree(model_folders["gpt2"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="no safetensors"):
        evaluate_model(pickled, chunks, EvalConfig())
    cut = tmp_path / "cut"
    shutil.copytree(model_folders["gpt2"], cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged or cut short"):
        evaluate_model(cut, chunks, EvalConfig(device="cpu"))
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_model(model_folders["gpt2"], [], EvalConfig())
