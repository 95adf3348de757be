"""Files behind any path: local, `file://`, `s3://`, `gs://`, and whatever else pyarrow or fsspec knows.

Only what the contract needs: read, list, delete, and writes that become visible whole or not at all. A connection that
drops is tried again by the store's own client, a bounded number of times; what is left is an error that names the
path, the cause and the remedy.

S3 is set up from the environment by AWS's own names: the credentials (or AWS_PROFILE, or the machine's role),
AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 (MinIO, Ceph and others), AWS_REGION, AWS_MAX_ATTEMPTS (5), AWS_CA_BUNDLE.
A public bucket is read without credentials as `s3://anonymous@bucket/...`, likewise with `gs://`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from fusionx.contract.errors import ConfigError, DataError

_BUCKETS = ("s3", "gs", "gcs")
_ANONYMOUS = "anonymous@"
_ATTEMPTS = "5"
"""Of one request to S3, about ten seconds in all when the connection drops each time."""
_CONNECT_SECONDS, _STALL_SECONDS = 5, 20
_PIECE = 64 << 20
"""Bytes that are read at once of a file that may be larger than memory."""
_GCS_RETRY_LIMIT = timedelta(seconds=30)

_AGAIN = "run the same command again; finished parts are kept"
_REMEDIES = {
    "NO_SUCH_BUCKET|bucket does not exist|^Bucket .* not found": "create the bucket, or correct its name",
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2": (
        "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS) and what they allow on this bucket"
    ),
    "HTTP status 301|PermanentRedirect": "set AWS_REGION to the bucket's region",
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|CURL|curl": f"check the network and AWS_ENDPOINT_URL, then {_AGAIN}",
    "SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|HTTP status 5": (
        f"wait until the store is in order, or less is asked of it, then {_AGAIN}"
    ),
    "No space left|quota exceeded": f"free some space, then {_AGAIN}",
    "Permission denied|Read-only|not permitted": "choose a folder that you may write to",
    "Input/output error|Stale file handle|Transport endpoint": f"look after the disk or mount, then {_AGAIN}",
    "Too many open files": "raise the limit of open files (ulimit -n)",
}
"""What helps, by a pattern of the filesystem's own message; the first one that is found counts."""
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENFILE}


def plain(path: str | Path) -> str:
    """`path` with `~` and `file://` turned into a local path; other URIs stay as they are.

    Raises:
        ConfigError: a `file://` URI of another machine.
    """
    text = str(path)
    if not text.startswith("file://"):
        return os.path.expanduser(text)
    local = unquote(text.removeprefix("file://").removeprefix("localhost"))
    if not local.startswith("/"):
        raise ConfigError("A file URI names no absolute path.", found=text, expected="file:///folder/...")
    return local


def is_local(path: str | Path) -> bool:
    return "://" not in plain(path)


