"""One job from shards to exports: what it leaves, and that a killed one ends exactly like an undisturbed one."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shard_builder import Parts, corpus_parts, make_job, write_set, write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import train.checkpoint
import train.loop
from contract.config import parse_config
from contract.errors import DataError, StoppedError
from train.__main__ import main
from train.config import PRESETS, MethodConfig, SelectionConfig, TrainJob
from train.distributed import World
from train.export import load_asn
from train.loop import Trainer, run_job, schedule
from train.model import load_target
from train.result import read_log
from train.stream import ShardSet
from train.throughput import TIMED_FIELDS
from train.validation import Validation

CANDIDATES = ["target", "prose", "code"]
ALONE = World(0, 1, torch.device("cpu"))
STEPS = 10  # round(2.3 epochs x 13 chunks / 3)
METHODS: dict[str, str | MethodConfig] = {
    **{name: name for name in PRESETS},
    "sequence": MethodConfig(selection=SelectionConfig(granularity="sequence")),
    "gumbel": MethodConfig(selection=SelectionConfig(metric="gumbel")),
}
Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def parts(model: Path) -> Parts:
    return corpus_parts(model, CANDIDATES)


@pytest.fixture(scope="module")
def make(model: Path, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A job on the module's shards: make(output, method, **changed)."""
    tokens, aligned = write_set(tmp_path_factory.mktemp("shards"), parts, CANDIDATES)

    def job(output: Path, method: str = "fusionx", **changed: Any) -> TrainJob:
        return make_job(model, tokens, changed.pop("aligned", aligned), output, METHODS[method], **changed)

    return job


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of an undisturbed run of a method, made once."""
    outputs: dict[str, Path] = {}

    def output(method: str) -> Path:
        if method not in outputs:
            outputs[method] = tmp_path_factory.mktemp("whole") / method
            run_job(make(outputs[method], method))
        return outputs[method]

    return output


def untimed_log(output: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMED_FIELDS} for line in read_log(output)]


def assert_same_training(left: Path, right: Path) -> None:
    """Weights, networks, log and result are equal to the last bit, times apart."""
    files = sorted(path.relative_to(left) for path in left.glob("*/*.safetensors"))
    assert files == sorted(path.relative_to(right) for path in right.glob("*/*.safetensors"))
    assert files
    for file in files:
        ours, theirs = load_file(left / file), load_file(right / file)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (file, name)
    assert untimed_log(left) == untimed_log(right)
    results = [json.loads((output / "result.json").read_text()) for output in (left, right)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


class _KilledError(BaseException):
    """Like a signal: no handler of the product may swallow it."""


def kill_before(monkeypatch: pytest.MonkeyPatch, job: TrainJob, step: int, method: str = "step") -> None:
    """Runs `job` and stops it where `method` of the trainer is entered at `step`."""
    original = getattr(Trainer, method)

    def dying(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == step:
            raise _KilledError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, dying)
        with pytest.raises(_KilledError):
            run_job(job)
    assert not (Path(job.output) / "result.json").exists()


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


@pytest.mark.parametrize("method", ["fusionx", "paper"])
def test_exports_load(method: str, make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(tmp_path / "out", method), ALONE)
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
        assert "fusion-x" in (folder / "README.md").read_text()
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
    run_job(make_job(model, tokens, aligned, tmp_path / "out", "fusionx", optimizer={"epochs": 0.5}))
    folder = tmp_path / "out" / "last"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_asn(folder)[0].state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("method", "step"),
    [*((method, 5) for method in METHODS), *(("fusionx", step) for step in (0, 2, 3, 4, 8, 9))],
)
def test_killed_and_resumed(
    method: str, step: int, finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", method)
    kill_before(monkeypatch, job, step)
    run_job(job)
    assert_same_training(tmp_path / "out", finished(method))


@pytest.mark.parametrize(
    ("where", "step"), [("_validate", 0), ("_validate", 8), ("_save", 6), ("_log_step", 6), ("_finish", 10)]
)
def test_killed_elsewhere(
    where: str, step: int, finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx")
    kill_before(monkeypatch, job, step, where)
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx"))


def test_killed_twice_and_while_writing_a_checkpoint(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx")
    kill_before(monkeypatch, job, 4)
    with monkeypatch.context() as patch:

        def dying(*_: object) -> None:
            raise _KilledError

        patch.setattr(train.checkpoint, "save_file", dying)  # in the midst of the checkpoint of step 6
        with pytest.raises(_KilledError):
            run_job(job)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").glob("step-*"))] == ["step-00000003"]
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx"))
    assert not (tmp_path / "out" / "checkpoints").exists()  # a finished job never resumes


def test_the_order_in_which_sources_are_listed_decides_nothing(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a checkpoint resumed after a reordering would give each candidate another one's gate."""
    job = make(tmp_path / "out", "fusionx")
    kill_before(monkeypatch, job, 4)
    turned = make(tmp_path / "out", "fusionx", aligned=dict(reversed(job.aligned.items())))
    assert list(turned.aligned) != list(job.aligned)
    run_job(turned)
    assert_same_training(tmp_path / "out", finished("fusionx"))


