"""What a filesystem refuses ends a command with a message, not with a traceback."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fusionx.cli.main import main
from fusionx.contract.errors import EXIT_STOPPED, DataError, StoppedError
from fusionx.pipelines.execution.interruption import UNIT_THREAD
from fusionx.train.__main__ import main as train_main


def run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Result:
    def command() -> None:
        raise error

    monkeypatch.setitem(main.commands, "failing", click.command("failing")(command))
    return CliRunner().invoke(main, ["failing"])


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "may write to"),
        (errno.EROFS, "may write to"),
        (errno.ENOSPC, "free some space"),
        (errno.EIO, "disk or mount"),
        (errno.EMFILE, "ulimit"),
    ],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("file", ["/runs/x/log.jsonl", None])
def test_what_the_system_refuses_is_explained(
    number: int, remedy: str, file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(OSError(number, os.strerror(number), file), monkeypatch)
    assert found.exit_code == 1
    assert remedy in found.output
    assert (file or "error: ") in found.output
    assert "Traceback" not in found.output


def test_an_error_says_what_data_holds_and_the_terminal_does_not_obey_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(DataError("A domain has no text.", found="\x1b[2Jclean\x07\u202egnp", file="a\rb"), monkeypatch)
    assert "clean" in found.output
    assert not {*"\x1b\x07\r\u202e"} & {*found.output}


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes: list[Exception] = [OSError("no number, no file"), ValueError("wrong")]
    for mistake in mistakes:
        assert run(mistake, monkeypatch).exception is mistake


def test_a_unit_that_outlasts_its_command_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waited for, the command would not end; shut down around it, Python aborts inside a native library."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    stopped = StoppedError("The command was stopped by a signal.")
    assert run(stopped, monkeypatch).exit_code == EXIT_STOPPED
    assert left == []
    ended = threading.Event()
    unit = threading.Thread(target=ended.wait, name=UNIT_THREAD, daemon=True)
    unit.start()
    run(stopped, monkeypatch)
    assert left == [EXIT_STOPPED]
    ended.set()
    unit.join()


def test_so_does_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main([str(tmp_path / "job.json")]) == 1
    assert str(tmp_path / "job.json") in capsys.readouterr().err
    (tmp_path / "job.json").write_text("{")
    assert train_main([str(tmp_path / "job.json")]) == 1
    assert "no JSON" in capsys.readouterr().err
