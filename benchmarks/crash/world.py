"""Two tiny models, a page of text, and the config of a run over them that has every stage: a few seconds of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_TEXTS = {
    "code": "def f_{i}(x):\n    return x + {i}\n\nprint(f_{i}({i}))\n",
    "prose": "The {i}th fox jumps over the lazy dog, and café number {i} is open. ",
}
_DOCUMENTS = {"train": 8, "validation": 2, "test": 2}
_VOCABULARIES = {"target": 300, "coder": 280}


def make_world(folder: Path, training: dict[str, Any]) -> Path:
    """Writes inputs and config; the config's path. Its output is `out` in the same folder.

    Args:
        training: more fields of `train.run` and `train.optimizer`.
    """
    for seed, (name, size) in enumerate(_VOCABULARIES.items()):
        _save_model(folder / name, size, seed)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (split, count) in enumerate(_DOCUMENTS.items()):
        lines = [
            json.dumps(
                {"text": "".join(text.format(i=100 * number + 10 * row + line) for line in range(8)), "domain": name}
            )
            for name, text in _TEXTS.items()
            for row in range(count)
        ]
        (corpus / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    task = {"examples": [{"input": f"yes {number}", "target": "True"} for number in range(2)]}
    (folder / "tasks").mkdir()
    (folder / "tasks" / "yes.json").write_text(json.dumps(task))
    file = folder / "run.yaml"
    config = _config(folder)
    for part, fields in training.items():
        config["train"][part] |= fields
    file.write_text(yaml.safe_dump(config))
    return file


def _config(folder: Path) -> dict[str, Any]:
    return {
        "name": "crash",
        "output": str(folder / "out"),
        "target": {"id": "target", "path": str(folder / "target")},
        "sources": [{"id": "coder", "path": str(folder / "coder")}],
        "corpus": {"path": str(folder / "corpus"), "domain": "domain"},
        "chunk": {"block_size": 96, "part_bytes": 2500},
        "precompute": {"k": 8, "splits": ["train", "validation"], "batch_tokens": 1024},
        "align": {"methods": ["walk", "mined"]},
        "train": {
            "methods": ["ct", "fusionx-network"],
            "optimizer": {"learning_rate": 0.001, "batch_size": 16, "epochs": 1},
            "run": {"device": "cpu", "threads": 1, "validate_every": 3, "checkpoint_every": 2, "log_every": 1},
            "jobs": 1,
        },
        "eval": {"tasks": [str(folder / "tasks")], "max_new_tokens": 1, "bootstrap": 100, "threads": 1},
        "executor": {"kind": "inline"},
    }


def _save_model(folder: Path, vocab_size: int, seed: int) -> None:
    """A Llama with random weights and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 4 for text in _TEXTS.values()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
