"""A run from Python, and what a user does with it: the recommended model, the README's lines, shards in plain tools."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fusionx
from fusionx.contract.files.sealed import FOLDER_SEAL, read_sealed
from fusionx.contract.shards.codec import read_distributions
from fusionx.contract.shards.parts import read_part
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.text.own_text import own_documents
from fusionx.pipelines.evaluation.recommended_model import publish
from fusionx.pipelines.training import training_jobs
from fusionx.train.config import TrainJob

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("coder", "writer")


def settings(root: Path) -> dict[str, Any]:
    """What `fuse` takes: the world's three models and corpus, two methods, the walk alone."""
    return {
        "target": root / "target",
        "sources": [str(root / "coder"), {"path": root / "writer", "id": "writer"}],
        "corpus": {"path": str(root / "corpus"), "domain": "domain"},
        "chunk": {"block_size": 96, "part_bytes": 1500},
        "precompute": {"k": 8, "batch_tokens": 512},
        "train": {
            "methods": ["ct", "fusionx"],
            "optimizer": {"learning_rate": 0.001, "batch_size": 16, "epochs": 1},
            "run": {"validate_every": 4, "device": "cpu"},
            "jobs": 2,
        },
        "eval": {"bootstrap": 100, "threads": 1},
        "executor": {"kind": "inline"},
    }


