"""Tokenizers of every kind, and texts that need no network."""

import sysconfig
from functools import cache
from pathlib import Path

from tokenizer_builder import CORPUS, made

from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.tokenizer import adds_bos

PIECE = 6000
"""Characters of one text."""


def encoder(name: str) -> Encoder:
    tokenizer, table = made(name)
    return Encoder.of(tokenizer, table, adds_bos(tokenizer))


@cache
def texts(domain: str) -> list[str]:
    """English prose and Python code, as the standard library has them, and all scripts of the small corpus."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    if domain == "prose":
        text = (folder / "pydoc_data" / "topics.py").read_text()[20_000:260_000]
    elif domain == "code":
        text = "".join((folder / name).read_text() for name in ("argparse.py", "typing.py", "inspect.py"))[:240_000]
    else:
        text = "\n".join(CORPUS * 40)
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