def filesystem(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem behind `path` and the path inside it.

    Raises:
        ConfigError: the scheme is unknown, or the URI carries options or credentials.
        DataError: the store cannot be reached.
    """
    text = plain(path)
    scheme, _, inner = text.partition("://")
    if not inner:
        return pafs.LocalFileSystem(), os.path.abspath(text)
    if scheme in _BUCKETS:
        return _bucket_filesystem(path, scheme, inner), inner.removeprefix(_ANONYMOUS)
    try:
        return pafs.FileSystem.from_uri(text)
    except ValueError:
        return _fsspec_filesystem(text)


def _bucket_filesystem(path: str | Path, scheme: str, inner: str) -> pafs.FileSystem:
    bucket = inner.removeprefix(_ANONYMOUS).split("/")[0]
    if "?" in inner or "@" in bucket or not bucket:
        raise ConfigError(
            "A bucket's URI carries more than a path, or none.",
            found=f"{scheme}://{inner.split('@')[-1]}",
            expected=f"{scheme}://bucket/folder",
            remedy="set the endpoint and the credentials in the environment "
            "(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        )
    anonymous = inner.startswith(_ANONYMOUS)
    with explained(path, "reached"):
        if scheme != "s3":
            return _gcs(anonymous)
        return _s3(bucket, anonymous, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache
def _gcs(anonymous: bool) -> pafs.FileSystem:
    return pafs.GcsFileSystem(anonymous=anonymous, retry_time_limit=_GCS_RETRY_LIMIT)


@lru_cache
def _s3(bucket: str, anonymous: bool, settings: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    """A client is kept, because it holds connections and may have asked AWS for the bucket's region.

    An upload is opened at once, never delayed until the first part is full: pyarrow would then answer a failure to open
    it by putting up what it holds so far as the whole object.
    """
    aws = dict(settings)
    endpoint = aws.get("AWS_ENDPOINT_URL_S3") or aws.get("AWS_ENDPOINT_URL")
    region = aws.get("AWS_REGION") or aws.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"tls_ca_file_path": aws["AWS_CA_BUNDLE"]} if "AWS_CA_BUNDLE" in aws else {}
    return pafs.S3FileSystem(
        anonymous=anonymous,
        endpoint_override=endpoint and endpoint.rstrip("/"),
        region=region or ("us-east-1" if endpoint else pafs.resolve_s3_region(bucket)),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_STALL_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=int(aws.get("AWS_MAX_ATTEMPTS", _ATTEMPTS))),
        allow_delayed_open=False,
        **options,
    )


def _fsspec_filesystem(text: str) -> tuple[pafs.FileSystem, str]:
    try:
        import fsspec  # only for schemes that pyarrow itself does not know

        handler, inner = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "A path's scheme is unknown.",
            found=f"{text} ({error})",
            expected="a local path, file://, s3://, gs://, or a scheme of an installed fsspec filesystem",
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(handler)), inner


@contextmanager
def explained(path: str | Path, done: str) -> Iterator[None]:
    """Gives a filesystem's error the path and a remedy; `done` is what could not be done to the file.

    Raises:
        DataError: instead of any OSError or error of pyarrow.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise failure(f"A file cannot be {done}.", path, error) from None


def failure(problem: str, path: object, error: Exception, otherwise: str = _AGAIN) -> DataError:
    """The error to report for `error`; `otherwise` is the remedy where its text suggests no better one."""
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].split(" (Request ID")[0]
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if re.search(sign, cause)), otherwise)
    return DataError(problem, file=path, found=cause, remedy=remedy)


def told_by_the_system(error: OSError) -> DataError | None:
    """For where commands end: a filesystem's error that nobody explained; None where it may be a mistake of ours."""
    if error.filename is None and error.errno not in _OF_THE_MACHINE:
        return None
    problem = "A file or folder cannot be used." if error.filename is not None else "The machine cannot go on."
    return failure(problem, error.filename, error)


def join(base: str | Path, *parts: str) -> str:
    """`base/part/...`, for local paths and URIs alike."""
    return "/".join([str(base).rstrip("/"), *parts])


def exists(path: str | Path) -> bool:
    fs, inner = filesystem(path)
    with explained(path, "looked up"):
        return fs.get_file_info(inner).type != pafs.FileType.NotFound


def list_files(folder: str | Path) -> list[str]:
    """Names of the plain files directly in `folder`, sorted; empty when there is no such folder."""
    fs, inner = filesystem(folder)
    with explained(folder, "listed"):
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)


def list_tree(root: str | Path) -> dict[str, int]:
    """Bytes of every file at any depth below `root`, by path relative to it; a `root` that is a file stands under ''.

    In the order of the paths' parts; empty when there is nothing.
    """
    fs, inner = filesystem(root)
    with explained(root, "listed"):
        whole = fs.get_file_info(inner)
        if whole.type == pafs.FileType.File:
            return {"": whole.size}
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    base = inner.strip("/") + "/"
    sizes = {i.path.strip("/").removeprefix(base): i.size for i in infos if i.type == pafs.FileType.File}
    return dict(sorted(sizes.items(), key=lambda item: item[0].split("/")))


def open_file(path: str | Path) -> pa.NativeFile:
    """The file for reading at any place. A store answers each read with one request, so readers ask for much at once.

    Raises:
        DataError: there is no such file, or the store cannot be reached.
    """
    fs, inner = filesystem(path)
    with explained(path, "read"):
        try:
            return fs.open_input_file(inner)
        except FileNotFoundError:
            raise DataError("A file is missing.", file=path, remedy="run the stage that writes it") from None


