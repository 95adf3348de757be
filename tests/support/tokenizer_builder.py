"""Small tokenizers of every common construction, and the real ones that development packages bring."""

import base64
import importlib.util
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fusionx.contract.tokens.token_table import token_table

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the other dogs join them in the end.",
    "def add(a, b):\n    return a + b  # the sum of the two\n\n\tfor i in range(10): print(i)",
    "Zażółć gęślą jaźń. Ein schöner Tag für die Straße. Привет, мир! 你好,世界。 こんにちは 😀😀",
    "hello world this is a test of the tokenizer a b c d = 12345 0 , . [ ]",
] * 5
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(backend: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def byte_level_bpe(add_prefix_space: bool = False, normalizer: object = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("     ", normalized=False), AddedToken("→añadido", normalized=False)])
    return wrapped(backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama-2's tokenizer.json: a normalizer that prepends and replaces, byte fallback in the model."""
    marked = [" " + line for line in CORPUS]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=60))
    model = json.loads(trained.to_str())["model"]
    pieces = [*SPECIAL, *BYTE_PIECES, *sorted(model["vocab"], key=model["vocab"].get)]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def with_sentencepiece_vocabulary(**components: Any) -> PreTrainedTokenizerFast:
    """The pieces of `sentencepiece_bpe` behind another normalizer or pre-tokenizer."""
    model = json.loads(sentencepiece_bpe().backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for name, component in components.items():
        setattr(backend, name, component)
    return wrapped(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def gemma() -> PreTrainedTokenizerFast:
    """As Gemma's tokenizer.json: no prefix space, and added tokens for runs of line breaks and for markup."""
    tokenizer = with_sentencepiece_vocabulary(
        normalizer=normalizers.Replace(" ", "▁"), pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")
    )
    tokenizer.backend_tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "<table>")])
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<start_of_turn>")])
    return tokenizer


def llama2_not_legacy() -> PreTrainedTokenizerFast:
    """As Llama-2's tokenizer.json with legacy=false: the prefix space comes from a pre-tokenizer."""
    return with_sentencepiece_vocabulary(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def slow_sentencepiece() -> Any:
    """A tokenizer that transformers has no fast class for: it runs the SentencePiece library itself."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import BertGenerationTokenizer

    file = Path(mkdtemp(), "spiece.model")
    with file.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.98,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return BertGenerationTokenizer(vocab_file=str(file))


def starcoder() -> PreTrainedTokenizerFast:
    """As StarCoder's tokenizer.json: single digits before byte-level BPE."""
    backend = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<fim_prefix>"]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return wrapped(backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def unigram() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, shrinking_factor=0.5
    )
    trained.train_from_iterator(CORPUS, trainer)
    scored = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    scored = scored[:3] + [(piece, -20.0) for piece in BYTE_PIECES] + scored[3:]
    backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return wrapped(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend, unk_token="[UNK]", pad_token="[PAD]")


def clip() -> PreTrainedTokenizerFast:
    """As CLIP's tokenizer.json: lower case, white space dropped, byte-level BPE whose words end in `</w>`."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    components: dict[str, Any] = {
        "normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        "pre_tokenizer": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        "decoder": decoders.ByteLevel(),
    }
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    for name, component in components.items():
        setattr(trained, name, component)
    trainer = trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(char + "</w>" for char in alphabet), *model["vocab"], "<|endoftext|>"]
    vocab = {piece: token for token, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in model["merges"]]
    unknown = {"unk_token": "<|endoftext|>"}
    backend = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", **unknown))
    for name, component in components.items():
        setattr(backend, name, component)
    return wrapped(backend, eos_token="<|endoftext|>", **unknown)


def installed(package: str, *path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    file = Path(spec.submodule_search_locations[0]).joinpath(*path)
    if not file.is_file():
        pytest.skip(f"{package} has no {path[-1]}")
    return file


def mistral() -> PreTrainedTokenizerFast:
    folder = mkdtemp()
    shutil.copy(installed("mistral_common", "data", "tokenizer.model.v1"), Path(folder, "tokenizer.model"))
    Path(folder, "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return AutoTokenizer.from_pretrained(folder)


def from_tiktoken(file: Path, **settings_: str) -> PreTrainedTokenizerFast:
    converter = pytest.importorskip("transformers.convert_slow_tokenizer").TikTokenConverter
    backend = converter(vocab_file=str(file), extra_special_tokens=["<|bos|>", "<|eos|>"], **settings_).converted()
    return wrapped(backend, bos_token="<|bos|>", eos_token="<|eos|>")


def llama3() -> PreTrainedTokenizerFast:
    return from_tiktoken(installed("llama_models", "llama3", "tokenizer.model"))


def tekken() -> PreTrainedTokenizerFast:
    content = json.loads(installed("mistral_common", "data", "tekken_240911.json").read_text())
    entries = content["vocab"][
        : content["config"]["default_vocab_size"] - content["config"]["default_num_special_tokens"]
    ]
    file = Path(mkdtemp(), "tekken.tiktoken")
    lines = (base64.b64encode(base64.b64decode(e["token_bytes"])).decode() + f" {e['rank']}" for e in entries)
    file.write_text("\n".join(lines))
    return from_tiktoken(file, pattern=content["config"]["pattern"])


MAKERS = {
    "byte-level": byte_level_bpe,
    "byte-level-nfc": lambda: byte_level_bpe(add_prefix_space=True, normalizer=normalizers.NFC()),
    "starcoder": starcoder,
    "sentencepiece": sentencepiece_bpe,
    "gemma": gemma,
    "llama2-not-legacy": llama2_not_legacy,
    "slow-sentencepiece": slow_sentencepiece,
    "unigram": unigram,
    "wordpiece": word_piece,
    "clip": clip,
    "mistral": mistral,
    "llama3": llama3,
    "tekken": tekken,
}
LOSSLESS = ["byte-level", "starcoder", "llama3", "tekken"]
MARKED = ["sentencepiece", "gemma", "llama2-not-legacy", "slow-sentencepiece", "unigram", "mistral"]
NORMALISING = ["byte-level-nfc", "wordpiece", "clip"]


@cache
def made(name: str) -> tuple:
    tokenizer = MAKERS[name]()
    return tokenizer, token_table(tokenizer)
