"""A real S3 HTTP server on loopback, behind a proxy that makes trouble."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs
import pytest

ATTEMPTS = 3
METHODS = {b"GET", b"PUT", b"POST", b"HEAD", b"DELETE"}


class Proxy:
    """Forwards to a server on loopback, and makes trouble when told to.

    `drop` cuts a connection, `times` times, once `after` bytes of a request whose first line holds `word` (or of the
    reply to it) have passed. `answer` gives this text instead of the server's, `times` times, to requests whose first
    line holds `word`, once `skip` of these have passed; where the text is empty it is silent until the client goes.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        self.forward()

    def forward(self) -> None:
        self.drop("", 0, times=0)
        self.answer("", "", times=0)

    def answer(self, word: str, text: str, times: int = 1 << 30, skip: int = 0) -> None:
        self._asked, self._text, self._skip, self._answers = word.encode(), text.encode(), skip, times
        self.answered = 0

    def _is_answered(self, line: bytes) -> bool:
        if not self._answers or self._asked not in line:
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._answers, self.answered = self._answers - 1, self.answered + 1
        return True

    def drop(self, word: str, after: int, times: int, reply: bool = False) -> None:
        self._word, self._after, self._left, self._reply = word.encode(), after, times, reply
        self.dropped = 0

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            counter: dict[str, int | None] = {"bytes": None}
            for source, sink, reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, reply, counter), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, reply: bool, counter: dict[str, int | None]) -> None:
        try:
            while data := source.recv(1 << 16):
                if not reply and data.split(b" ", 1)[0] in METHODS:
                    line = data.split(b"\r\n", 1)[0]
                    if self._is_answered(line):
                        source.sendall(self._text)
                        while not self._text and source.recv(1 << 16):
                            pass
                        break
                    counter["bytes"] = 0 if self._left and self._word in line else None
                passed = counter["bytes"]
                if reply == self._reply and passed is not None:
                    if passed + len(data) > self._after and self._left:
                        self._left, self.dropped = self._left - 1, self.dropped + 1
                        sink.sendall(data[: self._after - passed])
                        break
                    counter["bytes"] = passed + len(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def running_store() -> Iterator[Proxy]:
    """The server's proxy, which AWS_ENDPOINT_URL names meanwhile."""
    pytest.importorskip("moto.server", exc_type=ImportError)
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
        yield proxy
    server.stop()


@contextmanager
def fresh_bucket(store: Proxy) -> Iterator[str]:
    """A new, empty one."""
    name = f"bucket-{uuid.uuid4().hex}"
    pafs.S3FileSystem(endpoint_override=store.url, region="us-east-1", allow_bucket_creation=True).create_dir(name)
    yield f"s3://{name}"
    store.forward()


def reply(status: str, body: str) -> str:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n{body}"


def refusal(status: str, code: str) -> str:
    return reply(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>")
