"""Tables, ends and fingerprints over tokenizers of every common construction, on arbitrary Unicode."""

import base64
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from contract.errors import ConfigError
from contract.tokenization import (
    adds_bos,
    encode,
    encode_batch,
    load_tokenizer,
    token_table,
    tokenizer_fingerprint,
    valid_text,
)

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
    "mistral": mistral,
    "llama3": llama3,
    "tekken": tekken,
}
LOSSLESS = ["byte-level", "starcoder", "llama3", "tekken"]
MARKED = ["sentencepiece", "gemma", "llama2-not-legacy", "slow-sentencepiece", "unigram", "mistral"]
NORMALISING = ["byte-level-nfc", "wordpiece"]


@cache
def made(name: str) -> tuple:
    tokenizer = MAKERS[name]()
    return tokenizer, token_table(tokenizer)


TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from("ab AB \n\t.▁<0x41>é e\u0301\u0130ŉ你😀\x00\u200b</s>Straße"), max_size=40),
    st.lists(st.sampled_from([*CORPUS[:4], "<s>", "</s>", "<|endoftext|>", "     ", "→añadido", " "]), max_size=4).map(
        "".join
    ),
    st.lists(
        st.sampled_from(["<table>", "<start_of_turn>", "<fim_prefix>", "\n\n", "\n", " ", "12", "a"]), max_size=9
    ).map("".join),
)
relaxed = settings(max_examples=120, deadline=None)


def brute_force_ends(pieces: list[bytes], prefix: int) -> list[int]:
    return [max(0, sum(len(piece) for piece in pieces[: count + 1]) - prefix) for count in range(len(pieces))]


def last_of_equal(ends: np.ndarray) -> np.ndarray:
    """The only positions that an alignment uses."""
    return np.flatnonzero(np.append(ends[1:] != ends[:-1], True)[: len(ends)])


