"""Precompute against a bare forward pass of the same model over the same batches, and against the reference's way.

Ours is the whole of what a worker does with its units: reading, tokenizing, forward pass, statistics, encoding,
writing. The reference pads every text to the block, brings the whole fp16 logits to the host and takes the top k there.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from fusionx.benchmarks.measuring.figure import Figure, interleaved_seconds
from fusionx.benchmarks.measuring.memory import peak_of_a_process, resident
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.stage import Unit
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.contract.tokens.encoding import Encoding
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.corpus.documents import read_corpus
from fusionx.precompute.logits.batches import UnitTokens
from fusionx.precompute.logits.logits_stage import LogitsStage, LogitsWorker
from fusionx.precompute.logits.source_model import load_model, split_model
from fusionx.precompute.logits.top_k import top_k_statistics

K = 32
_REFERENCE_ROWS = 4
"""Texts that the reference has in one batch, at most."""
_MEDIAN_SHARE = 0.17
"""Of MiniPile's documents half are shorter than this share of a block of 2048: about 350 tokens."""
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12}
"""Dense bf16, by a part of the card's name."""


@dataclass(frozen=True)
class Case:
    """A Llama with random weights, and how many tokens of text it is given; those of a GPU run where there is one."""

    name: str
    width: int
    layers: int
    heads: int
    inner: int
    tokens: int
    device: Literal["cpu", "cuda"] = "cpu"


CASES = (
    Case("minipile 30M", 384, 8, 6, 1024, tokens=10_000),
    Case("minipile 160M", 768, 12, 12, 3072, tokens=3_000),
    Case("gpu 160M", 768, 12, 12, 3072, tokens=600_000, device="cuda"),
    Case("gpu 7B", 4096, 32, 32, 11008, tokens=600_000, device="cuda"),
)
VOCAB = 32_000
MEMORY_VOCABS = (32_000, 128_000)
DEMO_CHARACTERS = 60_000
REAL_CHARACTERS = 8_000


def figures(
    data: str = "data/demo",
    demo_characters: int = DEMO_CHARACTERS,
    real: str = "data/real",
    real_characters: int = REAL_CHARACTERS,
    cases: Sequence[Case] = CASES,
    vocab: int = VOCAB,
    source_files: int | None = None,
    memory_vocabs: Sequence[int] = MEMORY_VOCABS,
    threads: int = 1,
) -> Iterator[Figure]:
    """The cases that this machine has what it takes for: models of the demo and of the real run, a GPU.

    So many `threads` where there is no GPU.

    The random models' text, and their tokenizer, come from so many `source_files` of the standard library, or all.
    """
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        if Path(data, "models", "target").is_dir():
            yield from _demo(Path(data), demo_characters, Path(folder) / "demo")
        for path in sorted(Path(real, "models").glob("*/")):
            yield from _real(path, Path(real, "sample"), real_characters, Path(folder) / path.name)
        texts = source_texts(source_files)
        tokenizer = train_tokenizer(Path(folder) / "tokenizer", vocab, texts)
        for case in cases:
            if case.device == "cpu" or torch.cuda.is_available():
                yield from _random_llama(case, vocab, tokenizer, texts, Path(folder) / case.name.replace(" ", "-"))
        for size in memory_vocabs:
            yield from _memory(size)


@dataclass(frozen=True)
class Contest:
    """One model over some units, in every way that is compared."""

    worker: LogitsWorker
    model: Any
    units: list[Unit]
    block_size: int

    def encodings(self) -> Iterator[list[Encoding]]:
        """Every text's tokens, unit by unit."""
        for unit in self.units:
            texts = read_part(unit.inputs["chunks"], "chunks")[0].column("text").to_pylist()
            yield self.worker.encoder.encode(texts)

    def ours(self) -> None:
        with ThreadPoolExecutor(self.worker.stage.resources.concurrency) as threads:
            list(threads.map(self.worker, self.units))

    def batches(self) -> list[torch.Tensor]:
        """The very batches that our worker forms."""
        plans = (self.worker.plan(UnitTokens.of(encodings)) for encodings in self.encodings())
        return [ids for plan in plans for ids, _ in plan.batches()]

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


