"""One job from shards to exports: what it leaves, whatever method and however it is carried out."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shard_builder import Parts, make_job, write_set, write_tiny_model
from trainings import ALONE, CANDIDATES, METHODS, STEPS, Make, untimed_log
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fusionx.contract.config import parse_config
from fusionx.train.__main__ import main
from fusionx.train.config import TrainJob
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.loop.trainer import Trainer, run_job, schedule
from fusionx.train.loop.validation import Validation
from fusionx.train.model.target import load_target
from fusionx.train.state.export import load_asn
from fusionx.train.state.result import read_log


@pytest.mark.parametrize("method", METHODS)
def test_what_a_job_leaves(method: str, finished: Callable[[str], Path], model: Path, make: Make) -> None:
    output = finished(method)
    job = make(output, method)
    result = json.loads((output / "result.json").read_text())
    assert (result["steps"], result["samples"], result["job"]) == (STEPS, STEPS * 3, job.digest())
    assert result["config"] == job.content()
    log = read_log(output)
    validations = [line for line in log if line["event"] == "validation"]
    assert [line["step"] for line in validations] == [0, 4, 8, 10]
    best = min(validations, key=lambda line: line["trained_bits_per_byte"])
    assert (result["best_step"], result["best_bits_per_byte"]) == (best["step"], best["trained_bits_per_byte"])
    assert result["last_bits_per_byte"] == validations[-1]["trained_bits_per_byte"]
    steps = [line for line in log if line["event"] == "step"]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10]
    weights = job.method
    for line in steps:
        total = sum(getattr(weights, f"lambda_{name}") * line[name] for name in ("lm", "fuse", "feed", "select"))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["grad_norm"] > 0
        assert line["epoch"] == pytest.approx(line["step"] * 3 / 13)
        assert line["waiting_for_data"] >= 0
        assert line["learning_rate"] == pytest.approx(1e-2 * schedule(line["step"] - 1, STEPS, 0.008))
        if weights.teacher == "none":
            assert "weight" not in line
        else:
            assert sorted(line["weight"]) == sorted(CANDIDATES)
            assert 0 < sum(line["weight"].values()) <= 1 + 1e-5
    start = load_file(model / "model.safetensors")
    last = load_file(output / "last" / "model.safetensors")
    assert any(not torch.equal(start[name], last[name]) for name in start)
    if weights.teacher == "asn":
        assert result["asn_moved"] > 0
        selections = [line for line in log if line["event"] == "selection"]
        assert [line["step"] for line in selections] == [4, 8, 10]
        for line in selections:
            for shares in line["domains"].values():
                assert sum(shares.values()) == pytest.approx(1, rel=1e-4)
    else:
        assert result["asn_moved"] is None
        assert not (output / "last" / "asn.safetensors").exists()


@pytest.mark.parametrize("method", ["fusionx-network", "paper"])
def test_exports_load(method: str, make: Make, tmp_path: Path) -> None:
    job = make(tmp_path / "out", method).model_copy(update={"chat_template": "{{ messages[0].content }}"})
    trainer = Trainer(job, ALONE)
    trainer.run()
    assert trainer.asn is not None
    asn, candidates = load_asn(tmp_path / "out" / "last")
    assert candidates == sorted(CANDIDATES)
    assert asn.config == trainer.job.method.selection
    for name, tensor in trainer.asn.state_dict().items():
        assert torch.equal(asn.state_dict()[name], tensor)
    for which in ("last", "best"):
        folder = tmp_path / "out" / which
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = "The quick brown fox"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert tokenizer.chat_template == job.chat_template, "by which the target learned"
        card = (folder / "README.md").read_text()
        assert "fusion-x" in card
        assert re.search(r"^\| target \|.*\| 0\.\d{3} \|$", card, re.MULTILINE), "the target's mean fusion weight"
        if which == "last":
            trained = trainer.target.model.state_dict()
            assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items())


def test_best_is_the_target_at_its_best_step(make: Make, tmp_path: Path) -> None:
    # A rate so high that the last step is not the best.
    job = make(tmp_path / "out", "ct", optimizer={"learning_rate": 30.0})
    result = run_job(job)
    assert 0 <= result["best_step"] < STEPS
    assert result["best_bits_per_byte"] < result["last_bits_per_byte"]
    for which in ("best", "last"):
        target = load_target(f"{job.output}/{which}", None, torch.device("cpu"))
        validation = Validation(job.tokens, 128, 0, ShardSet(job.tokens, {}, "train").domains)
        measured = validation(target, ALONE, None, 32)
        assert measured["trained_bits_per_byte"] == pytest.approx(result[f"{which}_bits_per_byte"], rel=1e-6)


def test_a_bf16_target_is_exported_in_bf16(parts: Parts, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "bfloat16")
    tokens, aligned = write_set(tmp_path / "shards", parts, CANDIDATES)
    run_job(make_job(model, tokens, aligned, tmp_path / "out", "fusionx-network", optimizer={"epochs": 0.5}))
    folder = tmp_path / "out" / "last"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_asn(folder)[0].state_dict().values()} == {torch.float32}


def test_seeds_differ(finished: Callable[[str], Path], make: Make, tmp_path: Path) -> None:
    run_job(make(tmp_path / "out", "fusionx-network", seed=1))
    ours = load_file(tmp_path / "out" / "last" / "model.safetensors")
    theirs = load_file(finished("fusionx-network") / "last" / "model.safetensors")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def quiet_jobs(folder: Path, model: Path, parts: Parts) -> Make:
    """As `make`, but the model has no dropout, whose draws follow the shapes of what runs."""
    quiet = folder / "model"
    shutil.copytree(model, quiet)
    config = AutoConfig.from_pretrained(quiet)
    config.attention_dropout = 0.0
    config.save_pretrained(quiet)
    tokens, aligned = write_set(folder / "shards", parts, CANDIDATES)
    return lambda output, method, **changed: make_job(quiet, tokens, aligned, output, method, **changed)


@pytest.mark.parametrize("method", ["ct", "fusellm", "fusionx-network", "paper"])
def test_accumulation_is_exact(method: str, tmp_path: Path, model: Path, parts: Parts) -> None:
    """Micro-batches of 1, 2 or 3 chunks give the same step, whose means are over the step and not over its parts."""
    make_quiet = quiet_jobs(tmp_path, model, parts)
    outputs = {}
    for micro_batch in (1, 2, None):
        outputs[micro_batch] = tmp_path / str(micro_batch)
        run_job(make_quiet(outputs[micro_batch], method, run={"micro_batch": micro_batch}))
    whole = [line for line in untimed_log(outputs[None]) if line["event"] == "step"]
    for micro_batch in (1, 2):
        divided = [line for line in untimed_log(outputs[micro_batch]) if line["event"] == "step"]
        for ours, theirs in zip(divided, whole, strict=True):
            for name in ("loss", "lm", "fuse", "feed", "select", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-6), (micro_batch, name)


@pytest.mark.parametrize("document_mask", [True, False])
def test_packed_blocks(document_mask: bool, make: Make, tmp_path: Path) -> None:
    pack = {"pack": 128, "document_mask": document_mask}
    result = run_job(make(tmp_path / "out", "fusionx-network", optimizer={**pack, "batch_size": 2, "epochs": 4}))
    unpacked = Trainer(make(tmp_path / "other", "fusionx-network"), ALONE)
    blocks = Trainer(make(tmp_path / "third", "fusionx-network", optimizer=pack), ALONE).blocks_per_epoch
    assert result["steps"] == round(4 * blocks / 2)
    assert blocks < unpacked.blocks_per_epoch
    assert result["last_bits_per_byte"] < json.loads(json.dumps(read_log(tmp_path / "out")[0]))["bits_per_byte"]


def test_adapters(make: Make, tmp_path: Path) -> None:
    """LoRA: the export is a plain model, which the training improved."""
    result = run_job(make(tmp_path / "out", "fusionx-network", optimizer={"lora": {"r": 4}}))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "last")
    assert not [name for name in plain.state_dict() if "lora" in name]
    target = load_target(str(tmp_path / "out" / "last"), None, torch.device("cpu"))
    job = make(tmp_path / "out", "fusionx-network")
    validation = Validation(job.tokens, 128, 0, ShardSet(job.tokens, {}, "train").domains)
    measured = validation(target, ALONE, None, 32)
    assert measured["trained_bits_per_byte"] == pytest.approx(result["last_bits_per_byte"], rel=1e-4)
    assert result["last_bits_per_byte"] < read_log(tmp_path / "out")[0]["trained_bits_per_byte"]


@pytest.mark.slow
def test_compiled_blocks(tmp_path: Path, model: Path, parts: Parts) -> None:
    make_quiet = quiet_jobs(tmp_path, model, parts)
    outputs = [tmp_path / name for name in ("compiled", "eager")]
    for output in outputs:
        run_job(make_quiet(output, "fusionx-network", run={"compile": output.name == "compiled"}))
    ours, theirs = (load_file(output / "last" / "model.safetensors") for output in outputs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changed", [{"gradient_checkpointing": True}, {"loader_workers": 1}, {"tensorboard": True}])
def test_how_it_is_carried_out_changes_nothing(
    changed: dict[str, Any], finished: Callable[[str], Path], make: Make, tmp_path: Path
) -> None:
    run_job(make(tmp_path / "out", "fusionx-network", run=changed))
    ours = load_file(tmp_path / "out" / "last" / "model.safetensors")
    theirs = load_file(finished("fusionx-network") / "last" / "model.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_chunk_of_one_token_is_no_reason_to_stop(model: Path, parts: Parts, tmp_path: Path) -> None:
    first = parts[0][1][0]
    said = {
        name: replace(one, ids=one.ids[:1], probs=one.probs[:1], status=one.status[:1])
        for name, one in first.said.items()
    }
    short = replace(first, input_ids=first.input_ids[:1], ends=first.ends[:1], said=said)
    changed = [("train", [short, *parts[0][1][1:3]]), parts[-1]]
    tokens, aligned = write_set(tmp_path / "shards", changed, CANDIDATES)
    for method in ("ct", "fusellm", "paper", "fusionx-network"):
        job = make_job(model, tokens, aligned, tmp_path / method, method, optimizer={"batch_size": 1, "epochs": 1})
        result = run_job(job)
        assert result["steps"] == 3
        assert math.isfinite(result["last_bits_per_byte"])


def test_bf16_autocast_and_head_blocks(make: Make, tmp_path: Path) -> None:
    """Runs in bf16; in fp32 the block size changes rounding only."""
    result = run_job(make(tmp_path / "bf16", "fusionx-network", run={"precision": "bf16"}))
    assert math.isfinite(result["last_bits_per_byte"])
    runs = [run_job(make(tmp_path / str(b), "fusionx-network", run={"head_block": b})) for b in (8, 512)]
    assert runs[0]["last_bits_per_byte"] == pytest.approx(runs[1]["last_bits_per_byte"], rel=1e-2)


def test_schedule() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1
    assert all(left > right for left, right in itertools.pairwise(rates[10:]))
    assert rates[-1] > 0
    assert schedule(0, 1, 0.008) == 1


def test_the_command(
    finished: Callable[[str], Path],
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`python -m train`: 0 for a finished job, 2 for bad usage or config, with the field on stderr."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    job = make(finished("ct"), "ct")
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job.model_dump(mode="json")))
    assert parse_config(TrainJob, json.loads(file.read_text()), file).digest() == job.digest()
    assert main([str(file)]) == 0
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    file.write_text(json.dumps({**job.model_dump(mode="json"), "sed": 1}))
    assert main([str(file)]) == 2
    assert "sed" in capsys.readouterr().err
