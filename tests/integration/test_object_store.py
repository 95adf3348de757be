"""Outputs and corpora in a bucket: a real S3 HTTP server on loopback, behind a proxy that makes trouble."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from object_store import ATTEMPTS, Proxy, refusal, reply

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files import storage
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.documents import read_corpus
from fusionx.precompute.corpus.files import check_corpus

DATA_STAGES = ("chunk", "precompute", "align")
MB = 1 << 20


def test_a_bucket_reads_lists_writes_and_deletes(bucket: str) -> None:
    folder = storage.join(bucket, "out", "logits")
    assert storage.list_files(folder) == []
    assert storage.list_tree(folder) == {}
    for name, data in (("b", b""), ("a", b"a" * 12 * MB), ("deep/c d%20#.gz", b"c")):
        path = storage.join(folder, name)
        assert not storage.exists(path)
        storage.write_bytes(path, data)
        assert storage.read_bytes(path) == data
    assert storage.list_files(folder) == ["a", "b"]
    assert storage.list_tree(bucket) == {"out/logits/a": 12 * MB, "out/logits/b": 0, "out/logits/deep/c d%20#.gz": 1}
    assert storage.list_tree(f"{folder}/b") == {"": 0}
    for _ in range(2):
        storage.delete(f"{folder}/b")
    storage.remove_leftovers(folder)
    assert storage.list_files(folder) == ["a"]
    with pytest.raises(DataError, match=f"{folder}/b"):
        storage.read_bytes(f"{folder}/b")


@pytest.mark.parametrize("size", [2 * MB, 25 * MB])
def test_an_upload_that_drops_once_is_tried_again(bucket: str, store: Proxy, size: int) -> None:
    data = os.urandom(size)
    store.drop("partNumber=1", after=MB, times=1)
    storage.write_bytes(f"{bucket}/part", data)
    assert store.dropped == 1
    assert storage.read_bytes(f"{bucket}/part") == data


@pytest.mark.parametrize(
    ("word", "after"), [("?uploads", 0), ("partNumber=1", MB), ("partNumber=3", MB), ("POST /{}/part?uploadId", 0)]
)
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_upload_that_always_drops_leaves_what_was_there(
    bucket: str, store: Proxy, word: str, after: int, old: bytes | None
) -> None:
    path, data = f"{bucket}/part", os.urandom(25 * MB)
    if old is not None:
        storage.write_bytes(path, old)
    store.drop(word.format(bucket[5:]), after, times=1000)
    with pytest.raises(DataError, match="cannot be written") as caught:
        storage.write_bytes(path, data)
    assert store.dropped == ATTEMPTS
    assert caught.value.details["file"] == path
    assert "NETWORK_CONNECTION" in caught.value.details["found"]
    assert "check the network" in caught.value.details["remedy"]
    store.forward()
    assert storage.list_tree(bucket) == ({} if old is None else {"part": len(old)})
    storage.write_bytes(path, data)
    assert storage.read_bytes(path) == data


INTERRUPTED = """
import gc
import sys
from fusionx.contract.files import storage

