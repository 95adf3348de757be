"""Sealed files: what was written comes back, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import (
    FILES,
    check_folder,
    hashes_of,
    read_sealed,
    seal_folder,
    sealed,
    unsealed,
    verified,
    write_sealed,
)

REMEDY = "make it again"
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4).filter(lambda name: name != "checksum"), PLAIN, max_size=4))
def test_what_was_sealed_comes_back(content: dict[str, Any]) -> None:
    assert unsealed(json.loads(json.dumps(sealed(content))), "f", REMEDY) == content


def test_every_bit_counts(tmp_path: Path) -> None:
    """A flip is refused by the file's name, unless the file still says the same."""
    path = tmp_path / "state.json"
    content = {"step": 12, "best": float("inf"), "text": "ä\n", "list": [1.5, None]}
    write_sealed(path, content)
    whole = path.read_bytes()
    refused = []
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert read_sealed(path, REMEDY) == content
        except DamageError as error:
            refused.append(error.details)
    assert len(refused) > 6 * len(whole)
    assert all((one["file"], one["remedy"]) == (str(path), REMEDY) for one in refused)
    for size in range(len(whole) - 2):  # without its last line break it is whole
        path.write_bytes(whole[:size])
        with pytest.raises(DamageError):
            read_sealed(path, REMEDY)
    path.unlink()
    with pytest.raises(DataError):
        read_sealed(path, REMEDY)


@pytest.mark.parametrize("found", [[], "text", {"step": 1}, {**sealed({"step": 1}), "step": 2}, {"checksum": "0"}])
def test_what_carries_no_right_checksum_is_refused(found: Any) -> None:
    with pytest.raises(DamageError, match="checksum"):
        unsealed(found, "f", REMEDY)


def test_a_seal_vouches_for_the_files_that_it_lists(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a")
    (tmp_path / "other").write_text("b")
    write_sealed(tmp_path / "seal.json", {FILES: hashes_of([tmp_path / "log"], tmp_path), "n": 1})
    (tmp_path / "other").write_text("changed")
    assert verified(tmp_path / "seal.json", REMEDY)["n"] == 1
    (tmp_path / "log").write_text("c")
    with pytest.raises(DamageError, match="log"):
        verified(tmp_path / "seal.json", REMEDY)
    (tmp_path / "log").unlink()
    with pytest.raises(DamageError, match="no such file"):
        verified(tmp_path / "seal.json", REMEDY)


def test_a_folders_card_may_change_and_nothing_else(tmp_path: Path) -> None:
    check_folder(tmp_path)  # from elsewhere: no seal
    for name in ("config.json", "README.md"):
        (tmp_path / name).write_text("{}")
    seal_folder(tmp_path)
    (tmp_path / "README.md").write_text("more")
    check_folder(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(DamageError, match=r"config\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_refused_where_all_must_be_finite(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_sealed(tmp_path / "f", {"score": number}, finite=True)
    assert not (tmp_path / "f").exists()
