"""Three tokenizers with the chat templates of three families, and conversations for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizer_builder import CORPUS, byte_level_bpe, sentencepiece_bpe, wrapped
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}{{ raise_exception('Unknown role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN = "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
"""Without any special token: what follows an answer may be one token with its end."""

TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA, "plain": PLAIN}
MARKS = {"chatml": ["<|im_start|>", "<|im_end|>"], "gemma": ["<start_of_turn>", "<end_of_turn>"]}
ENDS = {"chatml": "<|im_end|>", "llama2": "</s>", "gemma": "<end_of_turn>", "plain": None}
SYSTEM = {"chatml", "llama2", "plain"}
"""Templates that write system messages."""

TURNS = [
    ("Who jumps over the lazy dog?", "The quick brown fox jumps over the lazy dog."),
    ("And then?", "naïve café, 你好世界 😀"),
    ("Add two numbers.", "def add(a, b):\n    return a + b"),
]


def chat_tokenizer(family: str) -> Any:
    """A small tokenizer as the family has it, with the family's template."""
    if family == "llama2":
        tokenizer = sentencepiece_bpe()
    elif family == "gemma":
        tokenizer = _without_dummy_prefix()
    else:
        tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS.get(family, [])})
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def save_chat_model(folder: Path, family: str, architecture: str, seed: int = 0, context: int = 256) -> Path:
    """Random weights with a spread that gives peaked distributions, and the family's tokenizer beside them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = chat_tokenizer(family)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=0,
        **sizes,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def conversation(turns: list[tuple[str, str]], system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _without_dummy_prefix() -> Any:
    """As Gemma's: spaces become marks, byte fallback, no space put in front."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=60))
    model = json.loads(trained.to_str())["model"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")
