"""Whatever is read back is checked: of hundreds of flipped bits and cut files none is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionx.benchmarks.damage.kinds import Kind, kinds
from fusionx.benchmarks.damage.trials import trials


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Kind]:
    return list(kinds(tmp_path_factory.mktemp("damage")))


def test_no_damage_is_missed(all_kinds: list[Kind]) -> None:
    counts = trials(all_kinds, flips=300, truncations=60, seed=1)
    assert {name: count["missed"] for name, count in counts.items()} == dict.fromkeys(counts, 0)
    for name, count in counts.items():
        assert count["found"] + count["made anew"] > count["harmless"], name


def test_a_missed_damage_is_counted(tmp_path: Path) -> None:
    """The trial itself can fail: a reader that checks nothing, and one that ends in a traceback."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    careless = Kind("careless", [file], file.read_bytes)
    breaking = Kind("breaking", [file], lambda: int(file.read_text()))
    counts = trials([careless, breaking], flips=10, truncations=10, seed=1)
    assert counts["careless"] == {"missed": 10}
    assert counts["breaking"]["missed"] == 10
