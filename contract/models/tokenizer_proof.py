"""Proof that a library read the tokenizer in a GGUF file as the file states it; some versions misread one in silence.

Everything after a misread tokenizer still runs, and is worthless: Gemma's, cut into single characters, makes four times
the tokens, and no step complains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fusionx.contract.errors import DataError
from fusionx.contract.models.gguf_header import GgufHeader

SAMPLES = (
    "The capital of France is Paris, a city of two million people.",
    "В столице Франции живут два миллиона человек.",
    "法国的首都是巴黎，有两百万居民。",
    "عاصمة فرنسا هي باريس ويسكنها مليونان.",
    "Übergrößenträger, naïveté, 1789–1815: €12,50 😀",
    "def area(radius):\n    return 3.14159 * radius**2\n",
)
MOST_OF_GREEDY = 1.25
"""Tokens per token of the longest-match cut: three real tokenizers have 1.0 to 1.05, one cut into characters 3."""
LEAST_BYTES_PER_TOKEN = 1.2
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_MARKER = "▁"
_SHOWN = 3


def prove(tokenizer: Any, header: GgufHeader) -> None:
    """Compares a tokenizer with the file that it was read from, and has it cut text in several scripts.

    Raises:
        DataError: another vocabulary, other special tokens, text that does not come back, or text cut far finer than
            the vocabulary can.
    """
    problems = [*_vocabulary(tokenizer, header), *_special_tokens(tokenizer, header), *_samples(tokenizer, header)]
    if problems:
        raise DataError(
            "The tokenizer in a GGUF file was not read as the file states it.",
            file=header.path,
            found="; ".join(problems),
            expected="the file's tokens and special tokens, and text that comes back whole",
            remedy="pip install --constraint constraints.txt '.[real]', whose versions are known to read such files; "
            "or use the model's safetensors",
        )


def _vocabulary(tokenizer: Any, header: GgufHeader) -> Iterable[str]:
    stated = header.tokens
    read = tokenizer.convert_ids_to_tokens(list(range(len(stated))))
    spell = _spelling(header)
    wrong = [id for id, (token, found) in enumerate(zip(stated, read, strict=True)) if found not in spell(token)]
    if wrong:
        shown = ", ".join(f"{id}: {read[id]!r} for {stated[id]!r}" for id in wrong[:_SHOWN])
        yield f"{len(wrong):,} of {len(stated):,} tokens are others ({shown})"
    if len(tokenizer) > len(stated):
        yield f"{len(tokenizer):,} tokens where the file has {len(stated):,}"


def _spelling(header: GgufHeader) -> Callable[[str], tuple[str, str]]:
    """How a token of the file may be spelled: as it is, with the marker for spaces, or in the byte-level alphabet."""
    if not _is_byte_level(header):
        return lambda token: (token, token.replace(" ", _MARKER))
    alphabet = _byte_alphabet()
    return lambda token: (token, "".join(alphabet[byte] for byte in token.encode("utf-8", "surrogatepass")))


def _is_byte_level(header: GgufHeader) -> bool:
    return header.metadata.get("tokenizer.ggml.model") == "gpt2"


def _byte_alphabet() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def _special_tokens(tokenizer: Any, header: GgufHeader) -> Iterable[str]:
    for stated, role in _ROLES.items():
        expected = header.metadata.get(f"tokenizer.ggml.{stated}_token_id")
        found = getattr(tokenizer, f"{role}_token_id")
        if expected is not None and found != expected:
            yield f"{role} is {found}, stated {expected}"
    bare, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    added = {
        "bos": len(whole) > len(bare) and whole[0] == tokenizer.bos_token_id,
        "eos": len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id,
    }
    for role, is_added in added.items():
        expected = adds(header, role)
        if expected is not None and is_added != expected:
            yield f"{role.upper()} is {'' if is_added else 'not '}added to a text, stated {str(expected).lower()}"


def adds(header: GgufHeader, role: str) -> bool | None:
    """Whether the file says that its tokenizer puts `role` (bos, eos) to a text; None where it leaves that open."""
    stated = header.metadata.get(f"tokenizer.ggml.add_{role}_token")
    if stated is None and role == "bos" and header.metadata.get("tokenizer.ggml.model") == "llama":
        return True  # llama.cpp's rule for a SentencePiece vocabulary that does not say otherwise
    return stated


def _samples(tokenizer: Any, header: GgufHeader) -> Iterable[str]:
    vocabulary = set(_texts(tokenizer, _is_byte_level(header)))
    found = promised = 0
    for text in SAMPLES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids and tokenizer.decode(ids) != text:
            continue  # a script that this vocabulary does not have
        if (back := tokenizer.decode(ids, clean_up_tokenization_spaces=False)) != text:
            yield f"{text!r} comes back as {back!r}"
        least = _longest_match(text, vocabulary)
        if len(text.encode()) >= LEAST_BYTES_PER_TOKEN * least:  # else the vocabulary has little of this script
            found, promised = found + len(ids), promised + least
    if found > MOST_OF_GREEDY * promised:
        yield f"the samples have {found} tokens, where the vocabulary's longest matches make {promised}"


def _texts(tokenizer: Any, byte_level: bool) -> Iterator[bytes]:
    """What the tokens stand for inside a text."""
    byte_of = {char: byte for byte, char in _byte_alphabet().items()}
    for token in filter(None, tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if not byte_level:
            yield token.replace(_MARKER, " ").encode("utf-8", "surrogatepass")
        elif byte_of.keys() >= set(token):
            yield bytes(byte_of[char] for char in token)


def _longest_match(text: str, vocabulary: set[bytes]) -> int:
    """Tokens of a cut that takes the longest token of the vocabulary every time, or else one byte."""
    content = text.encode()
    longest = max(map(len, vocabulary))
    place = count = 0
    while place < len(content):
        ends = range(min(len(content), place + longest), place, -1)
        place = next((end for end in ends if content[place:end] in vocabulary), place + 1)
        count += 1
    return count
