"""Which candidates can be merged, what mergekit makes of them, and what is refused before anything is merged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fusionx.contract.config import load_config, parse_config
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.done_marks import read_mark
from fusionx.eval.config import MergeMethod
from fusionx.eval.evaluate import evaluate_model
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.evaluate_models import held_out_chunks
from fusionx.pipelines.evaluation.merging import (
    RECIPE_FILE,
    RECIPES,
    SCALES,
    check_merges,
    make_merges,
    merge_config,
    mergeable,
)
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import open_pipeline

ALL: tuple[MergeMethod, ...] = get_args(MergeMethod)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    """A target, two models of its shape, and two of another architecture and of another vocabulary."""
    folder = tmp_path_factory.mktemp("c++@home")  # mergekit takes `+` and `@` in a string for more than a path
    make_model(folder / "target", "llama", 320, seed=0, bos=True)
    make_model(folder / "sibling", "llama", 320, seed=1, bos=True)
    make_model(folder / "cousin", "llama", 320, seed=2, bos=True)
    make_model(folder / "other", "gpt_neox", 320, seed=3, bos=True)
    make_model(folder / "larger", "llama", 330, seed=4, bos=True)
    (folder / "corpus").mkdir()
    for number, split in enumerate(("train", "validation")):
        rows = [{"text": f"{split}: fox {row} jumps over dog {number}.", "domain": "animals"} for row in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "corpus" / f"{split}.parquet")
    return folder


@pytest.fixture
def layout(folder: Path, tmp_path: Path) -> Layout:
    """Of a run that has its chunks."""
    with open_pipeline(run_of(folder, tmp_path, "", [])) as pipeline:
        pipeline.chunk()
        return pipeline.layout


def run_of(folder: Path, output: Path, sources: str, merges: list[str]) -> FusionConfig:
    raw = {
        "name": "merging",
        "output": str(output),
        "target": {"id": "target", "path": str(folder / "target")},
        "sources": [{"id": name, "path": str(folder / name)} for name in sources.split()],
        "corpus": {"path": str(folder / "corpus"), "domain": "domain"},
        "chunk": {"block_size": 96},
        "train": {"methods": ["ct"]},
        "eval": {"merges": merges, "threads": 1},
        "executor": {"kind": "inline"},
    }
    return parse_config(FusionConfig, raw, source="test")


def weights(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {name: tensor.double() for name, tensor in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}


def test_every_method_has_a_recipe() -> None:
    assert set(RECIPES) == set(ALL)


def test_only_siblings_of_the_target_are_merged(folder: Path, tmp_path: Path) -> None:
    """Not another architecture, and not another vocabulary."""
    config = run_of(folder, tmp_path, "other sibling larger", [])
    assert [model.id for model in mergeable(config.models)] == ["target", "sibling"]


def test_task_vectors_are_of_the_others_and_means_of_all() -> None:
    def named(models: list[dict[str, Any]]) -> list[str]:
        return [model["model"]["model"]["path"] for model in models]

    for method in ("linear", "karcher"):
        content = merge_config(method, ["a", "b", "c"])
        assert (named(content["models"]), "base_model" in content) == (["a", "b", "c"], False)
    for method in ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "della", "model_stock"):
        content = merge_config(method, ["a", "b", "c"])
        assert (named(content["models"]), content["base_model"]) == (["b", "c"], {"model": {"path": "a"}})
    assert named(merge_config("slerp", ["a", "b"])["models"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("sources", "merges", "said"),
    [
        ("other larger", ["linear"], ["'linear'", "eval.merges", "tokenizer: target", "at least 2 models"]),
        ("", ["ties"], ["'ties'", "at least 2 models"]),
        ("sibling cousin", ["linear", "slerp"], ["'slerp'", "target, sibling, cousin", "2 models", "karcher"]),
        ("sibling other", ["model_stock"], ["'model_stock'", "target, sibling", "at least 3 models"]),
    ],
)
def test_what_cannot_be_merged_is_named(
    folder: Path, tmp_path: Path, sources: str, merges: list[str], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        check_merges(run_of(folder, tmp_path, sources, merges))
    for words in said:
        assert words in str(error.value)


def test_a_rival_is_not_named_as_a_merge_is(folder: Path, tmp_path: Path) -> None:
    raw = run_of(folder, tmp_path, "sibling", ["ties"]).model_dump()
    raw["eval"]["rivals"] = {"merge: ties": str(folder / "sibling")}
    with pytest.raises(ConfigError, match="the name of another row of the report"):
        parse_config(FusionConfig, raw, source="test")


def chosen_scale(merged: Path) -> float:
    """Of a merged model: the one that its recipe says, which is the best of those tried."""
    tried = read_mark(merged)["notes"]
    scale = yaml.safe_load((merged / RECIPE_FILE).read_text())["parameters"]["lambda"]
    assert list(tried) == [str(scale) for scale in SCALES]
    assert tried[str(scale)] == min(tried.values())
    return scale


def test_merged_models_are_what_their_papers_say(folder: Path, layout: Layout, tmp_path: Path) -> None:
    """The mean, the target plus scaled changes, and TIES by its own words, weight by weight."""
    import torch

    config = run_of(folder, tmp_path, "sibling other cousin", ["linear", "task_arithmetic", "ties"])
    assert make_merges(config, layout) == 3
    assert {path.name for path in (tmp_path / "merged").iterdir() if path.is_dir()} == {*config.eval.merges}
    of_sum, of_mean = (chosen_scale(tmp_path / "merged" / name) for name in ("task_arithmetic", "ties"))
    target, sibling, cousin = (weights(folder / name) for name in ("target", "sibling", "cousin"))
    linear, arithmetic, ties = (weights(tmp_path / "merged" / name) for name in config.eval.merges)
    assert linear.keys() == target.keys()
    for name, base in target.items():
        changes = [sibling[name] - base, cousin[name] - base]
        torch.testing.assert_close(linear[name], base + sum(changes) / 3, rtol=0, atol=1e-6)
        torch.testing.assert_close(arithmetic[name], base + of_sum * sum(changes), rtol=0, atol=1e-6)
        kept = []
        for change in changes:
            ranks = change.flatten().abs().argsort(descending=True)
            mask = torch.zeros(change.numel(), dtype=change.dtype)
            mask[ranks[: change.numel() // 2]] = 1
            kept.append(change * mask.view_as(change))
        elected = sum(kept) >= 0
        agreeing = [(change >= 0) == elected for change in kept]
        agreeing = [agrees & (change != 0) for agrees, change in zip(agreeing, kept, strict=True)]
        mean = sum(change * agrees for change, agrees in zip(kept, agreeing, strict=True)) / sum(
            agrees.double() for agrees in agreeing
        ).clamp(min=1)
        torch.testing.assert_close(ties[name], base + of_mean * mean, rtol=0, atol=1e-6)


def test_the_scale_that_is_kept_scores_as_it_did_when_it_was_tried(
    folder: Path, layout: Layout, tmp_path: Path
) -> None:
    config = run_of(folder, tmp_path, "sibling cousin", ["task_arithmetic"])
    make_merges(config, layout)
    merged = tmp_path / "merged" / "task_arithmetic"
    found = evaluate_model(merged, held_out_chunks(layout, "validation"), config.eval)["overall"]["bits_per_byte"]
    assert found == min(read_mark(merged)["notes"].values())
    assert len(set(read_mark(merged)["notes"].values())) == len(SCALES)


def test_every_method_makes_a_model_that_loads_and_tells_its_recipe(
    folder: Path, layout: Layout, tmp_path: Path
) -> None:
    from mergekit.config import MergeConfiguration
    from transformers import AutoTokenizer

    methods = [method for method in ALL if method != "slerp"]
    sources = {"slerp": "sibling"} | dict.fromkeys(methods, "sibling cousin")
    for method, names in sources.items():
        config = run_of(folder, tmp_path, names, [method])
        assert make_merges(config, layout) == 1
        made = tmp_path / "merged" / method
        assert all(tensor.isfinite().all() for tensor in weights(made).values())
        expected = AutoTokenizer.from_pretrained(folder / "target")("def f(x):")["input_ids"]
        assert AutoTokenizer.from_pretrained(made)("def f(x):")["input_ids"] == expected
        models = [str(folder / name) for name in ("target", *names.split())]
        recipe = MergeConfiguration.model_validate(yaml.safe_load((made / RECIPE_FILE).read_text()))
        scale = chosen_scale(made) if RECIPES[method].scales else None
        assert recipe == MergeConfiguration.model_validate(merge_config(method, models, scale))


def test_a_merge_is_made_once_and_again_when_a_weight_or_a_candidate_changes(
    folder: Path, layout: Layout, tmp_path: Path, make_model: Any
) -> None:
    config = run_of(folder, tmp_path, "sibling cousin", ["dare_ties"])
    file = tmp_path / "merged" / "dare_ties" / "model.safetensors"
    assert make_merges(config, layout) == 1
    first, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert make_merges(config, layout) == 0
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(first[:-1])
    assert make_merges(config, layout) == 1
    assert file.read_bytes() == first, "what is dropped at random is the same each time"
    fewer = run_of(folder, tmp_path, "sibling", ["dare_ties"])
    assert (make_merges(fewer, layout), file.read_bytes() == first) == (1, False)
    make_model(tmp_path / "sibling", "llama", 320, seed=9, bos=True)
    raw = fewer.model_dump()
    raw["sources"][0]["path"] = str(tmp_path / "sibling")
    assert make_merges(parse_config(FusionConfig, raw, source="test"), layout) == 1


def test_the_shipped_siblings_are_trained_as_the_demo_is(root: Path) -> None:
    demo, siblings = (
        load_config(FusionConfig, root / "configs" / f"{name}.yaml") for name in ("demo-best", "demo-siblings")
    )
    methods = siblings.train.methods
    assert set(methods) < set(demo.train.methods)
    overrides = {name: demo.train.overrides[name] for name in methods}
    assert demo.train.model_copy(update={"methods": methods, "overrides": overrides}) == siblings.train
    for part in ("target", "corpus", "chunk", "precompute"):
        assert getattr(siblings, part) == getattr(demo, part)


def test_a_failure_of_mergekit_names_the_candidates(folder: Path, layout: Layout, tmp_path: Path) -> None:
    models = shutil.copytree(folder, tmp_path / "models")
    short = models / "sibling" / "model.safetensors"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(DataError) as error:
        make_merges(run_of(models, tmp_path, "sibling", ["linear"]), layout)
    for words in ("mergekit could not merge", "'linear'", "eval.merges", "SafetensorError", str(short.parent)):
        assert words in str(error.value)
    assert not (tmp_path / "merged" / "linear").exists()
