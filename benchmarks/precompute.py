"""Precompute against a bare forward pass of the same model over the same batches, and against the reference's way.

Ours is the whole of what a worker does with its units: reading, tokenizing, forward pass, statistics, encoding,
writing. The reference pads every text to the block, brings the whole fp16 logits to the host and takes the top k there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.figure import Figure, interleaved_seconds
from contract.encoder import load_encoder
from contract.manifest import build_manifest, write_manifest
from contract.shard import read_part
from contract.stage import Unit
from precompute.chunk_stage import ChunkStage
from precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from precompute.corpus import read_corpus
from precompute.logits_stage import LogitsStage, LogitsWorker, batches_by_length
from precompute.model import load_model, split_model
from precompute.top_k import top_k_statistics

K = 32
_REFERENCE_ROWS = 4
"""Texts that the reference has in one batch, at most."""
_MEDIAN_SHARE = 0.17
"""Of MiniPile's documents half are shorter than this share of a block of 2048: about 350 tokens."""
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12}
"""Dense bf16, by a part of the card's name."""


def figures() -> Iterator[Figure]:
    """The cases that this machine has what it takes for (the demo's models, a GPU); one core where there is no GPU."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        if Path("data/demo/models/target").is_dir():
            yield from _demo(Path(folder) / "demo")
        tokenizer = _train_tokenizer(Path(folder) / "tokenizer", 32_000)
        for case, shape, size in (
            ("minipile 30M", _llama(384, 8, 6, 1024), 10_000),
            ("minipile 160M", _llama(768, 12, 12, 3072), 3_000),
        ):
            place = Path(folder) / case.replace(" ", "-")
            yield from _random_llama(case, shape, tokenizer, place, size, torch.device("cpu"))
        yield from _memory()
        if torch.cuda.is_available():
            gpu = torch.device("cuda")
            shapes = {"gpu 160M": _llama(768, 12, 12, 3072), "gpu 7B": _llama(4096, 32, 32, 11008)}
            for case, shape in shapes.items():
                yield from _random_llama(case, shape, tokenizer, Path(folder) / case.replace(" ", "-"), 600_000, gpu)


@dataclass(frozen=True)
class _Contest:
    """One model over some units, in every way that is compared."""

    worker: LogitsWorker
    model: Any
    units: list[Unit]
    block_size: int

    def rows(self) -> Iterator[list[torch.Tensor]]:
        """The token ids of every text, unit by unit."""
        for unit in self.units:
            texts = read_part(unit.inputs["chunks"], "chunks")[0].column("text").to_pylist()
            yield [torch.from_numpy(e.ids.astype(np.int64)) for e in self.worker.encoder.encode(texts)]

    def ours(self) -> None:
        with ThreadPoolExecutor(self.worker.stage.resources.concurrency) as threads:
            list(threads.map(self.worker, self.units))

    def batches(self) -> list[torch.Tensor]:
        """The very batches that our worker forms."""
        budget = self.worker.stage.config.batch_tokens
        return [
            pad_sequence([unit[row] for row in batch], batch_first=True)
            for unit in self.rows()
            for batch in batches_by_length([len(row) for row in unit], budget)
        ]

    @torch.inference_mode()
    def bare(self, batches: list[torch.Tensor], forward: Callable[..., Any]) -> None:
        for ids in batches:
            ids = ids.to(self.worker.source.device)
            forward(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        _finish(self.worker.source.device)

    @torch.inference_mode()
    def reference(self, rows: list[torch.Tensor]) -> None:
        device = self.worker.source.device
        for start in range(0, len(rows), _REFERENCE_ROWS):
            together = rows[start : start + _REFERENCE_ROWS]
            ids = torch.zeros((len(together), self.block_size), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(together):
                ids[number, : len(row)], mask[number, : len(row)] = row, 1
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            for row_logits in logits.to(torch.float16).cpu():
                torch.topk(row_logits.float(), K, dim=-1)


def _contest(case: str, contests: list[_Contest], n: int, share: int) -> Iterator[Figure]:
    """Tokens per second of every way. The reference runs over every `share`-th text only, for it takes long."""
    rows = [[row for unit in contest.rows() for row in unit] for contest in contests]
    batches = [contest.batches() for contest in contests]
    some = [texts[::share] for texts in rows]
    tokens = {name: sum(len(row) for texts in rows for row in texts) for name in ("ours", "bare", "trunk")}
    tokens["reference"] = sum(len(row) for texts in some for row in texts)

    def each(work: Callable[[_Contest, int], None]) -> Callable[[], object]:
        return lambda: [work(contest, number) for number, contest in enumerate(contests)]  # type: ignore[func-returns-value]

    works = {
        "ours": each(lambda contest, _: contest.ours()),
        "bare": each(lambda contest, number: contest.bare(batches[number], contest.model)),
        "trunk": each(lambda contest, number: contest.bare(batches[number], contest.model.base_model)),
        "reference": each(lambda contest, number: contest.reference(some[number])),
    }
    seconds = interleaved_seconds(works, n)
    speed = {name: tokens[name] / seconds[name] for name in works}
    padding = 1 - tokens["ours"] / sum(ids.numel() for made in batches for ids in made)
    yield Figure("precompute", case, "tokens_per_s", speed["ours"], "tokens/s", n=n)
    for name, against in (
        ("bare", "a bare forward pass"),
        ("trunk", "a forward pass without the head"),
        ("reference", "full padding, whole logits to the host"),
    ):
        ratio = speed["ours"] / speed[name]
        yield Figure("precompute", case, f"{name}_tokens_per_s", speed[name], "tokens/s", n=n)
        yield Figure("precompute", case, f"ratio_to_{name}", ratio, "x", against, ratio, n)
    yield Figure("precompute", case, "padding", padding, "of the tokens computed", n=n)
    peak = _peak_flops()
    if contests[0].worker.source.device.type == "cuda" and peak is not None:
        flops = np.mean([_flops(contest.model, texts) for contest, texts in zip(contests, rows, strict=True)])
        for name in ("ours", "bare"):
            metric = "mfu" if name == "ours" else "bare_mfu"
            yield Figure("precompute", case, metric, speed[name] * float(flops) / peak, "of peak", n=n)


def _demo(folder: Path) -> Iterator[Figure]:
    """The demo's four models over the demo's text in pieces as long, in shares of the block, as MiniPile's."""
    names = sorted(path.name for path in Path("data/demo/models").iterdir() if path.is_dir())
    models = [ModelConfig(id=name, path=f"data/demo/models/{name}") for name in names]
    texts = [document.text for document in read_corpus(CorpusConfig(path="data/demo/corpus", splits=["train"]))]
    folder.mkdir()
    _write_texts(folder / "corpus.jsonl", "".join(texts), 60_000, _MEDIAN_SHARE * 256 * 2.2)
    corpus = CorpusConfig(path=str(folder / "corpus.jsonl"), splits=["train"])
    _chunk(corpus, ChunkConfig(block_size=256, part_bytes=20_000), models, folder)
    contests = []
    for config in models:
        stage = _stage(config, folder, batch_tokens=4096)
        model = load_model(config, torch.device("cpu"))
        contests.append(_made(stage, model, 256))
    yield from _contest("demo", contests, n=3, share=4)