def race(case: str, contests: list[Contest], n: int, share: int | None, bench: str = "precompute") -> Iterator[Figure]:
    """Tokens per second of every way. The reference, where it takes part, runs over every `share`-th text only, for it
    takes long."""
    rows = [
        [torch.from_numpy(encoding.ids.astype(np.int64)) for unit in contest.encodings() for encoding in unit]
        for contest in contests
    ]
    batches = [contest.batches() for contest in contests]
    some = [texts[:: share or 1] for texts in rows]
    tokens = {name: sum(len(row) for texts in rows for row in texts) for name in ("ours", "bare", "trunk")}
    tokens["reference"] = sum(len(row) for texts in some for row in texts)

    def each(work: Callable[[Contest, int], None]) -> Callable[[], object]:
        return lambda: [work(contest, number) for number, contest in enumerate(contests)]  # type: ignore[func-returns-value]

    works = {
        "ours": each(lambda contest, _: contest.ours()),
        "bare": each(lambda contest, number: contest.bare(batches[number], contest.model)),
        "trunk": each(lambda contest, number: contest.bare(batches[number], contest.model.base_model)),
        "reference": each(lambda contest, number: contest.reference(some[number])),
    }
    if share is None:
        del works["reference"]
    seconds = interleaved_seconds(works, n)
    speed = {name: tokens[name] / seconds[name] for name in works}
    padding = 1 - tokens["ours"] / sum(ids.numel() for made in batches for ids in made)
    yield Figure(bench, case, "tokens_per_s", speed["ours"], "tokens/s", n=n)
    for name, against in (
        ("bare", "a bare forward pass"),
        ("trunk", "a forward pass without the head"),
        ("reference", "full padding, whole logits to the host"),
    ):
        if name not in works:
            continue
        ratio = speed["ours"] / speed[name]
        yield Figure(bench, case, f"{name}_tokens_per_s", speed[name], "tokens/s", n=n)
        yield Figure(bench, case, f"ratio_to_{name}", ratio, "x", against, ratio, n)
    yield Figure(bench, case, "padding", padding, "of the tokens computed", n=n)
    peak = _peak_flops()
    if contests[0].worker.source.device.type == "cuda" and peak is not None:
        flops = np.mean([_flops(contest.model, texts) for contest, texts in zip(contests, rows, strict=True)])
        for name in ("ours", "bare"):
            metric = "mfu" if name == "ours" else "bare_mfu"
            yield Figure(bench, case, metric, speed[name] * float(flops) / peak, "of peak", n=n)


def _demo(data: Path, characters: int, folder: Path) -> Iterator[Figure]:
    """The demo's four models over the demo's text in pieces as long, in shares of the block, as MiniPile's."""
    names = sorted(path.name for path in (data / "models").iterdir() if path.is_dir())
    models = [ModelConfig(id=name, path=str(data / "models" / name)) for name in names]
    _chunk_pieces(data / "corpus", characters, 2.2, ChunkConfig(block_size=256, part_bytes=20_000), models, folder)
    contests = []
    for config in models:
        stage = _stage(config, folder, batch_tokens=4096)
        model = load_model(config, torch.device("cpu"))
        contests.append(_made(stage, model, 256))
    yield from race("demo", contests, n=3, share=4)


def _real(path: Path, text: Path, characters: int, folder: Path) -> Iterator[Figure]:
    """A pretrained model as configs/real.yaml runs it, over its text in pieces as long as MiniPile's."""
    config = ModelConfig(id=path.name, path=str(path))
    _chunk_pieces(text, characters, 3.3, ChunkConfig(block_size=512, part_bytes=20_000), [config], folder)
    stage = _stage(config, folder, batch_tokens=2048)
    yield from race(f"real {path.name}", [_made(stage, load_model(config, torch.device("cpu")), 512)], n=2, share=None)


def _chunk_pieces(
    text: Path, characters: int, per_token: float, config: ChunkConfig, models: list[ModelConfig], folder: Path
) -> None:
    """Pieces of the training text as long, in shares of the block, as MiniPile's, at so many characters per token."""
    texts = [document.text for document in read_corpus(CorpusConfig(path=str(text), splits=["train"]))]
    folder.mkdir()
    pieces = folder / "corpus.jsonl"
    _write_texts(pieces, "".join(texts), characters, _MEDIAN_SHARE * config.block_size * per_token)
    _chunk(CorpusConfig(path=str(pieces), splits=["train"]), config, models, folder)


