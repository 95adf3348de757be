"""Tiny random models of two architectures (with and without BOS) and synthetic but plausible report inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionx.eval.report.inputs import Ensembles
from fusionx.eval.report.pages import MethodRun, ReportInputs, SourceFigures
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.text.perplexity import ChunkScore, aggregate, overall

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Q: True and False is A: False\n",
    "def add(left, right):\n    return left + right\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 漢字かな交じり文 🙂",
] * 4
CONTEXT = 96


def _byte_level_tokenizer(folder: Path, with_bos: bool) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"] if with_bos else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`llama` puts a BOS in front of a text, `gpt2` does not."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 320, "initializer_range": 0.3}
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, **size,
        )
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0, **size)
    )
    folders = {}
    for name, model in (("llama", llama), ("gpt2", gpt2)):
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        _byte_level_tokenizer(folders[name], with_bos=name == "llama")
    return folders


@pytest.fixture(scope="session")
def chunks() -> list[dict[str, Any]]:
    """Held-out records of three domains; some documents have several chunks; lengths differ widely."""
    texts = {
        "english": ["The lazy dog jumps.", "Quick!", "A fox is brown and the dog is lazy. " * 3, "Over"],
        "code": ["def add(a, b):\n    return a + b\n", "x = 1\n", "left = right  # ünïcode"],
        "mixed": ["漢字かな", "🙂 Deich", "großen Sylter"],
    }
    records = [
        {"domain": domain, "doc_id": 10 * position + number // 2, "chunk": number % 2, "text": text}
        for position, (domain, items) in enumerate(texts.items())
        for number, text in enumerate(items)
    ]
    return records[::-1]


TRAIN_DOMAINS = ["books", "code", "news", "recipes", "science", "stories"]
ABSENT_DOMAINS = ["law", "mail", "medicine", "tables"]
SKILLS = ["copying", "counting", "sorting", "translating"]
SOURCES = ["target-gpt2", "neox-code", "llama-science", "phi-stories"]
# Relative change in bits per byte against the start: (corpus domains, absent domains) at the best and the last step.
EFFECTS = {
    "ct": ((-0.12, 0.09), (-0.05, 0.2)),
    "fusellm": ((-0.13, 0.06), (-0.10, 0.11)),
    "paper": ((-0.14, 0.03), (-0.12, 0.06)),
    "fusionx": ((-0.20, -0.045), (-0.19, -0.03)),
}


def make_evaluation(
    name: str, effect: tuple[float, float] = (0.0, 0.0), skill: float = 0.3, seed: int = 0, documents: int = 40
) -> Evaluation:
    """An evaluation whose domains moved by `effect` (corpus, absent) against a common start."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed + 1000)
    chunks, scores = [], []
    for domain in TRAIN_DOMAINS + ABSENT_DOMAINS:
        level = shared.uniform(1.1, 1.9)
        change = effect[domain in ABSENT_DOMAINS] * (1 + 0.4 * own.normal())
        for document in range(documents):
            size = int(shared.integers(300, 900))
            bits = level * (1 + 0.1 * shared.normal()) * (1 + change + 0.01 * own.normal())
            chunks.append({"domain": domain, "doc_id": document, "text": ""})
            scores.append(ChunkScore(size * bits * math.log(2), size // 3, size))
    held_out = aggregate(chunks, scores)
    items = {task: own.binomial(1, skill, 60).tolist() for task in SKILLS}
    return Evaluation(
        model=name,
        weights_digest=name,
        config_digest="c0",
        data_digest="d0",
        domains=held_out.domains,
        overall=overall(held_out.domains),
        documents=held_out.documents,
        items=items,
        continuations=[
            {
                "domain": domain,
                "doc_id": place,
                "prompt": f"It was\nin {domain}",
                "text": " that",
                "written": f" {name}",
            }
            for place, domain in enumerate((TRAIN_DOMAINS[0], ABSENT_DOMAINS[0]))
        ],
        tasks={
            task: {"n": 60, "score": sum(flags) / 60, "stderr": 0.06, "truncated": 0} for task, flags in items.items()
        },
    )


def held_out_of(evaluation: Evaluation) -> dict[str, Any]:
    return {"domains": evaluation.domains, "documents": evaluation.documents}


def _validation_figures(method: str, domain: str, share: float, noise: float) -> dict[str, float]:
    """A curve that falls to the best step and then goes to where the last step ends."""
    best, last = (effects[domain in ABSENT_DOMAINS] for effects in EFFECTS[method])
    curve = best * min(1.0, 2.2 * share) + (last - best) * max(0.0, share - 0.45) / 0.55
    nats = 3.0 + 0.15 * len(domain) + math.log(noise)
    return {"bits_per_byte": nats * (1 + curve) / 3.2 / math.log(2), "perplexity": math.exp(nats * (1 + curve))}


def make_log(method: str, seed: int, steps: int = 400) -> list[dict[str, Any]]:
    """A training log as the trainer writes it."""
    noise = np.random.default_rng(seed * 10 + len(method))
    records: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 20):
        domains = {
            domain: _validation_figures(method, domain, step / steps, 1 + 0.02 * noise.normal())
            for domain in TRAIN_DOMAINS + ABSENT_DOMAINS
        }
        bits = {domain: figures["bits_per_byte"] for domain, figures in domains.items()}
        records.append(
            {
                "event": "validation",
                "step": step,
                "bits_per_byte": sum(bits.values()) / len(bits),
                "trained_bits_per_byte": sum(bits[domain] for domain in TRAIN_DOMAINS) / len(TRAIN_DOMAINS),
                "perplexity": sum(figures["perplexity"] for figures in domains.values()) / len(domains),
                "domains": domains,
            }
        )
    if method in ("paper", "fusionx"):
        for step in range(1, steps + 1, 5):
            pull = (1 - math.exp(-step / 80)) * (1.6 if method == "fusionx" else 0.3)
            raw = np.exp(np.array([1.0, pull, pull * 0.8, pull * 0.7]) + 0.05 * noise.normal(size=4))
            weight = {name: float(value) for name, value in zip(SOURCES, raw / raw.sum(), strict=True)}
            records.append({"event": "step", "step": step, "loss": 3.0, "weight": weight, "selected": weight})
        domains = {}
        for position, domain in enumerate(TRAIN_DOMAINS):
            raw = np.ones(4)
            raw[position % 4] += 5 if method == "fusionx" else 0.8
            domains[domain] = {name: float(v) for name, v in zip(SOURCES, raw / raw.sum(), strict=True)}
        records.append({"event": "selection", "step": steps, "domains": domains})
    return records


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., ReportInputs]:
    """Builds report inputs: `make_inputs(methods=(...), seeds=(...))`."""
    return build_inputs


