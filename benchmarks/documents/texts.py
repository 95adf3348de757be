"""Fuzzed texts: document N of a seed is always the same, so that none has to be kept to be compared with."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

_SENTENCE = "the quick brown fox jumps over a lazy dog and nobody knows why it is so"
_MARKUP = (
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>user\n", "<|eot_id|>", "[INST]", "<bos>", "<start_of_turn>", "<0x0A>",
    "<unused7>", "<script>alert(1)</script>", "▁", "Ġ", "Ċ", "##", "</w>", "\\u0000", "%00", "../../", "${x}", "{{x}}",
)  # fmt: skip
_CONTROLS = [chr(code) for code in (*range(32), *range(0x7F, 0xA0))]
_INVISIBLE = list(
    "\u00ad\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2060\u2066\u2069\ufeff\ufffc\ufffd"
)
_DIRECTIONS = list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NO_CHARACTERS = ["\ufdd0", "\ufffe", "\uffff", "\U0001fffe", "\U0010ffff", "\ue000", "\U000f0000", "\u0378"]
_EMOJI = ("👩", "👨", "🧑", "👧", "❤️", "🏳️", "🌈", "💻", "🚀", "⚕️", "🏿", "🏻")
_ENCODINGS = ("latin-1", "cp1252", "utf-16", "utf-16-be", "utf-32", "shift_jis", "gb18030", "koi8-r", "utf-7", "cp037")


@dataclass(frozen=True)
class Text:
    """One document, as a reader of JSON gives it back: bytes that are no UTF-8 are U+DC80 to U+DCFF."""

    kind: str
    text: str


def document(seed: int, number: int) -> Text:
    """Document `number`; of every kind in turn, or of several in one."""
    rng = random.Random(f"{seed}:{number}")
    kinds = [*KINDS, "mixed"]
    kind = kinds[number % len(kinds)]
    text = "".join(KINDS[name](rng) for name in rng.choices(list(KINDS), k=3)) if kind == "mixed" else KINDS[kind](rng)
    return Text(kind, as_json_reads(text))


def as_json_reads(text: str) -> str:
    """Two halves of a pair that have come to stand together are one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def why_lost(text: str) -> str | None:
    """Why nothing can be made of a text, by what Python itself says of it; None where something can."""
    if not text:
        return "empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return "lone surrogate"
        return "not UTF-8"
    return None


@cache
def scripts() -> dict[str, str]:
    """Every script's characters, by the first word of their names."""
    found: dict[str, list[str]] = {}
    for code in range(0x110000):
        name = unicodedata.name(chr(code), "")
        if name:
            found.setdefault(name.split()[0].split("-")[0], []).append(chr(code))
    return {name: "".join(characters) for name, characters in found.items()}


@cache
def _marks() -> list[str]:
    return [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Mn", "Me", "Mc")]


def _length(rng: random.Random) -> int:
    """Most are short; one in a hundred is some thousand characters."""
    return min(4000, int(rng.lognormvariate(2.8, 1.0)) + 1)


def _prose(rng: random.Random) -> str:
    return " ".join(rng.choices(_SENTENCE.split(), k=_length(rng) // 4 + 1))


def _script(rng: random.Random) -> str:
    characters = scripts()[rng.choice(list(scripts()))]
    return "".join(rng.choice([*rng.choices(characters, k=5), " "]) for _ in range(_length(rng)))


def _any_characters(rng: random.Random) -> str:
    codes = (rng.randrange(rng.choice((0x80, 0x800, 0x10000, 0x110000))) for _ in range(_length(rng)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000) or "."


def _combining(rng: random.Random) -> str:
    piled = ("".join([rng.choice("aeoक한ا "), *rng.choices(_marks(), k=rng.choice((1, 5, 60)))]) for _ in range(3))
    return "".join(piled)


def _emoji(rng: random.Random) -> str:
    joined = "\u200d".join(rng.choices(_EMOJI, k=rng.choice((1, 2, 4, 12))))
    flag = "".join(chr(0x1F1E6 + rng.randrange(26)) for _ in range(rng.randrange(6)))
    return joined + rng.choice(("", " ", "\ufe0e", "\u20e3")) + flag


def _control(rng: random.Random) -> str:
    pools = (_CONTROLS, _INVISIBLE, _DIRECTIONS, _NO_CHARACTERS, ["\0"], list("ab "))
    return "".join(rng.choice(rng.choice(pools)) for _ in range(_length(rng)))


def _spaces(rng: random.Random) -> str:
    runs = (
        rng.choice(" \t\n\r\v\f\u00a0\u2003\u3000\u0085") * rng.choice((1, 2, 3, 40)) for _ in range(_length(rng) // 8)
    )
    return "".join(f"{run}{rng.choice(('', 'a', '.'))}" for run in runs) or "\r\n"


def _surrogates(rng: random.Random) -> str:
    text = list(_prose(rng))
    for _ in range(rng.randrange(1, 4)):
        text.insert(rng.randrange(len(text) + 1), chr(rng.randrange(0xD800, 0xE000)))
    return "".join(text)


def _mislabelled(rng: random.Random) -> str:
    text = rng.choice(("naïve café, Straße", "Привет, мир", "こんにちは世界", "你好")) + _prose(rng)
    return text.encode(rng.choice(_ENCODINGS), "replace").decode("utf-8", "surrogateescape")


def _broken_utf8(rng: random.Random) -> str:
    data = bytearray(_script(rng).encode())
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            del data[at : at + 1]
        else:
            data[at:at] = rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"))
    return data.decode("utf-8", "surrogateescape")


def _mojibake(rng: random.Random) -> str:
    return _script(rng).encode().decode("latin-1")


def _markup(rng: random.Random) -> str:
    return "".join(rng.choice((*_MARKUP, " ", "a", "\n")) for _ in range(_length(rng) // 3 + 1))


def _word(rng: random.Random) -> str:
    one = rng.choice("aZ0-_=%/é世\u0301😀")
    return one * _length(rng) * 4 if rng.random() < 0.5 else "".join(rng.choices("abcdefACGT0123", k=_length(rng) * 4))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "prose": _prose,
    "script": _script,
    "any characters": _any_characters,
    "combining marks": _combining,
    "emoji": _emoji,
    "control": _control,
    "spaces": _spaces,
    "lone surrogates": _surrogates,
    "mislabelled": _mislabelled,
    "broken UTF-8": _broken_utf8,
    "mojibake": _mojibake,
    "markup": _markup,
    "long word": _word,
    "nothing": lambda rng: "",
}


def endless(size: int) -> dict[str, str]:
    """Texts without a place to cut them, of about so many bytes each."""
    rng = random.Random(0)
    units = {
        "one letter": "a",
        "one ideograph": "世",
        "one emoji sequence": "👩\u200d",
        "one NUL": "\0",
        "spaces": " ",
        "line breaks": "\n",
        "Windows' line breaks": "\r\n",
        "digits": "0123456789",
    }
    made = {name: unit * (size // len(unit.encode()) + 1) for name, unit in units.items()}
    made["one character of many marks"] = "e" + "".join(rng.choices(_marks(), k=size // 3))
    made["random letters"] = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=size))
    made["random characters"] = "".join(rng.choices(scripts()["CJK"], k=size // 3))
    return made