@pytest.fixture(scope="module")
def fused(world: Any, tmp_path_factory: pytest.TempPathFactory) -> fusionx.RunResult:
    return fusionx.fuse(**settings(world.root), output=tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def copied(fused: fusionx.RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the run lies in it under the names that the documents give theirs."""
    shutil.copytree(fused.layout.root, tmp_path / "runs" / "demo")
    (tmp_path / "runs" / "mine").symlink_to("demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "demo"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_a_run_from_python_is_the_command_lines(world: Any, fused: fusionx.RunResult) -> None:
    output = Path(fused.layout.root)
    assert [row["method"] for row in fused.table()] == ["target", "ct", "fusionx"]
    assert all(row["validation_bits_per_byte"] > 0 and row["tasks"] is None for row in fused.table())
    assert json.loads((output / "report" / "results.json").read_text()) == fused.results
    assert fused.results["command"] == f"fusionx run {output}/run.yaml"
    for said in ("Continual training", fused.model_path, fused.report_path, "bits per byte"):
        assert said in str(fused)
    files = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = fusionx.fuse(**settings(world.root), output=output)
    assert again.results == fused.results
    kept = ("report", "run.yaml", "config.json")
    assert not [
        p for p, t in before.items() if p.stat().st_mtime_ns != t and p.relative_to(output).parts[0] not in kept
    ]
    with fusionx.open_pipeline(output / "run.yaml", read_only=True) as pipeline:
        assert pipeline.config.digest() == json.loads((output / "config.json").read_text())["digest"]


def test_a_wrong_setting_is_named_before_anything_runs(world: Any, tmp_path: Path) -> None:
    wrong = settings(world.root) | {"precompute": {"kk": 8}, "train": {"methods": ["ctt"]}}
    with pytest.raises(fusionx.ConfigError) as caught:
        fusionx.fuse(**wrong, output=tmp_path / "out")
    for said in ("fusionx.fuse", "precompute.kk", "did you mean 'k'", "ctt"):
        assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_all_that_is_offered_is_there() -> None:
    """And a type checker is told of the same names."""
    names = re.findall(
        r"^    from \S+ import (\w+) as \1$", Path(fusionx.__path__[-1], "__init__.py").read_text(), re.M
    )
    assert sorted(names) == sorted(fusionx.__all__)
    assert {*fusionx.__all__} <= {*dir(fusionx)}
    assert all(getattr(fusionx, name).__name__ == name for name in fusionx.__all__)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in fusionx.__all__ if f"`{name}" not in page]
    with pytest.raises(AttributeError, match="nothing"):
        fusionx.nothing  # noqa: B018


def test_the_recommended_model_is_the_best_on_validation_text(fused: fusionx.RunResult) -> None:
    """Its bits per byte are recomputed here from the evaluations, the sources' from their own models' NLL."""
    folder = Path(fused.layout.root) / "eval" / "validation"
    found = fused.recommendation
    bits = {}
    for name in ("models/target", "ct/seed-0/best", "fusionx/seed-0/best"):
        domains = Evaluation.load(folder / f"{name}.json").domains
        bits[name] = (domains["code"]["bits_per_byte"] + domains["prose"]["bits_per_byte"]) / 2
    assert set(found["domains"]) == {"code", "prose"}, "not `tables`, which no training text has"
    assert found["bits_per_byte"] == pytest.approx(min(bits.values()))
    assert f"{found['name']}/seed-0/best" == min(bits, key=lambda name: bits[name])
    assert set(found["all"]["sources"]) == {*SOURCES}
    layout = fused.layout
    aligned = {"target": layout.aligned("target", "walk", "target")}
    own = own_documents(layout.tokens("target"), aligned, "validation")["target"]
    expected = Evaluation.load(folder / "models" / "target.json").documents
    assert own.keys() == expected.keys()
    for domain, rows in own.items():
        assert np.array(rows) == pytest.approx(np.array(expected[domain], float), rel=2e-3)


def test_the_recommended_model_is_an_ordinary_folder_that_follows_the_choice(
    fused: fusionx.RunResult, copied: Path, world: Any
) -> None:
    model = copied / "model"
    best = copied / "train" / fused.recommendation["name"] / "lr-0.001" / "seed-0" / "best"
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (best / weights).read_bytes()
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= {p.name for p in model.iterdir()}
    assert not list(model.glob("asn.*"))
    card = (model / "README.md").read_text()
    assert card.count("## Why this model") == card.count("## Evaluation") == 1
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    assert str(world.root) not in card
    assert str(fused.layout.root) not in card

    with fusionx.open_pipeline(copied / "run.yaml", [f"output={copied}"], read_only=True) as pipeline:
        run = (pipeline.config, pipeline.layout)
        before = (model / weights).stat().st_mtime_ns
        publish(*run, fused.results)
        assert (model / weights).stat().st_mtime_ns == before
        unchanged = fused.recommendation | {"kind": "target", "name": "target", "seed": None}
        publish(*run, fused.results | {"recommendation": unchanged})
        assert (model / weights).read_bytes() == (world.root / "target" / weights).read_bytes()
        assert "target, unchanged" in (model / "README.md").read_text()
        publish(*run, fused.results)
        assert (model / "README.md").read_text() == card
        (model / weights).unlink()
        (model / weights).write_bytes(b"damaged")
        publish(*run, fused.results)
    assert (model / weights).read_bytes() == (best / weights).read_bytes()
    assert read_sealed(model / FOLDER_SEAL, "")["files"].keys() == {p.name for p in model.iterdir()} - {
        "README.md",
        FOLDER_SEAL,
    }


def test_a_new_training_takes_the_recommendation_back(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it begins: after it, a kill between the two would leave the old model for the best of the new ones."""
    train = training_jobs.run_jobs
    stood = []

    def watched(jobs: list[TrainJob], *others: Any) -> None:
        if jobs:
            stood.append((copied / "model").exists())
        train(jobs, *others)

    monkeypatch.setattr(training_jobs, "run_jobs", watched)
    with fusionx.open_pipeline(copied / "run.yaml", [f"output={copied}"]) as pipeline:
        pipeline.train()
        assert (copied / "model").exists(), "nothing was to be trained"
        shutil.rmtree(copied / "train" / "ct")
        stood.clear()
        pipeline.train()
        assert stood == [False]
        assert not (copied / "model").exists()
        result = pipeline.eval()
    assert (copied / "model" / "model.safetensors").is_file()
    assert result.results["command"].splitlines()[-1] == f"fusionx eval {copied}/run.yaml --set output={copied}"
    assert result.results["command"].startswith("fusionx chunk "), "the data stages were called with other arguments"


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("page", ["README.md", "docs/data-contract.md", "docs/api.md"])
def test_the_lines_of_the_documents_run(page: str) -> None:
    blocks = python_blocks(page)
    assert blocks
    for block in blocks:
        if "fuse(" not in block:  # hub models; `fused` has called it
            exec(compile(block, page, "exec"), {})


def test_the_notebook_runs(fused: fusionx.RunResult, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell after cell, on this small run instead of the demo's."""
    import matplotlib

    matplotlib.use("Agg")
    cells = json.loads((ROOT / "examples" / "fuse.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes[0]["metadata"]["tags"] == ["parameters"]
    names: dict[str, Any] = {"CONFIG": str(copied / "run.yaml"), "OVERRIDES": []}
    for cell in codes[1:]:
        exec(compile("".join(cell["source"]), "fuse.ipynb", "exec"), names)
    assert str(fused) in capsys.readouterr().out
    bits = names["knows"].loc[["code", "prose"]].mean()
    figures = fused.recommendation["all"]
    assert bits["target"] == pytest.approx(figures["target"], rel=2e-3)
    assert bits[[*SOURCES]].to_dict() == pytest.approx(figures["sources"], rel=1e-6)


@pytest.mark.parametrize("folder", ["logits/coder", "aligned/target/walk/coder", "aligned/target/tokens", "chunks"])
def test_datasets_loads_a_folder_with_its_splits(fused: fusionx.RunResult, folder: str, tmp_path: Path) -> None:
    import datasets

    path = f"{fused.layout.root}/{folder}"
    # As in `mined` folders, whose map lies beside the parts.
    loaded = datasets.load_dataset(path, cache_dir=str(tmp_path))
    manifest = json.loads(Path(path, "manifest.json").read_text())
    rows: dict[str, int] = {}
    for part in manifest["parts"]:
        rows[part["split"]] = rows.get(part["split"], 0) + part["rows"]
    assert {split: of.num_rows for split, of in loaded.items()} == rows


def test_rows_are_what_the_codec_reads(fused: fusionx.RunResult) -> None:
    folder = f"{fused.layout.root}/logits/coder"
    rows = list(fusionx.read_shards(folder, "validation"))
    parts = [p for p in json.loads(Path(folder, "manifest.json").read_text())["parts"] if p["split"] == "validation"]
    assert len(rows) == sum(part["rows"] for part in parts)
    at = 0
    for part in parts:
        said = read_distributions(read_part(f"{folder}/{part['name']}", "logits")[0])
        ids, logprobs = said.padded(said.k)
        mine = rows[at : at + part["rows"]]
        at += part["rows"]
        assert (np.concatenate([row["ids"] for row in mine]) == ids).all()
        assert (np.concatenate([row["logprobs"] for row in mine]) == logprobs.astype(np.float32)).all()
        assert all(len(row["ids"]) == len(row["input_ids"]) == len(row["token_nll"]) for row in mine)
    with pytest.raises(fusionx.DataError, match="no part of this split"):
        next(fusionx.read_shards(folder, "nowhere"))
