"""Trains the demo's four tokenizers, each built as one of the families in use, and saves them as Hugging Face folders.

All of them are lossless: decoding gives the text back, with every newline, tab and run of spaces. The only exception is
the one every SentencePiece tokenizer has: a literal U+2581, which is its sign for a space, comes back as a space.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fusionx.contract.errors import ConfigError
from fusionx.pipelines.demo.config import DemoModelConfig, TokenizerKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase

SPACE = "\u2581"
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_PRINTABLE = [chr(code) for code in range(33, 127)]
_ALPHABET_LIMIT = 160
_RARE_SCORE = -1000.0
"""Unigram score of byte tokens: so low that a text which spells out `<0x41>` is never taken for one."""

_SENTENCEPIECE_WORDS = rf"{SPACE}+(?={SPACE})|{SPACE}?[^\W{SPACE}_\d]+|{SPACE}?[^\w\s{SPACE}]+|_+|\d|{SPACE}"
"""Where a merge may not reach across: words with their leading space, punctuation, runs of spaces, single digits."""
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SpecialTokens(NamedTuple):
    """The special tokens of a tokenizer by role; None where the family has none."""

    bos: str | None
    eos: str
    pad: str
    unk: str | None

    def distinct(self) -> list[str]:
        """Every special token once, in the order of their ids."""
        return list(dict.fromkeys(token for token in (self.unk, self.bos, self.eos, self.pad) if token is not None))


SPECIAL_TOKENS: dict[TokenizerKind, SpecialTokens] = {
    "sentencepiece_bpe": SpecialTokens(bos="<s>", eos="</s>", pad="</s>", unk="<unk>"),
    "byte_bpe": SpecialTokens(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|padding|>", unk=None),
    "unigram": SpecialTokens(bos=None, eos="</s>", pad="<pad>", unk="<unk>"),
    "regex_byte_bpe": SpecialTokens(
        bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|finetune_right_pad_id|>", unk=None
    ),
}


def sample_of_mix(pools: dict[str, list[str]], mix: dict[str, float], total_bytes: int) -> list[str]:
    """Documents of each domain in proportion to its weight, together about `total_bytes`; none is taken twice."""
    weight = sum(mix.values())
    sample: list[str] = []
    for domain in sorted(mix):
        budget = total_bytes * mix[domain] / weight
        for document in pools[domain]:
            if budget <= 0:
                break
            sample.append(document)
            budget -= len(document.encode())
    return sample


def read_tokenizer(file: str, model: DemoModelConfig) -> Tokenizer:
    """The trained tokenizer in `file`, for this model.

    Raises:
        ConfigError: there is none, or it has another number of tokens than the model.
    """
    from tokenizers import Tokenizer

    field = f"models.{model.id}.tokenizer_file"
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            "A tokenizer file cannot be read.",
            file=file,
            field=field,
            found=str(error),
            expected="a tokenizer.json",
            remedy="correct the path, or leave the field out to have one trained",
        ) from None
    if tokenizer.get_vocab_size() != model.vocab_size:
        raise ConfigError(
            "A tokenizer file does not fit its model.",
            file=file,
            field=field,
            found=f"{tokenizer.get_vocab_size()} tokens",
            expected=f"{model.vocab_size}, the model's vocab_size",
            remedy="change vocab_size, or leave the field out to have one trained",
        )
    return tokenizer


def train_tokenizer(kind: TokenizerKind, texts: list[str], vocab_size: int) -> Tokenizer:
    """Trains a tokenizer of this kind with exactly `vocab_size` tokens, or fewer where the texts give no more.

    The same texts give the same tokenizer. The library's trainers walk through hash maps, so what they leave to chance
    (which of equally frequent characters they keep, the order of equally likely tokens) is decided here.
    """
    trainers: dict[TokenizerKind, Callable[[list[str], int], Tokenizer]] = {
        "sentencepiece_bpe": _sentencepiece_bpe,
        "byte_bpe": _byte_bpe,
        "unigram": _unigram,
        "regex_byte_bpe": _regex_byte_bpe,
    }
    return trainers[kind](texts, vocab_size)


def _sentencepiece_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """As in Llama 2: a space before the text, spaces as U+2581, newlines and rare characters as byte tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import trainers as tokenizer_trainers

    special = SPECIAL_TOKENS["sentencepiece_bpe"]
    fixed = [*special.distinct(), *_BYTE_TOKENS]
    rare = _rare_characters(texts, min(_ALPHABET_LIMIT, vocab_size - len(fixed)))
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Control characters and rare ones stay out of the alphabet, so that they are encoded as byte tokens.
            pre_tokenizers.Split(Regex(rf"[\x00-\x1f\x7f{re.escape(rare)}]+"), "removed"),
            pre_tokenizers.Split(Regex(_SENTENCEPIECE_WORDS), "isolated"),
        ]
    )
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab_size - len(fixed),
        initial_alphabet=[SPACE, *_PRINTABLE],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = [*fixed, *sorted(learned["vocab"], key=learned["vocab"].__getitem__)]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            {token: place for place, token in enumerate(tokens)},
            merges,
            unk_token=special.unk,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokens.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.distinct()])
    return tokenizer


