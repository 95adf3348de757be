"""What may be loaded: safetensors of the folder itself, and of a sealed folder only what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import seal_folder
from fusionx.contract.weights import check_model_files

NAME = "model-00001-of-00001.safetensors"


def write_index(folder: Path, content: Any) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    return index


@pytest.mark.parametrize(
    "name", ["weights.bin", "../other/model.safetensors", "/etc/model.safetensors", "a/b.safetensors"]
)
def test_an_index_leads_to_nothing_else(tmp_path: Path, name: str) -> None:
    index = write_index(tmp_path, {"weight_map": {"head": NAME, "embedding": name}})
    with pytest.raises(DataError, match="no safetensors file of its folder") as caught:
        check_model_files(tmp_path)
    assert caught.value.details["file"] == str(index)
    assert name in caught.value.details["found"]


@pytest.mark.parametrize("content", [[], {}, {"weight_map": 3}, {"weight_map": {"head": 3}}])
def test_what_is_no_index_is_refused(tmp_path: Path, content: Any) -> None:
    write_index(tmp_path, content)
    with pytest.raises(DamageError, match="cannot be read"):
        check_model_files(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    write_index(tmp_path, {"weight_map": {"head": NAME}})
    with pytest.raises(DamageError) as caught:
        check_model_files(tmp_path)
    assert caught.value.details["file"] == str(tmp_path / NAME)
    (tmp_path / NAME).write_bytes(b"weights")
    check_model_files(tmp_path)
    check_model_files("owner/name")


def test_a_sealed_folder_is_what_was_written(tmp_path: Path) -> None:
    for name in (NAME, "config.json", "README.md"):
        (tmp_path / name).write_text(name)
    seal_folder(tmp_path)
    (tmp_path / "README.md").write_text("the report adds to the card")
    check_model_files(tmp_path)
    (tmp_path / "config.json").write_text("other")
    with pytest.raises(DamageError) as caught:
        check_model_files(tmp_path)
    assert caught.value.details["file"] == str(tmp_path / "config.json")
