"""A run of which nothing is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("models")
    make_model(root / "target", "llama", 300)
    make_model(root / "source", "gpt_neox", 320)
    return root


@pytest.fixture
def raw(models: Path, tmp_path: Path) -> dict[str, Any]:
    """A config of which nothing is wrong."""
    (tmp_path / "corpus").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "corpus" / f"{split}.jsonl").write_text('{"text": "a"}\n')
    return {
        "name": "x",
        "output": str(tmp_path / "out"),
        "target": {"id": "target", "path": str(models / "target")},
        "sources": [{"id": "source", "path": str(models / "source")}],
        "corpus": {"path": str(tmp_path / "corpus")},
        "chunk": {"block_size": 96},
        "executor": {"kind": "inline"},
    }