def _unigram(texts: list[str], vocab_size: int) -> Tokenizer:
    """A unigram language model over U+2581-marked words; no space is added, newlines are tokens, rest as bytes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers import trainers as tokenizer_trainers

    special = SPECIAL_TOKENS["unigram"]
    fixed = [*special.distinct(), *_BYTE_TOKENS]
    # The trainer keeps every character it sees as a token; rare ones are left to the byte tokens instead.
    unmarked = str.maketrans(dict.fromkeys(_rare_characters(texts, _ALPHABET_LIMIT), "\n"))
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
            pre_tokenizers.Split(Regex(r"\n|" + _SENTENCEPIECE_WORDS), "isolated"),
        ]
    )
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = words
    trainer = tokenizer_trainers.UnigramTrainer(
        vocab_size=vocab_size - len(fixed) + 1,  # its own <unk> is among them and is taken out again
        initial_alphabet=[SPACE, "\n", *_PRINTABLE],
        unk_token=special.unk,
        special_tokens=[special.unk],
        show_progress=False,
    )
    learner.train_from_iterator((text.translate(unmarked) for text in texts), trainer)
    learned = [pair for pair in json.loads(learner.to_str())["model"]["vocab"] if pair[0] != special.unk]
    # Characters that the trainer would rather drop come below all else, in an order of chance.
    lowest = min(score for token, score in learned if len(token) > 1)
    # Scores in steps of 1/1024 are exact in binary and in JSON, so that ties fall alike before and after saving.
    scores = {token: round(max(score, lowest) * 1024) / 1024 for token, score in learned}
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    vocabulary = [(token, 0.0 if token in special.distinct() else _RARE_SCORE) for token in fixed]
    vocabulary += [(token, scores[token]) for token in ranked[: vocab_size - len(fixed)]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=fixed.index("<unk>"), byte_fallback=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.distinct()])
    return tokenizer


def _rare_characters(texts: list[str], limit: int) -> str:
    """All characters but the `limit` most frequent (ties: lower code point), sorted.

    Printable ASCII, space and newline are never among them.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    always = {" ", "\n", *_PRINTABLE}
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    others = [character for character in ranked if character not in always and character.isprintable()]
    kept = always | set(others[: max(0, limit - len(always))])
    return "".join(sorted(counts.keys() - kept))


def _byte_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """As in GPT-2 and GPT-NeoX: byte-level BPE with GPT-2's word rule, one special token as bos and eos."""
    from tokenizers import pre_tokenizers, processors

    tokenizer = _byte_level(
        texts, vocab_size, "byte_bpe", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _regex_byte_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """As in Llama 3: byte-level BPE with its word rule, but single digits; a bos token is added."""
    from tokenizers import Regex, pre_tokenizers, processors

    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = _byte_level(texts, vocab_size, "regex_byte_bpe", words)
    bos = SPECIAL_TOKENS["regex_byte_bpe"].bos
    assert bos is not None
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _byte_level(texts: list[str], vocab_size: int, kind: TokenizerKind, words: PreTokenizer) -> Tokenizer:
    """Byte-level BPE whose merges stay inside what `words` (a pre-tokenizer) splits off."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers import trainers as tokenizer_trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL_TOKENS[kind].distinct(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, kind: TokenizerKind, context: int, folder: Path) -> list[Path]:
    """Saves a trained tokenizer as a Hugging Face folder (replacing what is there) and returns its files."""
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL_TOKENS[kind]
    roles = {f"{role}_token": token for role, token in special._asdict().items() if token is not None}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **roles,
    )
    shutil.rmtree(folder, ignore_errors=True)
    fast.save_pretrained(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> list[list[int]]:
    """Token ids of each document as the tokenizer gives them (with bos if it adds one), closed by eos."""
    # The tokenizer's own backend, because training packs documents that are longer than the context on purpose.
    encoded = tokenizer.backend_tokenizer.encode_batch(documents, add_special_tokens=True)
    return [[*encoding.ids, tokenizer.eos_token_id] for encoding in encoded]
