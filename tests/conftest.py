"""Fixtures that several stages' tests share: tiny tokenizers, tiny random models, and the root of the checkout."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from browser import Browser, missing, started
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "HF_ASSETS_CACHE" not in os.environ:  # the user's own is left alone; xdist's workers share this one
    _assets = TemporaryDirectory(prefix="fusionx-assets-")
    os.environ["HF_ASSETS_CACHE"] = _assets.name
# Several processes share few cores, and their models are tiny: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in the background, and what the tests start would be deaf to Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What the fork server starts finds these imports done; they take longer than a test's training.
multiprocessing.set_forkserver_preload(
    ["fusionx.train.loop.trainer", "fusionx.pipelines.pipeline", "transformers.models.llama.modeling_llama"]
)

settings.register_profile("fusionx", deadline=None)  # machines are busy, and no test is timed
settings.load_profile("fusionx")

ROOT = Path(__file__).resolve().parent.parent

SAMPLE = [
    "The quick brown fox jumps over the lazy dog. It is a fine day, and the sun is shining on the hills.",
    "def add(left, right):\n    return left + right\n\nprint(add(1, 2))\n",
    "naïve café, Straße, 你好世界, привет мир, 12345 67890",
    "True and False or not True is\nFalse. The answer is 42.",
] * 4


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sandbox() -> None:
    """For tests that run generated programs. Where a machine gives no namespaces, refusing them is all there is."""
    from fusionx.contract.errors import ConfigError
    from fusionx.eval.code.sandbox import check_sandbox

    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(f"no sandbox on this machine: {error.details['found']}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real one; where a machine has none, or no axe, the tests that look at pages are skipped."""
    if missing():
        pytest.skip(missing())
    with started() as chromium:
        yield chromium


def train_byte_bpe(folder: Path, vocab_size: int, *, bos: bool = False, words: bool = True) -> Path:
    """A byte-level BPE tokenizer of exactly the kind that GPT-2 and GPT-NeoX have, saved as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<eos>"] if bos else ["<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<s>" if bos else "<eos>", pad_token="<eos>"
    )
    fast.save_pretrained(folder)
    return folder


ARCHITECTURES = ("llama", "gpt_neox", "gpt_neo", "gpt_bigcode", "starcoder2")


def tiny_model_config(architecture: str, vocab_size: int, context: int = 128) -> Any:
    """The real architecture at a width of 32 and a depth of 2."""
    import transformers as tr

    sizes: dict[str, Any] = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    wide = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": context}
    inner = {"intermediate_size": 64, "num_hidden_layers": 2}
    if architecture == "llama":
        return tr.LlamaConfig(**sizes, **wide, **inner)
    if architecture == "gpt_neox":
        return tr.GPTNeoXConfig(**sizes, **wide, **inner)
    if architecture == "starcoder2":
        return tr.Starcoder2Config(**sizes, **wide, **inner, num_key_value_heads=1)
    if architecture == "gpt_neo":
        layers = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 16}
        return tr.GPTNeoConfig(**sizes, hidden_size=32, max_position_embeddings=context, **layers)
    assert architecture == "gpt_bigcode"
    return tr.GPTBigCodeConfig(**sizes, n_embd=32, n_layer=2, n_head=2, n_positions=context)


def save_tiny_model(folder: Path, architecture: str, tokenizer_size: int, *, seed: int = 0, **options: Any) -> Path:
    """Random weights with a spread that gives peaked distributions, and a tokenizer beside them."""
    import torch
    from transformers import AutoModelForCausalLM

    context, padding = options.pop("context", 128), options.pop("padding", 0)
    train_byte_bpe(folder, tokenizer_size, **options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_model_config(architecture, tokenizer_size + padding, context))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def architectures() -> tuple[str, ...]:
    return ARCHITECTURES


@pytest.fixture(scope="session")
def make_tokenizer() -> Any:
    """`train_byte_bpe(folder, vocab_size, bos=..., words=...)`."""
    return train_byte_bpe


@pytest.fixture(scope="session")
def make_model() -> Any:
    """`save_tiny_model(folder, architecture, tokenizer_size, seed=..., context=..., padding=..., bos=...)`."""
    return save_tiny_model


ARC = [
    {
        "question": f"Which of the animals number {number} jumps over the lazy dog?",
        "choices": {"label": ["A", "B", "C", "D"], "text": ["quick fox", "a stone", "the hills", "the shining sun"]},
        "answerKey": "ABCD"[number % 4],
    }
    for number in range(12)
]
# Split and rows, with the fields of the hub's data sets, as far as the harness reads them.
COMMONSENSE = {
    "arc_easy": ("test", ARC),
    "arc_challenge": ("test", ARC[:4]),
    "boolq": ("validation", [{"passage": "The sun is shining.", "question": "is it a fine day", "label": 1}] * 3),
    "hellaswag": (
        "validation",
        [
            {
                "activity_label": "Jumping",
                "ctx_a": "A fox is seen.",
                "ctx_b": "the fox",
                "endings": ["jumps.", "adds left and right.", "[title] prints.", "is a hill."],
                "label": "0",
            }
        ]
        * 3,
    ),
    "openbookqa": (
        "test",
        [
            {
                "question_stem": "The sun is",
                "choices": {"label": ["A", "B", "C", "D"], "text": ["shining", "lazy", "a fox", "a dog"]},
                "answerKey": "A",
            }
        ]
        * 3,
    ),
    "winogrande": (
        "validation",
        [{"sentence": "The fox beat the dog as _ was quick.", "option1": "fox", "option2": "dog", "answer": "1"}] * 3,
    ),
}


@pytest.fixture(scope="session")
def commonsense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `eval.harness.data` with small files of the benchmark `cs`; what they become is cached in tmp."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("datasets"))
    folder = tmp_path_factory.mktemp("commonsense")
    for name, (split, rows) in COMMONSENSE.items():
        path = folder / "cs" / name / f"{split}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
