"""Files that appear whole or not at all, locally and behind other filesystems."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

import pytest

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files import storage


def test_a_write_replaces_whole_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    storage.write_bytes(path, b"one")
    storage.write_bytes(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "part.parquet"
    storage.write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, step, full)
    with pytest.raises(DataError, match="No space left") as caught:
        storage.write_bytes(path, b"new")
    assert caught.value.details["file"] == str(path)
    assert "free some space" in caught.value.details["remedy"]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["part.parquet"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    """So nothing is left behind, in whatever folder."""
    (tmp_path / ".a.json.tmp").write_bytes(b"longer than what is written now")
    storage.write_bytes(tmp_path / "a.json", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"new"}


def test_what_another_is_writing_is_let_be(tmp_path: Path) -> None:
    with (tmp_path / ".a.json.tmp").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"of the other")
        other.flush()
        storage.write_bytes(tmp_path / "a.json", b"ours")
        assert (tmp_path / ".a.json.tmp").read_bytes() == b"of the other"
        os.replace(tmp_path / ".a.json.tmp", tmp_path / "a.json")  # it ends as it would have
    storage.write_bytes(tmp_path / "a.json", b"ours again")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"ours again"}


def test_first_the_content_is_on_the_disk_then_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", noted)
    monkeypatch.setattr(storage.os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    storage.write_bytes(tmp_path / "a.json", b"new")
    assert done == [str(tmp_path / ".a.json.tmp"), "replace", str(tmp_path)]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".part-00000.parquet.1234abcd.tmp", "part-00000.parquet", ".hidden", "x.tmp"):
        (tmp_path / name).write_bytes(b"x")
    storage.remove_leftovers(tmp_path)
    storage.remove_leftovers(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == [".hidden", "part-00000.parquet", "x.tmp"]


@pytest.fixture(params=["plain", "home", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    bases = {
        "plain": str(tmp_path),
        "home": "~",
        "file": f"file://{tmp_path}",
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    return bases[request.param]


def test_every_kind_of_path_reads_lists_and_writes(base: str) -> None:
    folder = storage.join(base, "out", "logits")
    assert storage.list_files(folder) == []
    assert not storage.exists(storage.join(folder, "a"))
    for name in ("b", "a"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    assert storage.list_files(folder) == ["a", "b"]
    assert storage.read_bytes(storage.join(folder, "b")) == b"b"
    storage.write_bytes(storage.join(folder, "b"), b"")
    assert storage.read_bytes(storage.join(folder, "b")) == b""
    storage.write_bytes(storage.join(base, "out", "logits.gz"), b"xyz")  # the ending does not compress it
    assert storage.list_tree(storage.join(base, "out")) == {"logits/a": 1, "logits/b": 0, "logits.gz": 3}
    assert storage.list_tree(storage.join(folder, "a")) == {"": 1}
    assert storage.list_tree(storage.join(base, "none")) == {}
    with storage.open_file(storage.join(base, "out", "logits.gz")) as stream:
        assert (stream.size(), stream.read(2)) == (3, b"xy")
    for _ in range(2):
        storage.delete(storage.join(folder, "b"))
    assert storage.list_files(folder) == ["a"]
    storage.remove_leftovers(folder)


def test_a_missing_file_is_named(base: str) -> None:
    with pytest.raises(DataError, match=r"none\.parquet"):
        storage.read_bytes(storage.join(base, "none.parquet"))


def test_join_keeps_schemes() -> None:
    assert storage.join("s3://bucket/run/", "chunks", "a") == "s3://bucket/run/chunks/a"
    assert storage.join(Path("/x"), "y") == "/x/y"


def test_home_and_file_uris_are_local_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for path, expected in (
        ("~/run", "/home/me/run"),
        ("file:///a/b%20c#d", "/a/b c#d"),
        ("file://localhost/a", "/a"),
        ("run", "run"),
        ("s3://bucket/~/b%20c", "s3://bucket/~/b%20c"),
    ):
        assert storage.plain(path) == expected
        assert storage.is_local(path) == (not path.startswith("s3"))
    with pytest.raises(ConfigError, match="file://elsewhere/a"):
        storage.plain("file://elsewhere/a")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match="nosuch://a/b"):
        storage.exists("nosuch://a/b")


@pytest.mark.parametrize("uri", ["s3://bucket/x?region=a", "gs://bucket?a=b", "s3://me:secret@bucket/x", "s3:///x"])
def test_options_and_credentials_belong_in_the_environment(uri: str) -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as caught:
        storage.exists(uri)
    assert "secret" not in str(caught.value)


def test_a_path_that_a_store_cannot_have_is_named() -> None:
    with pytest.raises(DataError, match="gs://bucket//x"):
        storage.exists("gs://bucket//x")


def test_buckets_are_opened_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    fs, inner = storage.filesystem("s3://bucket/a b%20#c/d")
    assert (fs.type_name, fs.region, inner) == ("s3", "eu-north-1", "bucket/a b%20#c/d")
    assert storage.filesystem("s3://bucket/other")[0] is fs
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert storage.filesystem("s3://bucket/a")[0].region == "eu-west-1"
    for uri in ("gs://bucket/a", "gs://anonymous@bucket/a", "s3://anonymous@bucket/a"):
        fs, inner = storage.filesystem(uri)
        assert (fs.type_name, inner) == ("gcs" if uri.startswith("gs") else "s3", "bucket/a")


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: no (Request ID: 1)", "create the bucket"),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "AWS_ACCESS_KEY_ID"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation", "AWS_REGION"),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 6", "AWS_ENDPOINT_URL"),
        ("google::cloud::Status(UNAVAILABLE: Could not create a OAuth2 access token", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("google::cloud::Status(UNAVAILABLE: PerformWork() - CURL error [6]=Could not resolve", "network"),
        ("[Errno 13] Permission denied: '/root/x'", "may write"),
        ("something else", "run the same command again"),
    ],
)
def test_a_failure_names_cause_and_remedy(message: str, remedy: str) -> None:
    error = storage.failure("It failed.", "s3://bucket/x", OSError(message + "\nmore"))
    assert remedy in error.details["remedy"]
    assert error.details["found"] == message.split(" (Request")[0]
    assert error.details["file"] == "s3://bucket/x"


def test_leftovers_go_but_for_what_somebody_still_writes(tmp_path: Path) -> None:
    for name in ("killed", "alive"):
        (tmp_path / f".{name}.tmp").write_text("half")
    (tmp_path / ".folder.tmp").mkdir()
    with open(tmp_path / ".alive.tmp", "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        storage.remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".alive.tmp", ".folder.tmp"]
    storage.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".folder.tmp"], "somebody else's to take over"
