"""What a GGUF file says of itself: metadata and the table of its tensors, read without touching their data.

`gguf.GGUFReader` makes Python objects of every token, which takes seconds where a vocabulary has 262,144; this takes a
fifth of one, needs no package, and says of a damaged file what is wrong with it.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fusionx.contract.errors import DataError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)

TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Number of a tensor's type in the file -> its name, values per block, bytes per block."""
PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
_PART_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_AGAIN = "download it again, and compare its sha256 with the one that its publisher states"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    shape: in torch's order, the file's reversed. kind: a name of `TENSOR_TYPES`. start: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int

    @property
    def values(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """A file's metadata by key, and its tensors in the order of the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def of_architecture(self, key: str) -> Any:
        """What stands under `<architecture>.<key>`, None where nothing does."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def parameters(self) -> int:
        return sum(tensor.values for tensor in self.tensors)

    @property
    def kinds(self) -> dict[str, int]:
        """Values by the type that they are stored in, the most frequent first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.kind] += tensor.values
        return dict(counts.most_common())

    @property
    def quantised(self) -> bool:
        return not PLAIN_TYPES.issuperset(self.kinds)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary as the file spells it, by id; empty where it has none."""
        return self.metadata.get("tokenizer.ggml.tokens") or []

    @property
    def licence(self) -> dict[str, str]:
        """What the file states of it, by the fields of a model card's front matter."""
        keys = {"license": "", "license_name": ".name", "license_link": ".link"}
        stated = {field: self.metadata.get(f"general.license{key}") for field, key in keys.items()}
        return {field: value for field, value in stated.items() if isinstance(value, str) and value}

    def tensor(self, name: str) -> GgufTensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def read_header(path: Path) -> GgufHeader:
    """Reads the file's head, and compares its table of tensors with the size of the file.

    Raises:
        DataError: it is no GGUF file, one part of a split one, cut short, or damaged.
    """
    part = _PART_NAME.search(path.name)
    if part and int(part[2]) > 1:
        raise _split(path, int(part[2]))
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).header()
    except OSError as error:
        raise DataError("A GGUF file cannot be read.", file=path, found=error.strerror or error) from None
    except ValueError as error:  # mmap refuses an empty file; UTF-8 that is none
        raise _damaged(path, str(error)) from None
    except (struct.error, OverflowError, MemoryError, RecursionError):
        raise _damaged(path, "it ends, or counts wrongly, inside its head") from None


class _Reader:
    """A position that moves through the file's head."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._place = path, content, 0

    def header(self) -> GgufHeader:
        if self._content[:4] != b"GGUF":
            raise DataError(
                "This is no GGUF file.",
                file=self._path,
                found=f"it begins with {bytes(self._content[:4])!r}",
                expected="b'GGUF'",
                remedy=_AGAIN,
            )
        self._place = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise DataError(
                "A GGUF file is of a version that is not read.",
                file=self._path,
                found=f"version {version}" + (", or big-endian" if version & 0xFFFF == 0 else ""),
                expected=" or ".join(map(str, _VERSIONS)),
                remedy="convert the model with a llama.cpp of 2023 or later",
            )
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        parts = metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise _split(self._path, parts)
        if not isinstance(metadata.get("general.architecture"), str):
            raise _damaged(self._path, "it states no general.architecture")
        return GgufHeader(self._path, metadata, self._tensors(tensors, metadata.get("general.alignment", 32)))

    def _tensors(self, count: int, alignment: int) -> tuple[GgufTensor, ...]:
        table = [self._tensor() for _ in range(count)]
        if not table:
            raise _damaged(self._path, "it holds no tensors")
        if not isinstance(alignment, int) or alignment < 1:
            raise _damaged(self._path, f"general.alignment {alignment}")
        data = -(-self._place // alignment) * alignment
        tensors = tuple(replace(tensor, start=data + tensor.start) for tensor in table)
        sizes = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}
        for tensor in tensors:
            values, size = sizes[tensor.kind]
            end = tensor.start + tensor.values // values * size
            if end > len(self._content):
                raise DataError(
                    "A GGUF file is cut short.",
                    file=self._path,
                    field=tensor.name,
                    found=f"{len(self._content):,} bytes",
                    expected=f"at least {end:,}, where this tensor ends",
                    remedy=_AGAIN,
                )
        return tensors

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._place)
        self._place += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._place + length
        if end > len(self._content):
            raise struct.error
        text = self._content[self._place : end].decode("utf-8")
        self._place = end
        return text

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise _damaged(self._path, f"a value of the unknown type {kind}")
        kind, count = self._scalar("I"), self._scalar("Q")
        if count > len(self._content):
            raise struct.error
        if kind in _SCALARS:
            form = f"<{count}{_SCALARS[kind]}"
            values = struct.unpack_from(form, self._content, self._place)
            self._place += struct.calcsize(form)
            return list(values)
        return [self._value(kind) for _ in range(count)]

    def _tensor(self) -> GgufTensor:
        """A row of the table; its `start` still counts from the end of the head."""
        name = self._string()
        dimensions = self._scalar("I")
        if dimensions > 8:
            raise _damaged(self._path, f"the tensor {name} of {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        kind = self._scalar("I")
        if kind not in TENSOR_TYPES:
            raise DataError(
                "A GGUF file stores a tensor in a type that is not read.",
                file=self._path,
                field=name,
                found=f"type {kind}",
                expected=", ".join(name for name, *_ in TENSOR_TYPES.values()),
                remedy="take another quantisation of the model, such as Q8_0 or Q4_K_M",
            )
        return GgufTensor(name, shape, TENSOR_TYPES[kind][0], self._scalar("Q"))


def _damaged(path: Path, found: str) -> DataError:
    return DataError("A GGUF file is damaged.", file=path, found=found, remedy=_AGAIN)


def _split(path: Path, count: int) -> DataError:
    named = _PART_NAME.search(path.name)
    stem = path.name[: named.start()] if named else "MODEL"
    return DataError(
        "This is one part of a split GGUF file.",
        file=path,
        found=f"{count} parts",
        expected="one file",
        remedy=f"join them with llama.cpp: llama-gguf-split --merge {stem}-00001-of-{count:05}.gguf {stem}.gguf",
    )
