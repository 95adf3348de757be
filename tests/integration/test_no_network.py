"""Nothing asks the network unless a config names a hub id or a remote path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import fusionx.contract.models.hub as hub
from fusionx.contract.files.storage import plain
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import open_pipeline
from fusionx.pipelines.training.training_jobs import planned_jobs
from fusionx.train.loop.trainer import run_job

_asked: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _asked is None or not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _asked.append(f"{event} {arguments[0]}")
    elif event in ("socket.connect", "socket.sendto") and isinstance(
        arguments[1], tuple
    ):  # of a Unix socket it is text
        _asked.append(f"{event} {arguments[1]}")


sys.addaudithook(_audit)  # cannot be taken away again: it looks on only within `watched`


@contextmanager
def watched() -> Iterator[list[str]]:
    """What this process asks of the network."""
    global _asked
    _asked = []
    try:
        yield _asked
    finally:
        _asked = None


def test_the_watch_sees_a_connection() -> None:
    import socket

    with watched() as asked, socket.socket() as one, pytest.raises(OSError, match=r"."):
        one.connect(("127.0.0.1", 1))
    assert asked == ["socket.connect ('127.0.0.1', 1)"]


def test_a_whole_run_over_local_folders_asks_nobody(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process from the first stage to the report, with the hub allowed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.is_offline.cache_clear()
    with watched() as asked, open_pipeline(world.config, [f"output={tmp_path}", "train.methods=[fusionx]"]) as pipeline:
        pipeline.chunk()
        pipeline.precompute()
        pipeline.align()
        for job in planned_jobs(pipeline.config, Layout(plain(pipeline.config.output))):
            run_job(job)
        result = pipeline.eval()
    hub.is_offline.cache_clear()
    assert result.report_path
    assert asked == []