class Stream:
    def __init__(self, stream):
        self.close, self._stream = stream.close, stream

    def write(self, data):
        self._stream.write(data[: len(data) // 2])
        raise KeyboardInterrupt

class Store:
    def open_output_stream(self, *args, **options):
        return Stream(real[0].open_output_stream(*args, **options))

real = storage.filesystem(sys.argv[1])
storage.filesystem = lambda path: (Store(), real[1])
try:
    storage.write_bytes(sys.argv[1], bytes(25 << 20))
except KeyboardInterrupt:
    gc.collect()
    print(real[0].get_file_info(real[1]).type.name)
"""


def test_an_upload_that_is_interrupted_never_shows(bucket: str) -> None:
    """Neither at once nor when the process ends."""
    command = [sys.executable, "-c", INTERRUPTED, f"{bucket}/part"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "NotFound"), done.stderr
    assert storage.list_tree(bucket) == {}


def test_a_read_that_drops_is_tried_again_a_bounded_number_of_times(bucket: str, store: Proxy) -> None:
    path, data = f"{bucket}/part", os.urandom(5 * MB)
    storage.write_bytes(path, data)
    store.drop("GET", after=MB, times=ATTEMPTS - 1, reply=True)
    assert storage.read_bytes(path) == data
    store.drop("GET", after=MB, times=1000, reply=True)
    with pytest.raises(DataError, match="cannot be read") as caught:
        storage.read_bytes(path)
    assert store.dropped == ATTEMPTS
    assert caught.value.details["file"] == path


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_refused_credentials_are_named_at_once(bucket: str, store: Proxy, code: str) -> None:
    store.answer("", refusal("403 Forbidden", code))
    started = time.monotonic()
    for call in (storage.exists, storage.list_files, storage.read_bytes, lambda path: storage.write_bytes(path, b"x")):
        with pytest.raises(DataError, match=f"{bucket}/part") as caught:
            call(f"{bucket}/part")
        assert "AWS_ACCESS_KEY_ID" in caught.value.details["remedy"], caught.value
    assert time.monotonic() - started < 10


CALLS = {
    "PUT": lambda path: storage.write_bytes(path, b"x"),
    "GET": storage.read_bytes,
    "list-type": storage.list_files,
}


@pytest.mark.parametrize(
    ("status", "code"), [("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown")]
)
@pytest.mark.parametrize("word", CALLS)
def test_a_store_that_is_out_of_order_is_asked_again_a_bounded_number_of_times(
    bucket: str, store: Proxy, status: str, code: str, word: str
) -> None:
    path = f"{bucket}/part"
    storage.write_bytes(path, b"x" * 4096)  # to read less than an error is long is no error that the client repeats
    store.answer(word, refusal(status, code), times=ATTEMPTS - 1)
    CALLS[word](path)
    assert store.answered == ATTEMPTS - 1
    store.answer(word, refusal(status, code))
    with pytest.raises(DataError) as caught:
        CALLS[word](path)
    assert store.answered == ATTEMPTS
    assert caught.value.details["file"] == path
    assert "wait" in caught.value.details["remedy"], caught.value
    store.forward()
    assert storage.read_bytes(path) in (b"x", b"x" * 4096)


def test_a_store_that_stalls_is_given_up_soon(bucket: str, store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_STALL_SECONDS", 1)
    monkeypatch.setenv("AWS_REGION", "us-east-1")  # another client than the one that is kept
    path = f"{bucket}/part"
    storage.write_bytes(path, b"x")
    store.answer("GET", "", times=1)
    assert storage.read_bytes(path) == b"x"
    store.answer("GET", "")
    started = time.monotonic()
    with pytest.raises(DataError, match="cannot be read") as caught:
        storage.read_bytes(path)
    assert time.monotonic() - started < 20
    assert "check the network" in caught.value.details["remedy"]


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(DataError, match="create the bucket") as caught:
        storage.write_bytes(f"{bucket}-not/x", b"x")
    assert caught.value.details["file"] == f"{bucket}-not/x"
    assert not storage.exists(f"{bucket}-not/x")
    with pytest.raises(ConfigError, match="does not exist"):
        check_corpus(CorpusConfig(path=f"{bucket}-not/corpus"))


def test_a_store_that_nobody_answers_for_is_named_soon(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}/")
    started = time.monotonic()
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL") as caught:
        storage.exists(f"{bucket}/x")
    assert "connect" in caught.value.details["found"]
    assert time.monotonic() - started < 30


def write_corpus(base: str) -> None:
    rows = [{"text": f"text {i} " + "x" * 3000, "meta": {"set": "ab"[i % 2]}} for i in range(2000)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    storage.write_bytes(f"{base}/train.jsonl", lines)
    storage.write_bytes(f"{base}/validation-0.jsonl.gz", gzip.compress(lines))
    storage.write_bytes(f"{base}/test/a.jsonl.zst", zstandard.compress(lines))


def test_a_corpus_in_a_bucket_reads_as_a_local_one(bucket: str, store: Proxy, tmp_path: Path) -> None:
    write_corpus(str(tmp_path))
    write_corpus(f"{bucket}/corpus")
    expected = list(read_corpus(CorpusConfig(path=str(tmp_path), domain="meta.set")))
    config = CorpusConfig(path=f"{bucket}/corpus", domain="meta.set")
    assert list(read_corpus(config)) == expected
    store.drop(f"GET /{bucket[5:]}/corpus/train.jsonl", after=MB, times=1, reply=True)
    assert list(read_corpus(config)) == expected
    assert store.dropped == 1
    store.drop(f"GET /{bucket[5:]}/corpus/train.jsonl", after=MB, times=1000, reply=True)
    with pytest.raises(DataError, match=r"corpus/train\.jsonl, after line 0") as caught:
        list(read_corpus(config))
    assert "check the network" in caught.value.details["remedy"]


def hashes(bucket: str, *folders: str) -> dict[str, str]:
    """SHA-256 of every part and manifest below the folders of the run."""
    return {
        f"{folder}/{name}": hashlib.sha256(storage.read_bytes(f"{bucket}/run/{folder}/{name}")).hexdigest()
        for folder in folders
        for name in storage.list_tree(f"{bucket}/run/{folder}")
        if name.endswith("manifest.json") or name.rsplit("/", 1)[-1].startswith("part-")
    }


def local_hashes(folder: Path, part_hashes: Any) -> dict[str, str]:
    wanted = ("chunks/", "logits/", "aligned/")
    return {name: value for name, value in part_hashes(folder).items() if name.startswith(wanted)}


def test_the_road_to_a_bucket_gives_the_bytes_of_a_local_run(
    world: Any, local_run: Path, bucket: str, part_hashes: Any
) -> None:
    expected = local_hashes(local_run, part_hashes)
    output, folders = f"{bucket}/run", ("chunks", "logits", "aligned")
    write_path = f"{output}/corpus"
    for file in (world.root / "corpus").iterdir():
        storage.write_bytes(f"{write_path}/{file.name}", file.read_bytes())
    for stage in DATA_STAGES:
        world.run(output, stage, f"corpus.path={write_path}")
    assert hashes(bucket, *folders) == expected
    assert {"config.json", "timings.json"} <= set(storage.list_files(output))
    assert storage.exists(f"{output}/aligned/target/mined/coder/vocab_map.parquet")

    status = filter(None, world.here(output, "status").stdout.splitlines())
    data = [line for line in status if line.split()[0] not in ("train", "eval")]
    assert len(data) == 11
    assert all(" complete " in line for line in data), data

    part = f"{output}/logits/coder/part-00000.parquet"
    storage.write_bytes(part, storage.read_bytes(part)[:-100])
    lines = {line.split()[0]: line for line in world.here(output, "status").stdout.splitlines() if line}
    assert "1 damaged" in lines["precompute/coder"]
    assert "[precompute/coder] complete: 1 parts made" in world.run(output, "precompute")
    for stage in DATA_STAGES:
        assert " complete: 0 parts made" in world.run(output, stage)
    assert hashes(bucket, *folders) == expected


def test_parts_whose_uploads_drop_are_named_and_the_next_run_completes(
    world: Any, local_run: Path, bucket: str, store: Proxy, part_hashes: Any
) -> None:
    output = f"{bucket}/run"
    world.run(output, "chunk")
    store.drop("coder/part-00001.parquet?partNumber", after=2000, times=1000)
    done = world.here(output, "precompute")
    assert done.returncode == 1
    for word in (f"{output}/logits/coder/part-00001.parquet", "NETWORK_CONNECTION", "the others are kept"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    store.forward()
    made = hashes(bucket, "logits")
    expected = {k: v for k, v in local_hashes(local_run, part_hashes).items() if k.startswith("logits/")}
    missing = {"logits/coder/part-00001.parquet", "logits/coder/manifest.json"}
    assert {name for name in expected if name not in made} >= missing
    assert made.items() <= expected.items()
    assert "[precompute/coder] complete: 1 parts made" in world.run(output, "precompute")
    assert hashes(bucket, "logits") == expected


EMPTY = """<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Name>{0}</Name><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"""


def test_listings_that_lag_behind_cost_work_and_no_bytes(
    world: Any, local_run: Path, bucket: str, store: Proxy, part_hashes: Any
) -> None:
    output, folders = f"{bucket}/run", ("chunks", "logits")
    for stage in ("chunk", "precompute"):
        world.run(output, stage)
    expected = {k: v for k, v in local_hashes(local_run, part_hashes).items() if k.startswith(folders)}
    store.answer("list-type", reply("200 OK", EMPTY.format(bucket[5:])))
    world.run(output, "precompute")
    assert store.answered
    store.forward()
    assert hashes(bucket, *folders) == expected


def test_credentials_that_expire_half_way_end_the_command_and_new_ones_go_on(
    world: Any, local_run: Path, bucket: str, store: Proxy, part_hashes: Any
) -> None:
    output = f"{bucket}/run"
    world.run(output, "chunk")
    store.answer("/logits/", refusal("403 Forbidden", "ExpiredToken"), skip=25)
    done = world.here(output, "precompute")
    assert done.returncode == 1, done.stderr
    for word in ("AWS_ACCESS_KEY_ID", f"{output}/logits"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    store.forward()
    made = hashes(bucket, "logits")
    assert made, "some were there"
    world.run(output, "precompute")
    found = hashes(bucket, "logits")
    assert found == {k: v for k, v in local_hashes(local_run, part_hashes).items() if k.startswith("logits/")}
    assert made.items() <= found.items()


def test_the_command_line_says_what_is_wrong_with_a_bucket(world: Any, bucket: str) -> None:
    done = world.cli(f"{bucket}-not/run", "chunk")
    assert done.returncode == 1, done.stderr
    for word in ("create the bucket", f"{bucket}-not/run/config.json"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_uri_is_a_local_folder(world: Any, local_run: Path, tmp_path: Path, part_hashes: Any) -> None:
    world.run(f"file://{tmp_path}/out", "chunk", f"corpus.path=file://{world.root}/corpus")
    assert part_hashes(tmp_path / "out" / "chunks") == part_hashes(local_run / "chunks")
