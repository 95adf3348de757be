"""What ids stand for, over tokenizers of every common construction."""

import pickle

import pytest
from tokenizer_builder import BYTE_PIECES, MAKERS, installed, made, wrapped
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.token_table import token_table


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


def test_a_word_end_has_its_space() -> None:
    tokenizer, table = made("clip")
    vocab = tokenizer.get_vocab()
    assert table.token_bytes[vocab["the</w>"]] == b"the "
    assert table.token_bytes[vocab["a"]] == b"a"
    assert table.word_ends == {token for piece, token in vocab.items() if piece.endswith("</w>")}
    assert table.ends_word.tolist() == [token in table.word_ends for token in range(table.size)]
    assert not made("byte-level")[1].word_ends


def test_tokenizers_without_special_tokens() -> None:
    table = token_table(wrapped(Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2}, []))))
    assert table.special_role == {}
    assert table.token_bytes == [b"a", b"b", b" "]


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"),
        models.WordPiece({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"),
        models.BPE({"[UNK]": 0, "h": 1, "w": 2}, [], unk_token="[UNK]"),
        models.Unigram([("[UNK]", 0.0), ("h", -1.0), ("w", -1.0)], unk_id=0),
    ],
)
def test_the_models_unknown_is_special_where_no_setting_says_so(model: object) -> None:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    for _ in range(2):
        table = token_table(wrapped(backend))
        assert table.special_role == {0: "unk"}
        assert table.token_bytes[0] is None
        backend.add_special_tokens(["[UNK]"])


def test_a_mistral_common_tokenizer_is_refused_with_the_way_out() -> None:
    from transformers.tokenization_mistral_common import MistralCommonBackend

    tokenizer = MistralCommonBackend(str(installed("mistral_common", "data", "tekken_240911.json")))
    with pytest.raises(ConfigError, match=r"(?s)MistralCommonBackend.*load_tokenizer"):
        token_table(tokenizer)


def test_holes_have_no_bytes() -> None:
    vocab = {"a": 0, "b": 1, " ": 5}
    tokenizer = wrapped(Tokenizer(models.BPE(vocab, [])))
    table = token_table(tokenizer)
    assert table.token_bytes == [b"a", b"b", None, None, None, b" "]
    assert table.byte_lengths.tolist() == [1, 1, 0, 0, 0, 1]


def test_pieces_of_unknown_meaning_are_refused() -> None:
    vocab = {chr(0x4E00 + ord(char)): token for token, char in enumerate(map(chr, range(128)))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.normalizer = normalizers.Sequence([normalizers.Replace(chr(c), chr(0x4E00 + c)) for c in range(33, 127)])
    with pytest.raises(ConfigError, match="do not spell"):
        token_table(wrapped(backend))