def _random_llama(
    case: str, config: Any, tokenizer: Path, folder: Path, tokens: int, device: torch.device
) -> Iterator[Figure]:
    """Random weights, made on the device, over texts as long as MiniPile's."""
    from transformers import AutoModelForCausalLM

    cuda = device.type == "cuda"
    folder.mkdir()
    text = "".join(_source_text())
    _write_texts(folder / "corpus.jsonl", text, int(3.7 * tokens), _MEDIAN_SHARE * 2048 * 3.7)
    models = [ModelConfig(id="llama", path=str(tokenizer), dtype="bfloat16" if cuda else "float32")]
    parts = ChunkConfig(block_size=2048, part_bytes=1_000_000 if cuda else 20_000)
    _chunk(CorpusConfig(path=str(folder / "corpus.jsonl"), splits=["train"]), parts, models, folder)
    config.save_pretrained(tokenizer)
    with device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32).eval()
    contest = _made(_stage(models[0], folder), model, 2048)
    yield from _contest(case, [contest], n=3 if cuda else 2, share=16 if cuda else 6)


def _memory() -> Iterator[Figure]:
    """Peak resident memory over that of the loaded model, for 8192 positions and two sizes of the vocabulary."""
    for vocab in (32_000, 128_000):
        ours, whole = (_peak_of_a_process(vocab, parted) for parted in (True, False))
        case = f"8192 x {vocab // 1000}k"
        yield Figure("precompute", case, "peak_memory", ours, "MB", "whole logits", ours / whole)


