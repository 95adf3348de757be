"""A run whose target, source and rival are GGUF files: every stage, the plan before it and the status after it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import in_a_fork
from gguf_builder import read_in, write_gguf
from safetensors.torch import load_file

from fusionx.contract.models.gguf_folder import gguf_sha256
from fusionx.contract.shards.parts import inspect_part


def test_gguf_files_are_models_like_any_other(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    target = write_gguf(tmp_path / "target.gguf")
    (tmp_path / "writer").mkdir()
    source = write_gguf(tmp_path / "writer" / "any-name.gguf", tied=False)
    config = yaml.safe_load(world.config.read_text())
    config["target"]["path"] = str(target)
    config["sources"] = [{"id": "writer", "path": str(source.parent)}]
    config["align"]["methods"] = ["walk"]
    config["train"] |= {"methods": ["fusionx"], "optimizer": {"batch_size": 16, "epochs": 1}}
    config["eval"] |= {"rivals": {"packed": str(source)}, "tasks": []}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    files, output = type(world)(tmp_path), tmp_path / "out"

    assert "precompute/writer" in files.here(output, "plan --documents 4").stdout
    said = files.run(output, "run")
    assert "unpacked from target.gguf (F32" in said
    status = files.here(output, "status")
    assert status.returncode == 0, status.stdout

    part = inspect_part(f"{output}/logits/writer/part-00000.parquet")
    assert part.provenance.identity["weights"] == f"gguf:{gguf_sha256(source)[:16]}"
    (card,) = output.glob("train/fusionx/*/*/best/README.md")
    assert "license: apache-2.0" in card.read_text()
    assert "unpacked from target.gguf (" in card.read_text()
    exported = load_file(card.parent / "model.safetensors")
    assert {str(tensor.dtype) for tensor in exported.values()} == {"torch.bfloat16"}
    told = json.loads((output / "report" / "results.json").read_text())
    assert "packed" in told["ensembles"]["models"]


def test_of_two_processes_one_reads_a_file_and_the_other_waits(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    with ThreadPoolExecutor(2) as pool:
        pairs = list(pool.map(lambda _: in_a_fork(read_in, str(tmp_path / "assets"), str(file)), range(2)))
    assert len({folder for folder, _ in pairs}) == 1
    assert sorted(was_read for _, was_read in pairs) == [False, True]
