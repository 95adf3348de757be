"""Whatever is read back is checked: of hundreds of flipped bits and cut files none is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionx.benchmarks.damage.cost import shares, watched
from fusionx.benchmarks.damage.kinds import Kind, kinds
from fusionx.benchmarks.damage.trials import trials
from fusionx.contract.files.sealed import file_hash


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


def test_checking_is_timed_in_every_stage_and_is_a_small_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    found = {figure.case: figure for figure in shares(tmp_path, kilobytes=8)}
    assert list(found) == ["chunk", "precompute", "align", "train", "eval"]
    assert all(figure.value > 0 for figure in found.values())


def test_time_of_a_check_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(20 << 20))
    with watched() as cost:
        file_hash(file)
    assert cost.checking > 0.002
    assert cost.measuring == 0
