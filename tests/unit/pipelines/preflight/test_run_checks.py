"""What is told of a run before its first unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaModel, MptConfig, T5Config

from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.shards.manifest import Manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry
from fusionx.eval.config import EvalConfig
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.preflight.run_checks import held_out_errors, refuse, run_errors


def errors(raw: dict[str, Any], **changes: Any) -> list[FusionXError]:
    config = FusionConfig.model_validate({**raw, **changes})
    return list(run_errors(config, Layout(config.output)))


def only(raw: dict[str, Any], **changes: Any) -> FusionXError:
    (error,) = errors(raw, **changes)
    return error


def test_a_sound_run_is_let_pass(raw: dict[str, Any]) -> None:
    assert errors(raw) == []


def test_everything_is_told_at_once(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "corpus" / "test.jsonl").unlink()
    found = errors(raw, precompute={"k": 301, "device": "cuda"}, eval={"tasks": ["/no/task"], "device": "cuda:1"})
    assert [error.details.get("field") for error in found] == [
        "precompute.device",
        "eval.device",
        "corpus.path",
        "precompute.k",
        "tasks",
    ]
    with pytest.raises(ConfigError) as caught:
        refuse(found)
    assert str(caught.value).startswith("5 problems; nothing was started.")
    assert all(str(error) in str(caught.value) for error in found)


def test_one_problem_stays_itself_and_none_is_no_error() -> None:
    error = DataError("It is damaged.", file="f")
    with pytest.raises(DataError) as caught:
        refuse([error])
    assert caught.value is error
    refuse([])


def test_a_split_that_no_document_fell_to_is_told_before_the_sources_run(raw: dict[str, Any], tmp_path: Path) -> None:
    config = FusionConfig.model_validate(raw)
    layout = Layout(str(tmp_path / "cut"))
    rows = {"train": 30, "validation": 1, "test": 0}
    parts = [PartEntry(f"part-{n}.parquet", split, of, 0, 1, "0") for n, (split, of) in enumerate(rows.items())]
    write_manifest(layout.chunks, Manifest("chunks", {}, {}, parts))
    (error,) = held_out_errors(config, layout)
    assert error.problem == "No test text came of the corpus."
    assert "31 chunks" in error.details["found"]
    assert not list(held_out_errors(config.model_copy(update={"eval": EvalConfig(split="validation")}), layout))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_that_no_file_has_is_named(raw: dict[str, Any], tmp_path: Path, split: str) -> None:
    (tmp_path / "corpus" / f"{split}.jsonl").unlink()
    assert f"no {split} text" in only(raw).problem
    if split != "train":
        assert errors(raw, corpus={**raw["corpus"], "holdout": {split: 0.1}}) == []


def test_a_split_that_the_config_leaves_out_is_named(raw: dict[str, Any]) -> None:
    error = only(raw, corpus={**raw["corpus"], "splits": ["train", "validation"]})
    assert (error.details["field"], "no test text" in error.problem) == ("corpus.splits", True)
    assert errors(raw, corpus={**raw["corpus"], "splits": ["train", "validation"]}, eval={"split": "validation"}) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"precompute": {"device": "cuda"}}, "precompute.device"),
        ({"precompute": {"num_gpus": 0.5}}, "precompute.num_gpus"),
        ({"train": {"run": {"device": "cuda"}}}, "train.run.device"),
        ({"train": {"optimizer": {"lora": {"quantization": "4bit"}}}}, "train.optimizer.lora.quantization"),
        ({"eval": {"device": "cuda"}}, "eval.device"),
        ({"eval": {"device": "mps"}}, "eval.device"),
    ],
)
def test_a_device_that_is_not_here_is_named(
    raw: dict[str, Any], changes: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    error = only(raw, **changes)
    assert (error.details["field"], "no GPU" in error.details["expected"]) == (field, True)


def test_gpus_are_counted(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert errors(raw, precompute={"num_gpus": 2}, eval={"device": "cuda:1"}) == []
    assert only(raw, precompute={"num_gpus": 2.5}).details["expected"] == "what is here: 2 GPUs"
    assert only(raw, eval={"device": "cuda:2"}).details["field"] == "eval.device"
    assert only(raw, train={"run": {"device": "cuda", "devices": 3}}).details["field"] == "train.run.device"


def test_a_clusters_gpus_are_not_looked_for_here(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert errors(raw, precompute={"num_gpus": 1, "device": "cuda"}, executor={"address": "auto"}) == []


def headless(folder: Path) -> str:
    LlamaModel.from_pretrained(folder).save_pretrained(folder)
    return "LlamaModel"


def masked(folder: Path) -> str:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    return "BertForMaskedLM"


def encoder(folder: Path) -> str:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
    return "an encoder"


def pickled(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin"


def cut_short(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "model.safetensors"


@pytest.mark.parametrize("spoil", [headless, masked, encoder, pickled, cut_short])
def test_a_model_that_cannot_teach_is_refused(raw: dict[str, Any], tmp_path: Path, make_model: Any, spoil: Any) -> None:
    folder = make_model(tmp_path / "spoilt", "llama", 300)
    said = spoil(folder)
    error = only(raw, sources=[{"id": "spoilt", "path": str(folder)}])
    assert said in str(error)
    assert "'spoilt'" in error.details["field"]


def test_rows_beyond_the_targets_context_are_refused(raw: dict[str, Any], models: Path) -> None:
    target = {**raw["target"], "window_overlap": 32}
    assert only(raw, chunk={"block_size": 129}, sources=[], target=target).details["field"] == "chunk.block_size"
    pack = {"optimizer": {"pack": 256}}
    assert errors(raw, train=pack) == [], "positions begin anew in every document"
    pack["optimizer"]["document_mask"] = False  # type: ignore[assignment]
    assert only(raw, train=pack).details["field"] == "train.optimizer.pack"


def test_the_length_that_mpt_states_is_a_limit_for_a_target(
    raw: dict[str, Any], tmp_path: Path, make_tokenizer: Any
) -> None:
    from transformers import MptForCausalLM

    folder = make_tokenizer(tmp_path / "mpt", 300)
    MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=300, max_seq_len=64)).save_pretrained(folder)
    error = only(raw, target={"id": "mpt", "path": str(folder)})
    assert (error.details["found"], error.details["expected"]) == ("96", "at most 64, the context of 'mpt'")
    as_source = [{"id": "mpt", "path": str(folder)}]
    assert errors(raw, sources=as_source) == [], "as a source its biases are stretched"


def test_rivals_are_looked_for(raw: dict[str, Any]) -> None:
    assert only(raw, eval={"rivals": {"other": "/no/model"}}).details["field"] == "eval.rivals.other"
    error = only(raw, eval={"rivals": {"other": raw["target"]["path"]}}, precompute={"splits": ["train"]})
    assert error.details["field"] == "precompute.splits"


def test_a_missing_package_is_named(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionx.contract import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    error = only(raw, train={"run": {"wandb": "project"}})
    assert (error.details["field"], "wandb" in error.details["remedy"]) == ("train.run.wandb", True)


def test_a_stale_training_is_told_before_another_runs(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionx.pipelines.preflight import run_checks

    def jobs(config: FusionConfig, layout: Layout) -> list[Any]:
        return [type("Job", (), {"output": name})() for name in ("fresh", "stale")]

    def result(job: Any) -> None:
        if job.output == "stale":
            raise DataError("A folder holds the result of another training.", file=job.output)

    monkeypatch.setattr(run_checks, "planned_jobs", jobs)
    monkeypatch.setattr(run_checks, "finished_result", result)
    assert only(raw).details["file"] == "stale"
    config = FusionConfig.model_validate(raw)
    assert list(run_errors(config, Layout(config.output), overwrite=True)) == []


def test_nothing_is_written(raw: dict[str, Any], tmp_path: Path) -> None:
    before = json.dumps(sorted(map(str, tmp_path.rglob("*"))))
    errors(raw, precompute={"k": 301})
    assert json.dumps(sorted(map(str, tmp_path.rglob("*")))) == before
