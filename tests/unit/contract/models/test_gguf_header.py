"""The head of a GGUF file, as the `gguf` package reads it; of damaged ones, an error that names the file."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_builder import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.contract.errors import DataError
from fusionx.contract.models.gguf_header import TENSOR_TYPES, read_header


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = {"general.tags": ["a", "ü"], "general.alignment": 64}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata=metadata)


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    for number, (name, values, size) in TENSOR_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[Kind(number)] == (values, size)
        assert Kind(number).name == name


def test_the_header_is_what_the_packages_reader_finds(file: Path) -> None:
    header, reader = read_header(file), gguf.GGUFReader(file)
    stated = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == stated
    expected = [
        (item.name, tuple(map(int, item.shape[::-1])), item.tensor_type.name, item.data_offset)
        for item in reader.tensors
    ]
    assert [(tensor.name, tensor.shape, tensor.kind, tensor.start) for tensor in header.tensors] == expected
    assert header.quantised


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_or_cut_the_file_is_read_or_refused(file: Path, data: st.DataObject) -> None:
    """Never another exception, and never a tensor beyond the file's end."""
    content = bytearray(file.read_bytes())
    head = read_header(file).tensors[0].start
    for place in data.draw(st.lists(st.integers(0, head - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    damaged = file.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        header = read_header(damaged)
    except DataError:
        return
    sizes = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}
    for tensor in header.tensors:
        values, size = sizes[tensor.kind]
        assert tensor.start + tensor.values // values * size <= len(content)