# Of the target, and of sources that are worse, worse everywhere, and better but for one domain.
ALIGNED_BITS = ([1.3] * 6, [1.2, 1.2, 1.2, 1.2, 1.4, 2.1], [1.5] * 6, [1.1, 1.1, 1.1, 1.1, 1.25, 1.36])


def make_fidelity(bits: list[float], cost: float) -> dict[str, dict[str, float]]:
    """Of every trained domain, and of all together."""
    overall = sum(bits) / len(bits)
    return {
        domain: {
            "own_bits_per_byte": value,
            "aligned_bits_per_byte": value + cost,
            "filled_bits_per_byte": value + cost / 2,
            "cost": cost,
            "hits": 0.41,
            "blind_hits": 0.39,
        }
        for domain, value in zip(("", *TRAIN_DOMAINS), (overall, *bits), strict=True)
    }


def build_inputs(
    methods: tuple[str, ...] = ("ct", "fusellm", "paper", "fusionx"), seeds: tuple[int, ...] = (1, 2, 3), **changes: Any
) -> ReportInputs:
    runs = [
        MethodRun(
            method=method,
            seed=seed,
            best=make_evaluation(f"{method}-{seed}-best", EFFECTS[method][0], 0.36, seed),
            last=make_evaluation(f"{method}-{seed}-last", EFFECTS[method][1], 0.33, seed),
            best_step=180 if method == "ct" else 360,
            steps=400,
            log=make_log(method, seed),
            learning_rate=1e-3,
        )
        for method in methods
        for seed in seeds
    ]
    shares = {"exact": 0.83, "mapped": 0.06, "not_aligned": 0.11}
    fields: dict[str, Any] = {
        "title": "Fusion-X on the offline demo",
        "config": {"name": "demo", "train": {"steps": 400, "note": "a <b> & c"}},
        "provenance": {"config_digest": "0123456789abcdef", "versions": {"torch": "2.13.0", "transformers": "5.2"}},
        "original": make_evaluation("original"),
        "runs": runs,
        "tuning": [
            {
                "method": "ct",
                "learning_rate": 3e-4,
                "best_bits_per_byte": 1.41,
                "last_bits_per_byte": 1.43,
                "best_step": 380,
            },
            {
                "method": "ct",
                "learning_rate": 1e-3,
                "best_bits_per_byte": 1.36,
                "last_bits_per_byte": 1.47,
                "best_step": 180,
            },
        ],
        "train_domains": TRAIN_DOMAINS,
        "absent_domains": ABSENT_DOMAINS,
        "stages": {
            "chunk": {"seconds": 1.3, "parts": 4, "rows": 320, "bytes": 410_000},
            "precompute": {"seconds": 93.0, "parts": 16, "rows": 1280, "tokens": 640_000, "bytes": 81_000_000},
            "train": {"seconds": 4000.0, "tokens": 6_400_000},
        },
        "target": SOURCES[0],
        "alignment": {"walk": dict.fromkeys(SOURCES, shares)},
        "fidelity": {
            method: {
                source: make_fidelity(bits, cost * (1.8 if source.startswith("phi") else 1))
                for source, bits in zip(SOURCES, ALIGNED_BITS, strict=True)
            }
            for method, cost in (("walk", 0.002), ("mined", 0.2), ("exact", 0.13))
        },
        "calibration": {
            method: {
                source: {"aligned": [1.11 - 0.03 * length for length in range(9)] + [None], "own": [1.0] * 10}
                for source in SOURCES
            }
            for method in ("walk", "mined")
        },
        "sources": [
            SourceFigures(
                name, name.split("-")[0], 4_200_000, 4096, make_evaluation(name, (0.02 * i - 0.1, 0.05), seed=i)
            )
            for i, name in enumerate(SOURCES[1:])
        ]
        + [SourceFigures("unevaluated", "mpt", None, None)],
        "ensembles": Ensembles(
            split="validation",
            report_split="test",
            alignment="walk",
            scores={
                "positions": 1000,
                "unaligned": 3,
                "candidates": {
                    name: held_out_of(make_evaluation(name, (0.1 * i, 0.1))) for i, name in enumerate(SOURCES)
                },
                "ensembles": {
                    name: held_out_of(make_evaluation(name, (-0.1 * i, -0.1)))
                    for i, name in enumerate(("uniform", "top1_ppl", "packllm_sim", "fixed_share", "oracle"))
                },
            },
            models={
                "target": [make_evaluation("original")],
                "merged": [make_evaluation("merged", (0.01, 0.02))],
                **{
                    method: [make_evaluation(method, EFFECTS[method][0], seed=seed) for seed in seeds]
                    for method in methods
                },
            },
            teachers={
                method: [{"domains": make_evaluation(method, (-0.2, -0.1), seed=seed).domains} for seed in seeds]
                for method in methods
                if method != "ct"
            },
        ),
    }
    return ReportInputs(**{**fields, **changes})