def read_bytes(path: str | Path) -> bytes:
    """The whole file.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    with open_file(path) as stream, explained(path, "read"):
        return stream.read()


def write_bytes(path: str | Path, data: bytes | pa.Buffer) -> None:
    """Writes `data` so that readers see the old file or the new one, never a part of it.

    Locally: temporary name, fsync, rename, fsync of the folder. An object store shows an upload only once it is
    complete; one that was cut off stays invisible, and a lifecycle rule of the bucket (abort incomplete multipart
    uploads) frees its space.

    Raises:
        DataError: it cannot be written; the old file, or none, is there.
    """
    fs, inner = filesystem(path)
    with explained(path, "written"):
        if isinstance(fs, pafs.LocalFileSystem):
            _write_local(Path(inner), data)
        elif isinstance(fs, pafs.PyFileSystem):
            fs.handler.fs.pipe_file(inner, bytes(data))
        else:
            _upload(fs, inner, data)


def download(path: str | Path, local: Path) -> None:
    """Brings a file here, however large, whole or not at all.

    Raises:
        DataError: there is no such file, or it cannot be read or written.
    """
    with open_file(path) as stream, explained(path, "fetched"), _replacing(local) as file:
        shutil.copyfileobj(stream, file, _PIECE)


def upload(local: Path, path: str | Path) -> None:
    """Puts a local file, however large, at `path`, as `write_bytes` does."""
    with explained(local, "read"):
        data = pa.memory_map(str(local)).read_buffer() if local.stat().st_size else b""
    write_bytes(path, data)


def _upload(fs: pafs.FileSystem, inner: str, data: bytes | pa.Buffer) -> None:
    """All of `data` in one piece: pyarrow then has everything, or knows which part failed and does not complete it."""
    stream = fs.open_output_stream(inner, compression=None)  # by default a name that ends in .gz would be compressed
    try:
        stream.write(data)
    except BaseException:
        # An interrupt. Closing the stream would complete the upload with what it holds, and so would its last
        # reference as it goes; pyarrow has no way to abort. So one reference is never given back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise
    stream.close()


def _write_local(target: Path, data: bytes | pa.Buffer) -> None:
    with _replacing(target) as stream:
        stream.write(data)


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of `target` once it is on the disk; after an error it is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _temporary(target)
    with open(descriptor, "wb") as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    flush_names(target.parent)


def _temporary(target: Path) -> tuple[Path, int]:
    """An empty file beside `target`, locked, and its descriptor.

    Its name is always the same, so that a killed writer's file is taken over by the next one and none is left behind.
    Only while somebody writes it, or where nobody can know (a filesystem without locks), it is a new name.
    """
    path = target.with_name(f".{target.name}.tmp")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # of another user
        descriptor = -1
    if descriptor >= 0:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):  # else it was renamed before it was locked
                os.truncate(descriptor, 0)
                return path, descriptor
        except OSError:
            pass
        os.close(descriptor)
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, descriptor


def flush_names(folder: Path) -> None:
    """Puts on the disk which files a local folder holds: what was renamed stays so when the machine loses its power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a filesystem that has no such thing
            raise
    finally:
        os.close(descriptor)


def delete(path: str | Path) -> None:
    """Takes the file away if it is there."""
    fs, inner = filesystem(path)
    with explained(path, "deleted"):
        try:
            fs.delete_file(inner)
        except FileNotFoundError:
            return


def delete_folder(path: str | Path, *marks: str) -> None:
    """Takes away all below a folder, or a file; in a store files named as one of `marks` first."""
    fs, inner = filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        shutil.rmtree(inner, ignore_errors=True)
        return
    for name in sorted(list_tree(path), key=lambda name: name.rsplit("/", 1)[-1] not in marks):
        delete(join(path, name) if name else path)


def remove_leftovers(folder: str | Path) -> None:
    """Deletes temporary files that a killed writer left in a local `folder`, and none that somebody still writes; a
    store keeps none under any name."""
    fs, inner = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem) and os.path.isdir(inner):
        for leftover in Path(inner).glob(".*.tmp"):
            if leftover.is_file():  # folders are `atomic_folder`'s
                _remove_unless_written(leftover)


def _remove_unless_written(path: Path) -> None:
    try:
        with open(path, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)  # while it is locked: nobody takes it over in between
    except (BlockingIOError, FileNotFoundError):
        return
    except OSError:  # a filesystem without locks, where nobody can know
        path.unlink(missing_ok=True)