def bare(text: str) -> str:
    """What no normalizer of these tests changes: no case, accents, white space or control characters."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text.casefold()).casefold())
    return "".join(char for char in folded if unicodedata.category(char)[0] not in "MZC")


@pytest.mark.parametrize("name", LOSSLESS)
@relaxed
@given(text=TEXT)
def test_lossless_tokenizers_spell_every_text(name: str, text: str) -> None:
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    pieces = [table.token_bytes[token] for token in found.ids]
    assert not found.lossy
    assert b"".join(pieces) == text.encode()
    assert found.ends.tolist() == brute_force_ends(pieces, 0)
    assert found.ids.dtype == found.ends.dtype == np.int32


@pytest.mark.parametrize("name", MARKED)
@relaxed
@given(text=TEXT)
@example(text=" ▁")
def test_marked_tokenizers_spell_every_text_but_the_marker_itself(name: str, text: str) -> None:
    """The only loss is declared: a literal marker in the text reads as a space (and a byte's name as that byte)."""
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    if name == "unigram" and any(special in text for special in SPECIAL):
        assert found.lossy  # this model lists them as ordinary pieces and finds them by their spelling
        return
    pieces = [table.token_bytes[token] for token in found.ids]
    joined, length = b"".join(pieces), len(text.encode())
    assert np.all(np.diff(found.ends) >= 0)
    assert not text or found.ends[-1] == length
    if not found.lossy:
        prefix = len(joined) - length
        assert prefix in (0, 1)
        assert joined == b" " * prefix + text.encode()
        assert found.ends.tolist() == brute_force_ends(pieces, prefix)
    elif "<0x" not in text:
        assert "▁" in text
        spaced = text.replace("▁", " ").encode()
        prefix = len(joined) - len(spaced)
        assert prefix in (0, 1)
        assert joined == b" " * prefix + spaced
        original_byte = [at for char in text for at in _bytes_of_char_in_both(char)]
        starts = np.cumsum([0, *original_byte])
        exact = np.array([starts[end] for end in brute_force_ends(pieces, prefix)])
        assert np.all(found.ends >= exact)
        assert np.array_equal(found.ends[last_of_equal(found.ends)], exact[last_of_equal(found.ends)])


def _bytes_of_char_in_both(char: str) -> list[int]:
    """Bytes of the text that each byte of the spaced text stands for."""
    return [3] if char == "▁" else [1] * len(char.encode())


@pytest.mark.parametrize("name", NORMALISING)
@relaxed
@given(text=TEXT)
def test_normalising_tokenizers_end_on_true_boundaries(name: str, text: str) -> None:
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    data = text.encode()
    assert np.all(np.diff(found.ends) >= 0)
    assert all(0 <= end <= len(data) for end in found.ends)
    if "unk" in {table.special_role.get(token) for token in found.ids.tolist()}:
        return
    for position in last_of_equal(found.ends):
        end = found.ends[position]
        if end < len(data) and data[end] & 0xC0 == 0x80:
            continue  # inside a character there is no text to compare
        joined, consumed = table.joined(found.ids[: position + 1].tolist()).decode(), data[:end].decode()
        assert bare(joined) == bare(consumed)
        if name == "byte-level-nfc":
            # Spaces aside: this tokenizer puts one before every stretch between added tokens.
            assert joined.replace(" ", "") == unicodedata.normalize("NFC", consumed).replace(" ", "")


def test_decomposed_text_under_nfc_ends_at_its_own_bytes() -> None:
    tokenizer, table = made("byte-level-nfc")
    text = "ae\u0301 end \u1100\u1161\u11a8x"
    found = encode(tokenizer, table, text, add_bos=False)
    assert found.lossy
    pieces = [table.token_bytes[token] for token in found.ids]
    assert b"".join(pieces) == " aé end 각x".encode()
    # "é" is two bytes in NFC and three in the text, "각" three and nine: no end lies inside them.
    assert not {2, 3, *range(10, 18)} & set(found.ends.tolist())
    assert {4, 8, 18, 19} <= set(found.ends.tolist())


def test_trailing_white_space_is_not_cut_off_the_ends() -> None:
    """ByteLevel post-processors trim offsets; ours are taken without them."""
    from tokenizers import processors

    tokenizer = byte_level_bpe(normalizer=normalizers.NFC())
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    table = token_table(tokenizer)
    text = "e\u0301 \n\n a"
    assert encode(tokenizer, table, text, add_bos=False).ends.tolist()[-1] == len(text.encode())
    assert len(set(encode(tokenizer, table, text, add_bos=False).ends.tolist())) >= 4


@pytest.mark.parametrize("name", MAKERS)
def test_table_covers_every_id(name: str) -> None:
    tokenizer, table = made(name)
    vocab = tokenizer.get_vocab()
    assert table.size == max(vocab.values()) + 1 == len(table.byte_lengths)
    for piece, token in vocab.items():
        if token in table.special_role:
            assert table.token_bytes[token] is None
        else:
            assert isinstance(table.token_bytes[token], bytes), piece
    again = pickle.loads(pickle.dumps(table))
    assert again == table


def test_pieces_mean_what_their_tokenizer_says() -> None:
    tokenizer, table = made("sentencepiece")
    vocab = tokenizer.get_vocab()
    assert table.token_bytes[vocab["<0x0A>"]] == b"\n"
    assert table.byte_fallback == {vocab[piece] for piece in BYTE_PIECES}
    assert table.token_bytes[vocab["▁the"]] == b" the"
    assert table.special_role == {0: "unk", 1: "bos", 2: "eos"}

    tokenizer, table = made("byte-level")
    vocab = tokenizer.get_vocab()
    assert table.token_bytes[vocab["Ġthe"]] == b" the"
    assert table.token_bytes[vocab["→añadido"]] == "→añadido".encode()  # added tokens are literal text
    assert table.special_role == {vocab["<|endoftext|>"]: "eos"}
    assert not table.byte_fallback

    tokenizer, table = made("wordpiece")
    vocab = tokenizer.get_vocab()
    assert table.token_bytes[vocab["the"]] == b" the"
    assert table.token_bytes[vocab["##e"]] == b"e"
    assert table.token_bytes[vocab[","]] == b","
    assert table.special_role == {vocab["[UNK]"]: "unk", vocab["[PAD]"]: "pad"}


def test_holes_have_no_bytes() -> None:
    vocab = {"a": 0, "b": 1, " ": 5}
    tokenizer = wrapped(Tokenizer(models.BPE(vocab, [])))
    table = token_table(tokenizer)
    assert table.token_bytes == [b"a", b"b", None, None, None, b" "]
    assert table.byte_lengths.tolist() == [1, 1, 0, 0, 0, 1]


def test_bos_is_prepended_with_end_zero() -> None:
    tokenizer, table = made("mistral")
    bare, with_bos = (encode(tokenizer, table, "Hello world", add_bos=flag) for flag in (False, True))
    assert with_bos.ids.tolist() == [tokenizer.bos_token_id, *bare.ids.tolist()]
    assert with_bos.ends.tolist() == [0, *bare.ends.tolist()]
    assert encode(tokenizer, table, "", add_bos=True).ids.tolist() == [tokenizer.bos_token_id]
    tokenizer, table = made("wordpiece")
    with pytest.raises(ConfigError, match="has none"):
        encode(tokenizer, table, "x", add_bos=True)


def test_batches_equal_single_texts() -> None:
    texts = ["", "a▁b", "Straße </s>", CORPUS[1], "\x00", "你" * 50]
    for name in ("mistral", "wordpiece", "byte-level-nfc"):
        tokenizer, table = made(name)
        for text, found in zip(texts, encode_batch(tokenizer, table, texts, False), strict=True):
            alone = encode(tokenizer, table, text, False)
            assert found.ids.tolist() == alone.ids.tolist()
            assert found.ends.tolist() == alone.ends.tolist()
            assert found.lossy == alone.lossy


def test_spelled_special_tokens_are_text_to_a_slow_tokenizer_too() -> None:
    tokenizer, table = made("slow-sentencepiece")
    found = encode(tokenizer, table, "a</s><s>", False)
    assert not found.lossy
    assert not set(found.ids.tolist()) & set(table.special_role)


def test_spelled_special_tokens_are_text_and_nothing_is_truncated() -> None:
    tokenizer, table = made("mistral")
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    found = encode(tokenizer, table, "a</s><s>" * 100, False)
    assert not set(found.ids.tolist()) & set(table.special_role)
    assert found.ends[-1] == 800
    assert tokenizer_fingerprint(tokenizer) == table.fingerprint


def test_one_megabyte_without_a_space() -> None:
    for name in ("sentencepiece", "byte-level"):
        tokenizer, table = made(name)
        text = "abcdefghij" * 100_000
        assert encode(tokenizer, table, text, False).ends[-1] == len(text)


def test_lone_surrogates_are_refused() -> None:
    tokenizer, table = made("byte-level")
    assert valid_text("ok 😀")
    assert not valid_text("bad \ud800")
    with pytest.raises(ValueError, match="surrogate"):
        encode(tokenizer, table, "bad \ud800", False)


def test_loading_names_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere") as missing:
        load_tokenizer(tmp_path / "nowhere")
    assert "remedy" in str(missing.value)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece", "unigram", "wordpiece", "mistral"])
def test_fingerprint_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    tokenizer, table = made(name)
    tokenizer.save_pretrained(tmp_path / "once")
    once = load_tokenizer(tmp_path / "once")
    once("use it", truncation=True, max_length=3)
    once.save_pretrained(tmp_path / "twice")
    assert tokenizer_fingerprint(once) == table.fingerprint
    assert token_table(load_tokenizer(tmp_path / "twice")) == table


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    tokenizer, table = made("sentencepiece")
    tokenizer.save_pretrained(tmp_path)
    program = "import sys; from contract.tokenization import *; "
    program += "print(tokenizer_fingerprint(load_tokenizer(sys.argv[1])))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == table.fingerprint


def test_fingerprint_sees_every_part_that_decides_ids() -> None:
    base = byte_level_bpe()
    found = [tokenizer_fingerprint(base)]
    state = json.loads(base.backend_tokenizer.to_str())

    def variant(change: object, **roles: str) -> str:
        changed = json.loads(json.dumps(state))
        change(changed)  # type: ignore[operator]
        roles = roles or {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        return tokenizer_fingerprint(wrapped(Tokenizer.from_str(json.dumps(changed)), **roles))

    assert variant(lambda s: None) == found[0]
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].get)
    swapped = state["model"]["merges"][::-1]
    found += [
        variant(lambda s: s["model"]["vocab"].update(new=s["model"]["vocab"][last] + 50)),
        variant(lambda s: s["model"].update(merges=swapped)),
        variant(lambda s: s.update(normalizer={"type": "NFKC"})),
        variant(lambda s: s["pre_tokenizer"].update(add_prefix_space=True)),
        variant(lambda s: None, eos_token="<|endoftext|>"),
        variant(lambda s: s["added_tokens"].pop()),
    ]
    assert len(set(found)) == len(found)


