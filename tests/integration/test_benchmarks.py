"""Every benchmark on data so small that its figures mean nothing: it runs, and prints what readers of it expect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import in_a_fork

from fusionx.benchmarks import BENCHMARKS, fusion, train
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.random_shards import Shape
from fusionx.benchmarks.measuring.run import run_benchmark

KEYS = ["bench", "case", "metric", "value", "unit", "against", "ratio", "n"]
TEXT = "def f_{i}(x):\n    return x + {i}\n\nThe {i}th fox jumps over the lazy dog, and café number {i} is open.\n"


@dataclass(frozen=True)
class Tiny:
    """The folder that a benchmark runs in, which holds a `data/demo` of its own, and how to change its constants."""

    folder: Path
    patch: pytest.MonkeyPatch
    make_tokenizer: Callable[..., Path]

    def tokenizer(self, size: int) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.make_tokenizer(self.folder / f"tokenizer-{size}", size))


def small_chunk(tiny: Tiny) -> dict[str, Any]:
    tokenizers = {str(size): partial(tiny.tokenizer, size) for size in (300, 400)}
    return {"text_mb": 0.2, "reference_mb": 0.02, "rounds": 1, "tokenizers": tokenizers}


def small_precompute(tiny: Tiny) -> dict[str, Any]:
    from fusionx.benchmarks.precompute import Case

    demo, real = Path("data/demo").absolute(), tiny.folder / "real"
    (real / "models").mkdir(parents=True)
    (real / "models" / "qwen").symlink_to(demo / "models" / "target")
    (real / "sample").symlink_to(demo / "corpus")
    cases = [Case("tiny", 16, 1, 2, 32, tokens=1_000), Case("gpu 7B", 16, 1, 2, 32, tokens=1_000, device="cuda")]
    sizes = {"demo_characters": 3_000, "real_characters": 3_000, "vocab": 400, "source_files": 20}
    return {**sizes, "real": str(real), "cases": cases, "memory_vocabs": []}


def small_codec(tiny: Tiny) -> dict[str, Any]:
    return {"ranks": [4]}


def small_map(tiny: Tiny) -> dict[str, Any]:
    """Its real tokenizers hold some 300,000 tokens together; the sample is taken of those without an equal."""
    sizes = {"byte_bpe_50k": 350, "mistral_32k": 300, "llama_128k": 340, "tekken_131k": 310}
    sizes |= {"gemma_262k": 360, "smollm2_49k": 320}
    for name, size in sizes.items():
        tiny.patch.setattr(f"fusionx.benchmarks.map.{name}", lambda size=size: tiny.tokenizer(size))
    tiny.patch.setattr("fusionx.benchmarks.map.SAMPLE", 2)
    return {}


def small_align(tiny: Tiny) -> dict[str, Any]:
    tiny.patch.setattr("fusionx.benchmarks.align.RANKS", (4,))
    tiny.patch.setattr("fusionx.benchmarks.align.LONG", 300)
    return {}


SMALL: dict[str, Callable[[Tiny], dict[str, Any]]] = {
    "chunk": small_chunk,
    "precompute": small_precompute,
    "codec": small_codec,
    "map": small_map,
    "align": small_align,
    "collate": lambda tiny: {"ranks": [4], "parts": 2, "rows": 3},
    "fusion": lambda tiny: {"cases": [fusion.Case(512, 8, 2, 4)], "n": 1},
    "train": lambda tiny: {"cases": [train.Case("tiny", (8, 1, 1, 8), Shape(32, 2, 600, 4), 2)], "n": 1},
}
"""By benchmark: the parameters of its `figures` that make it small, or constants of its module where it has none."""

NOT_SMALL = {"fidelity": "trains models under real tokenizers of 32,000 and 128,000 tokens"}
"""Why a benchmark has no small run."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    """A folder whose `data/demo` has random models of two tokenizers and a corpus of a few documents."""
    root = tmp_path_factory.mktemp("benchmarks")
    models = {"target": ("llama", 320, True), "coder": ("gpt_neox", 300, False)}
    for seed, (name, (architecture, size, bos)) in enumerate(models.items()):
        make_model(root / "data/demo/models" / name, architecture, size, seed=seed, bos=bos, context=256)
    (root / "data/demo/corpus").mkdir()
    documents = [{"text": TEXT.format(i=number) * 6, "domain": "code"} for number in range(12)]
    for split, rows in {"train": documents, "validation": documents[:2]}.items():
        pq.write_table(pa.Table.from_pylist(rows), root / f"data/demo/corpus/{split}.parquet")
    return root


@pytest.fixture
def tiny(
    demo: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer: Any
) -> Iterator[Tiny]:
    import torch

    monkeypatch.chdir(demo)
    for module in (fusion, train):  # processes of their own all the same
        monkeypatch.setattr(module, "peak_of_a_process", forked_peak)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # back to what it was, whatever a benchmark sets
    threads = torch.get_num_threads()
    yield Tiny(tmp_path, monkeypatch, make_tokenizer)
    torch.set_num_threads(threads)


def forked_peak(module: str, function: str, *arguments: Any) -> float:
    return in_a_fork(getattr(import_module(module), function), *arguments)


def test_every_benchmark_has_a_small_run_or_a_reason_against_it() -> None:
    assert sorted([*SMALL, *NOT_SMALL]) == sorted(BENCHMARKS), "add it to SMALL, or to NOT_SMALL with the reason"


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_lines_that_say_what_was_measured_against_what(name: str, tiny: Tiny) -> None:
    figures = list(run_benchmark(name, str(tiny.folder), **SMALL[name](tiny)))
    machine, *lines = (tiny.folder / f"{name}.jsonl").read_text().splitlines()
    assert list(strict(machine)) == ["machine"]
    assert [strict(line) for line in lines] == [figure.to_json() for figure in figures]
    assert lines
    for line in lines:
        check(strict(line), name)
    measured = [(figure.case, figure.metric) for figure in figures]
    assert len(set(measured)) == len(measured), "two figures of one name"


def test_the_benchmark_of_a_card_runs_without_one_and_says_so(tiny: Tiny) -> None:
    """Its figures are added to those of other cards."""
    file = tiny.folder / "gpu.jsonl"
    file.write_text('{"bench": "gpu"}\n')
    figures = list(run_benchmark("gpu", str(tiny.folder)))
    _, *lines = map(strict, file.read_text().splitlines())
    assert len(lines) == len(figures)
    for line in lines:
        check({key: line[key] for key in KEYS}, "gpu")
        assert list(line) == [*KEYS, "card", "versions", "date"]
        assert line["card"].startswith("none (CPU, sizes turned down)")
    cases = {(line["case"], line["metric"]) for line in lines}
    assert len(cases) == len(lines)
    assert {metric for _, metric in cases} >= {"ratio_to_bare", "distinct_shapes", "cores_per_gpu", "efficiency"}


@pytest.mark.slow
def test_peak_memory_is_taken_in_processes_of_their_own(tiny: Tiny) -> None:
    """Apart from the others, for it starts two that import torch."""
    sizes: dict[str, Any] = {"data": "none", "cases": [], "vocab": 300, "source_files": 1, "memory_vocabs": [8_000]}
    (figure,) = run_benchmark("precompute", **sizes)
    check(figure.to_json(), "precompute")
    assert (figure.case, figure.metric) == ("8192 x 8k", "peak_memory")
    assert figure.ratio is not None
    assert figure.ratio < 0.7, "ours never holds whole logits"


def check(line: dict[str, Any], name: str) -> None:
    assert list(line) == KEYS
    assert line["bench"] == name
    assert all(isinstance(line[key], str) and line[key] for key in ("case", "metric", "unit")), line
    assert is_number(line["value"]), line
    assert (line["against"] is None) == (line["ratio"] is None), line
    assert line["against"] is None or (isinstance(line["against"], str) and is_number(line["ratio"])), line
    assert isinstance(line["n"], int), line
    assert line["n"] >= 1, line


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def strict(line: str) -> dict[str, Any]:
    """The object of a line; NaN and Infinity, which no JSON has, are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {line}")

    return json.loads(line, parse_constant=refuse)


def test_a_small_figure_does_not_become_zero() -> None:
    figure = Figure("codec", "k10", "kl", 1.25e-9, "nats", "arrow", 3e-8)
    assert (figure.to_json()["value"], figure.to_json()["ratio"]) == (1.25e-9, 3e-8)