def _peak_of_a_process(vocab: int, parted: bool) -> float:
    """`_peak_megabytes` in a process of its own, since a peak never falls."""
    script = f"from benchmarks.precompute import _peak_megabytes; print(_peak_megabytes({vocab}, {parted}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


@torch.inference_mode()
def _peak_megabytes(vocab: int, parted: bool) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(_llama(64, 1, 1, 64, vocab)).eval()
    source = split_model("llama", model, vocab)
    ids = torch.arange(8192).view(8, 1024) % vocab
    labels = torch.zeros(1 << 13, dtype=torch.long)
    before = _resident("VmRSS")
    if parted:
        for logits in source.logits(ids, torch.arange(8192)):
            top_k_statistics(logits, labels[: len(logits)], K, vocab)
    else:
        model(input_ids=ids, use_cache=False)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Megabytes now (VmRSS) or at most so far (VmHWM). Not `getrusage`: its peak begins with the parent process's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024 / 1e6


def _chunk(corpus: CorpusConfig, config: ChunkConfig, models: list[ModelConfig], folder: Path) -> None:
    stage = ChunkStage(corpus, config, models, str(folder / "chunks"))
    worker, units = stage.worker(), list(stage.units())
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    write_manifest(stage.output, build_manifest("chunks", provenance.config, provenance.identity, entries))


def _stage(model: ModelConfig, folder: Path, batch_tokens: int = 16384) -> LogitsStage:
    config = PrecomputeConfig(k=K, batch_tokens=batch_tokens)
    return LogitsStage(model, config, str(folder / "chunks"), str(folder / "logits" / model.id))


def _made(stage: LogitsStage, model: Any, block_size: int) -> _Contest:
    encoder = load_encoder(stage.model.path)
    worker = LogitsWorker(stage, encoder, split_model(stage.model.id, model, encoder.vocab_size), None)
    return _Contest(worker, model, list(stage.units()), block_size)


def _llama(width: int, layers: int, heads: int, inner: int, vocab: int = 32_000) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=2048,
    )


def _source_text() -> Iterator[str]:
    """The standard library's sources: text in plenty on every machine."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def _train_tokenizer(folder: Path, vocab_size: int) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(_source_text(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def _write_texts(path: Path, text: str, characters: int, median: float) -> None:
    """Pieces of `text`, log-normal in length as MiniPile's documents: a `median`, and a long tail beyond it."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < characters:
            length = min(int(rng.lognormal(np.log(median), 1.3)) + 1, len(text) // 2)
            start = int(rng.integers(0, len(text) - length))
            file.write(json.dumps({"text": text[start : start + length]}) + "\n")
            written += length


def _flops(model: Any, rows: list[torch.Tensor]) -> float:
    """Of a forward pass per token: two per weight that is multiplied, and attention to half the text on average."""
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    squares, tokens = (sum(len(row) ** power for row in rows) for power in (2, 1))
    return 2 * weights + 2 * model.config.num_hidden_layers * model.config.hidden_size * squares / tokens


def _peak_flops() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
