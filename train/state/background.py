"""What is written beside the training: one thing after another, each from copies that the training does not touch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """A thread that writes in the order of `submit`. As a context manager it waits at the end.

    So a checkpoint is finished only after every export that came before it. What is written is held in memory once:
    whoever makes the next copy waits for the last one before.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:  # else what went wrong first is what is reported
            self.wait()

    def submit(self, write: Callable[[], None]) -> None:
        """Begins to write, once nothing else is being written.

        Raises:
            DataError: what came before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            DataError: it could not be written; the file is named.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
