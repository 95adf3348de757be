"""A run whose source is a sibling of the target: `fusionx eval` merges the two and scores what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def with_sibling(world: Any, folder: Path, make_model: Any) -> Any:
    """The same world, in which another model of the target's shape is the only source, and only ct is trained."""
    make_model(folder / "sibling", "llama", 320, seed=7, bos=True)
    config = yaml.safe_load(world.config.read_text())
    config["sources"] = [{"id": "sibling", "path": str(folder / "sibling")}]
    config["train"]["methods"] = ["ct"]
    config["eval"] |= {"merges": ["linear", "slerp", "ties"], "rivals": {}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return type(world)(folder)


def test_merged_models_stand_among_the_rivals(world: Any, tmp_path: Path, make_model: Any) -> None:
    siblings, output = with_sibling(world, tmp_path, make_model), tmp_path / "out"
    siblings.run(output, "run")
    told = json.loads((output / "report" / "results.json").read_text())["ensembles"]["models"]
    rows = ["merge: linear", "merge: slerp", "merge: ties"]
    assert list(told) == ["target", *rows, "ct"]
    figures = [told[row]["groups"]["all"]["bits_per_byte"] for row in ("target", *rows)]
    assert len({round(figure, 6) for figure in figures[:2]}) == 2, "a merged model is another model"
    assert all(row in (output / "report" / "report.md").read_text() for row in rows)

    files = [*(output / "merged").rglob("*"), *(output / "eval").rglob("*.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    siblings.run(output, "eval")
    assert {path: path.stat().st_mtime_ns for path in before} == before

    fewer = siblings.here(output, "eval", "eval.merges=[model_stock]")
    assert fewer.returncode == 2
    assert all(words in fewer.stderr for words in ("eval.merges", "target, sibling", "at least 3 models"))


def test_what_cannot_be_merged_is_refused_before_anything_is_made(world: Any, tmp_path: Path) -> None:
    done = world.here(tmp_path / "out", "chunk", "eval.merges=[linear]")
    assert done.returncode == 2
    assert all(words in done.stderr for words in ("'linear'", "eval.merges", "at least 2 models"))
    assert not (tmp_path / "out" / "chunks").exists()
