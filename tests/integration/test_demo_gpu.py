"""configs/demo-gpu.yaml on a CPU, its sizes turned down by --set, where neither ray nor datasets is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import ForkedCommand

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ("target", "coder", "writer", "scribe")


def fusionx(*arguments: str, sets: list[str]) -> str:
    """Runs the command line with ray and datasets blocked; returns what it printed."""
    options = [word for override in sets for word in ("--set", override)]
    command = ForkedCommand(*arguments, *options, folder=ROOT, blocked=("ray", "datasets"))
    _, printed = command.communicate()
    assert command.wait() == 0, printed
    return printed


def small_inputs(data: Path) -> list[str]:
    domains = ("stubs", "licences", "readme", "cmake")
    mix = dict.fromkeys((*domains, "skill_boolean", "skill_counting"), 1)
    small = {
        "output": str(data),
        "device": "cpu",
        "dtype": "float32",
        "corpus.real_domains_kb": dict.fromkeys(domains, 60),
        "corpus.skills_kb": {"boolean": 10, "counting": 10},
        "corpus.train_kb": 3,
        "corpus.validation_kb": 2,
        "corpus.test_kb": 2,
        "corpus.absent_from_train": ["licences", "cmake"],
        "corpus.task_examples": 4,
    }
    for model in MODELS:
        sizes = {"vocab_size": 420, "hidden_size": 16, "layers": 2, "heads": 2, "context": 128, "mix": mix}
        sizes |= {"training_tokens": 2560, "batch_tokens": 512}
        small |= {f"models.{model}.{name}": value for name, value in sizes.items()}
    return [f"{name}={json.dumps(value)}" for name, value in small.items()]


def small_run(data: Path, runs: Path) -> list[str]:
    small: dict[str, object] = {
        "output": str(runs),
        "corpus.path": str(data / "corpus"),
        "chunk.block_size": 96,
        "precompute.num_gpus": 0,
        "precompute.k": 8,
        "train.tune": [0.001, 0.01],
        "train.optimizer.epochs": 1,
        "train.run.precision": "bf16",
        "eval.tasks": [str(data / "tasks")],
        "target.path": str(data / "models" / "target"),
    }
    small |= {f"sources.{model}.path": str(data / "models" / model) for model in MODELS[1:]}
    return [f"{name}={json.dumps(value)}" for name, value in small.items()]


@pytest.mark.slow
def test_the_gpu_demo_with_its_sizes_turned_down(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    fusionx("demo-inputs", "configs/inputs/demo-gpu.yaml", sets=small_inputs(data))
    for stage in ("chunk", "precompute", "align", "train", "eval"):
        fusionx(stage, "configs/demo-gpu.yaml", sets=small_run(data, runs))
    results = json.loads((runs / "report" / "results.json").read_text())
    assert {"target", "ct", "fusellm", "paper", "fusionx"} <= set(results["methods"])
    again = fusionx("run", "configs/demo-gpu.yaml", sets=small_run(data, runs))
    assert "complete: 0 parts made" in again
    assert not [line for line in again.splitlines() if "complete:" in line and ": 0 parts made" not in line]