def _random_llama(case: Case, vocab: int, tokenizer: Path, texts: list[str], folder: Path) -> Iterator[Figure]:
    """Random weights, made on the device, over texts as long as MiniPile's."""
    share = 16 if case.device == "cuda" else 6
    contest = random_contest(case, vocab, tokenizer, texts, folder)
    yield from race(case.name, [contest], n=3 if case.device == "cuda" else 2, share=share)


def random_contest(case: Case, vocab: int, tokenizer: Path, texts: list[str], folder: Path) -> Contest:
    """`vocab` is the model's: its head may have more places than the tokenizer has ids."""
    from transformers import AutoModelForCausalLM

    cuda = case.device == "cuda"
    folder.mkdir()
    _write_texts(folder / "corpus.jsonl", "".join(texts), int(3.7 * case.tokens), _MEDIAN_SHARE * 2048 * 3.7)
    models = [ModelConfig(id="llama", path=str(tokenizer), dtype="bfloat16" if cuda else "float32")]
    parts = ChunkConfig(block_size=2048, part_bytes=1_000_000 if cuda else 20_000)
    _chunk(CorpusConfig(path=str(folder / "corpus.jsonl"), splits=["train"]), parts, models, folder)
    config = random_llama(case.width, case.layers, case.heads, case.inner, vocab)
    config.save_pretrained(tokenizer)
    with torch.device(case.device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32).eval()
    return _made(_stage(models[0], folder, device=case.device), model, 2048)


def _memory(vocab: int) -> Iterator[Figure]:
    """Peak resident memory over that of the loaded model, for 8192 positions."""
    ours, whole = (peak_of_a_process(__name__, "peak_megabytes", vocab, parted) for parted in (True, False))
    yield Figure("precompute", f"8192 x {vocab // 1000}k", "peak_memory", ours, "MB", "whole logits", ours / whole)


@torch.inference_mode()
def peak_megabytes(vocab: int, parted: bool) -> float:
    """Of one forward pass, over that of the loaded model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(random_llama(64, 1, 1, 64, vocab)).eval()
    source = split_model("llama", model, vocab)
    ids = torch.arange(8192).view(8, 1024) % vocab
    labels = torch.zeros(1 << 13, dtype=torch.long)
    before = resident("VmRSS")
    if parted:
        for logits in source.logits([(ids, torch.arange(8192))]):
            top_k_statistics(logits, labels[: len(logits)], K, vocab)
    else:
        model(input_ids=ids, use_cache=False)
    return resident("VmHWM") - before


def _chunk(corpus: CorpusConfig, config: ChunkConfig, models: list[ModelConfig], folder: Path) -> None:
    stage = ChunkStage(corpus, config, models, str(folder / "chunks"))
    worker, units = stage.worker(), list(stage.units())
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    write_manifest(stage.output, build_manifest("chunks", provenance.config, provenance.identity, entries))


def _stage(
    model: ModelConfig, folder: Path, batch_tokens: int = 16384, device: Literal["cpu", "cuda"] = "cpu"
) -> LogitsStage:
    config = PrecomputeConfig(k=K, batch_tokens=batch_tokens, device=device, threads=torch.get_num_threads())
    return LogitsStage(model, config, str(folder / "chunks"), str(folder / "logits" / model.id))


def _made(stage: LogitsStage, model: Any, block_size: int) -> Contest:
    encoder = load_encoder(stage.model.path)
    worker = LogitsWorker(stage, encoder, split_model(stage.model.id, model, encoder.vocab_size), None)
    return Contest(worker, model, list(stage.units()), block_size)


def random_llama(width: int, layers: int, heads: int, inner: int, vocab: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=2048,
    )


def source_texts(files: int | None) -> list[str]:
    """The standard library's sources, or the first `files` of them: text in plenty on every machine."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    sources = [path for path in paths if "site-packages" not in path.parts]
    return [path.read_text(encoding="utf-8", errors="ignore") for path in sources[:files]]


def train_tokenizer(folder: Path, vocab_size: int, texts: list[str]) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
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