def test_seeds_differ(finished: Callable[[str], Path], make: Make, tmp_path: Path) -> None:
    run_job(make(tmp_path / "out", "fusionx", seed=1))
    ours = load_file(tmp_path / "out" / "last" / "model.safetensors")
    theirs = load_file(finished("fusionx") / "last" / "model.safetensors")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_another_job_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_before(monkeypatch, make(tmp_path / "out", "fusionx"), 4)
    with pytest.raises(DataError, match="another training") as caught:
        run_job(make(tmp_path / "out", "fusionx", seed=1, run={"log_every": 1}))
    assert (caught.value.details["field"], caught.value.details["found"]) == ("seed", "seed: found 0, expected 1")
    assert caught.value.details["file"].endswith("step-00000003")


def test_going_on_from_an_earlier_checkpoint(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx")
    kill_before(monkeypatch, job, 8)
    run_job(job, resume=tmp_path / "out" / "checkpoints" / "step-00000003")
    assert_same_training(tmp_path / "out", finished("fusionx"))


def test_a_log_that_lost_lines_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make(tmp_path / "out", "fusionx")
    kill_before(monkeypatch, job, 4)
    (tmp_path / "out" / "log.jsonl").unlink()
    with pytest.raises(DataError, match=r"log.jsonl"):
        run_job(job)


def test_a_finished_job(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is only read the second time; under a changed config it is refused, and the field is named."""
    output = tmp_path / "out"
    shutil.copytree(finished("ct"), output)
    job = make(output, "ct", run={"log_every": 3})
    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "Trainer", None)
        assert run_job(job) == json.loads((output / "result.json").read_text())
    for field, changed in (
        ("optimizer", {"optimizer": {"epochs": 5}}),
        ("seed", {"seed": 3}),
        ("inputs", {"inputs": {"tokens": "other"}}),
        ("run", {"run": {"validate_every": 5}}),
    ):
        with pytest.raises(DataError) as caught:
            run_job(make(output, "ct", **changed))
        assert caught.value.details["field"].split(".")[0] == field
        assert caught.value.details["file"] == str(output / "result.json")


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Multiplies the loss of these steps."""
    original = train.loop.selection_loss
    calls = itertools.count()

    def broken(*arguments: Any) -> Any:
        loss = original(*arguments)
        return loss * factor(loss) if next(calls) in steps else loss

    monkeypatch.setattr(train.loop, "selection_loss", broken)


@pytest.mark.parametrize(
    "factor",
    # sqrt at 0: value 0, gradient infinite, times 0: a finite loss whose gradient is NaN.
    [lambda loss: loss * math.nan, lambda loss: loss * math.inf, lambda loss: (loss * 0).sqrt()],
    ids=["nan", "inf", "gradient"],
)
def test_a_step_that_is_not_finite_is_skipped(
    factor: Callable[[torch.Tensor], torch.Tensor], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no weight, is counted, and the log names its chunks."""
    job = make(tmp_path / "out", "fusionx")
    poison(monkeypatch, {4, 6}, factor)
    result = run_job(job)
    assert result["skipped"] == 2
    skipped = [line for line in read_log(tmp_path / "out") if line["event"] == "skipped"]
    assert [line["step"] for line in skipped] == [5, 7]
    assert [[tuple(key) for key in line["keys"]] for line in skipped] == [keys_of(job, step) for step in (4, 6)]
    assert "nan" in skipped[0]["asn_grad_norm"] or "inf" in skipped[0]["asn_grad_norm"]
    for which in ("last", "best"):
        for tensor in load_file(tmp_path / "out" / which / "model.safetensors").values():
            assert torch.isfinite(tensor).all()


def test_too_many_skipped_steps_stop_the_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before a kill count; mended, the run goes on from the checkpoint."""
    job = make(tmp_path / "out", "fusionx", run={"skip_limit": 2})
    with monkeypatch.context() as patch:
        poison(patch, {2, 5}, lambda loss: loss * math.nan)
        with pytest.raises(DataError, match="2 steps") as caught:
            run_job(job)
    assert caught.value.details["field"] == "step 6"
    assert str(keys_of(job, 5)) in caught.value.details["expected"]
    assert (tmp_path / "out" / "checkpoints" / "step-00000003" / "state.json").exists()
    assert run_job(job)["skipped"] == 1


def keys_of(job: TrainJob, step: int) -> list[tuple[int, int]]:
    return Trainer(job, ALONE).batches.keys(step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_told_to_stop(
    number: signal.Signals,
    finished: Callable[[str], Path],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is finished and saved, the exit code says so, and the run goes on to the same end."""
    job = make(tmp_path / "out", "fusionx")
    original = Trainer.step

    def told(self: Trainer, batches: Any) -> None:
        if self.state.step == 4:
            signal.raise_signal(number)
        original(self, batches)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", told)
        with pytest.raises(StoppedError) as caught:
            run_job(job)
    assert caught.value.exit_code == 75
    assert "step 5 of 10" in caught.value.details["found"]
    assert signal.getsignal(number) == before
    assert (tmp_path / "out" / "checkpoints" / "step-00000005" / "state.json").exists()
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx"))


def quiet_jobs(folder: Path, model: Path, parts: Parts) -> Make:
    """As `make`, but the model has no dropout, whose draws follow the shapes of what runs."""
    quiet = folder / "model"
    shutil.copytree(model, quiet)
    config = AutoConfig.from_pretrained(quiet)
    config.attention_dropout = 0.0
    config.save_pretrained(quiet)
    tokens, aligned = write_set(folder / "shards", parts, CANDIDATES)
    return lambda output, method, **changed: make_job(quiet, tokens, aligned, output, method, **changed)


@pytest.mark.parametrize("method", ["ct", "fusellm", "fusionx", "paper"])
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
    result = run_job(make(tmp_path / "out", "fusionx", optimizer={**pack, "batch_size": 2, "epochs": 4}))
    unpacked = Trainer(make(tmp_path / "other", "fusionx"), ALONE)
    blocks = Trainer(make(tmp_path / "third", "fusionx", optimizer=pack), ALONE).blocks_per_epoch
    assert result["steps"] == round(4 * blocks / 2)
    assert blocks < unpacked.blocks_per_epoch
    assert result["last_bits_per_byte"] < json.loads(json.dumps(read_log(tmp_path / "out")[0]))["bits_per_byte"]


def test_adapters(make: Make, tmp_path: Path) -> None:
    """LoRA: the export is a plain model, which the training improved."""
    result = run_job(make(tmp_path / "out", "fusionx", optimizer={"lora": {"r": 4}}))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "last")
    assert not [name for name in plain.state_dict() if "lora" in name]
    target = load_target(str(tmp_path / "out" / "last"), None, torch.device("cpu"))
    job = make(tmp_path / "out", "fusionx")
    validation = Validation(job.tokens, 128, 0, ShardSet(job.tokens, {}, "train").domains)
    measured = validation(target, ALONE, None, 32)
    assert measured["trained_bits_per_byte"] == pytest.approx(result["last_bits_per_byte"], rel=1e-4)
    assert result["last_bits_per_byte"] < read_log(tmp_path / "out")[0]["trained_bits_per_byte"]


@pytest.mark.slow
def test_compiled_blocks(tmp_path: Path, model: Path, parts: Parts) -> None:
    make_quiet = quiet_jobs(tmp_path, model, parts)
    outputs = [tmp_path / name for name in ("compiled", "eager")]
    for output in outputs:
        run_job(make_quiet(output, "fusionx", run={"compile": output.name == "compiled"}))
    ours, theirs = (load_file(output / "last" / "model.safetensors") for output in outputs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changed", [{"gradient_checkpointing": True}, {"loader_workers": 1}, {"tensorboard": True}])
def test_how_it_is_carried_out_changes_nothing(
    changed: dict[str, Any], finished: Callable[[str], Path], make: Make, tmp_path: Path
) -> None:
    run_job(make(tmp_path / "out", "fusionx", run=changed))
    ours = load_file(tmp_path / "out" / "last" / "model.safetensors")
    theirs = load_file(finished("fusionx") / "last" / "model.safetensors")
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
    for method in ("ct", "fusellm", "paper", "fusionx"):
        job = make_job(model, tokens, aligned, tmp_path / method, method, optimizer={"batch_size": 1, "epochs": 1})
        result = run_job(job)
        assert result["steps"] == 3
        assert math.isfinite(result["last_bits_per_byte"])


def test_bf16_autocast_and_head_blocks(make: Make, tmp_path: Path) -> None:
    """Runs in bf16; in fp32 the block size changes rounding only."""
    result = run_job(make(tmp_path / "bf16", "fusionx", run={"precision": "bf16"}))
    assert math.isfinite(result["last_bits_per_byte"])
    runs = [run_job(make(tmp_path / str(b), "fusionx", run={"head_block": b})) for b in (8, 512)]
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
