"""What is no folder: a path with a slip in it, an id of the hub, and a hub that does not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import fusionx.contract.models.hub as hub
from fusionx.contract.errors import ConfigError
from fusionx.contract.models.hub import is_offline
from fusionx.contract.models.place import loadable


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's clients as they are without HF_HUB_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    is_offline.cache_clear()
    yield
    is_offline.cache_clear()


@pytest.mark.parametrize("path", ["{folder}/nothing", "a/b/c", "./nothing", "models/", "~/there/is/none"])
def test_what_cannot_be_an_id_is_a_folder_that_is_not_there(path: str, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ConfigError, match="no such model folder") as caught:
        loadable(path.format(folder=tmp_path))
    assert "Repo id" not in str(caught.value)
    if "{folder}" in path:
        assert "holds my-model" in caught.value.details["found"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError, match=r"model\.bin is a file"):
        loadable(tmp_path / "model.bin")


def test_a_folder_may_be_written_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert loadable("~/model") == str(tmp_path / "model")


def test_offline_an_id_that_is_not_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be asked") as caught:
        loadable("nobody/nothing")
    assert "hf download nobody/nothing" in caught.value.details["remedy"]
    commit = "0" * 40
    snapshot = tmp_path / "models--nobody--nothing" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert loadable("nobody/nothing", commit) == "nobody/nothing"


def test_a_hub_that_does_not_answer_is_asked_once(
    asked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert is_offline()
        assert is_offline()
    assert capsys.readouterr().err.count("only its cache is used") == 1
    assert constants.is_offline_mode(), "its clients do not try again and again"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_resolver_that_waits_is_not_waited_for(
    asked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system's does for minutes, whose name servers are out of reach."""
    reached = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: reached.wait() and [])
    monkeypatch.setattr(hub, "_SECONDS", 0.05)
    assert is_offline()
    reached.set()
    assert "nothing came in 0.1 s" in capsys.readouterr().err


def test_any_answer_will_do(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert not is_offline()
        thread.join()
    assert not constants.is_offline_mode()