def test_adds_bos_is_found_by_trying() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece_bpe()
    assert not adds_bos(tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    assert adds_bos(tokenizer)
    assert tokenizer_fingerprint(tokenizer) != before
    table = token_table(tokenizer)
    assert encode(tokenizer, table, "a", add_bos=False).ids[0] != 1
    assert encode(tokenizer, table, "a", add_bos=True).ids.tolist().count(1) == 1
    assert adds_bos(tokenizer)  # encoding left the tokenizer as it was


class SlowTokenizer:
    """The interface of a tokenizer without a Rust backend: one token per character, some characters unknown."""

    bos_token_id = None
    all_special_ids = (0,)
    unk_token_id = 0

    def __init__(self) -> None:
        self.vocab = {"<unk>": 0} | {char: token for token, char in enumerate(map(chr, range(32, 127)), 1)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def encode(self, text: str, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        return [self.vocab.get(char, 0) for char in text]


def test_slow_tokenizers_are_read_by_their_vocabulary() -> None:
    tokenizer = SlowTokenizer()
    table = token_table(tokenizer)
    assert table.token_bytes[1] == b" "
    assert encode(tokenizer, table, "abc", False).ends.tolist() == [1, 2, 3]
    found = encode(tokenizer, table, "aéb", False)
    assert found.lossy
    assert found.ends.tolist() == [1, 1, 4]
    assert tokenizer_fingerprint(tokenizer) == table.fingerprint


def test_pieces_of_unknown_meaning_are_refused() -> None:
    vocab = {chr(0x4E00 + ord(char)): token for token, char in enumerate(map(chr, range(128)))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.normalizer = normalizers.Sequence([normalizers.Replace(chr(c), chr(0x4E00 + c)) for c in range(33, 127)])
    with pytest.raises(ConfigError, match="do not spell"):
        token_table(wrapped(backend))
