"""Lets trainings and evaluations of a run whose `output` is an object store work in a copy on this machine.

What writes models and checkpoints knows local files only, and renames folders, which a store cannot. So the inputs and
whatever of the outputs is there are fetched first, and what is made is sent while the work goes on and at its end. The
copy lies in the cache of the machine and may be deleted between two commands; on another machine, the same command
fetches and goes on.

A store shows each file whole or not at all, but no folder. Therefore
- a checkpoint is sent under its own name, with the log and the best model as they were, and its mark last;
- a finished training is sent with its result last, which takes back the checkpoints;
- of every other folder its seal is sent last, and taken back before anything in it changes.
Whoever reads asks for mark, result or seal first, as everywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from fusionx.contract.config import digest_of
from fusionx.contract.errors import DamageError, FusionXError
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.files.cache import cache_folder
from fusionx.contract.files.lock import SAVING_SECONDS, folder_lock
from fusionx.contract.files.sealed import FOLDER_SEAL, check_folder
from fusionx.contract.files.storage import delete_folder, download, is_local, join, list_tree, read_bytes, upload
from fusionx.contract.shards.manifest import MANIFEST_NAME
from fusionx.pipelines.layout import Layout
from fusionx.train.state.result import EXPORTS, LOG, RESULT

_SECONDS = 1.0
"""Between two looks for something to send."""
_JOB, _MARK, _CARD = "job.json", "state.json", "README.md"
_STEPS, _BESIDE = "checkpoints", "training"
"""The second: below a checkpoint in the store, what of its training goes with it."""
_TRIES = 3


@contextmanager
def local_copy(
    layout: Layout, inputs: Sequence[str], outputs: Sequence[str], results: Sequence[str] = ()
) -> Iterator[Layout]:
    """The layout to work in: `layout` itself where it is local.

    Args:
        inputs: folders of parts, which are fetched. outputs: folders and files, which are fetched and sent, trainings
            by the rules above. results: those that are made anew, and sent once the block is done.

    Raises:
        DataError: the store cannot be read or written; what was made stays in the copy, and the same command sends it.
    """
    if is_local(layout.root):
        yield layout
        return
    here = Layout(str(cache_folder("runs") / digest_of(layout.root)), address=layout.root)
    with folder_lock(Path(here.root), f"command on {layout.root}", wait=SAVING_SECONDS):
        print(f"[store] working in {here.root}, a copy of {layout.root}", file=sys.stderr, flush=True)
        copy = _Copy(layout, Path(here.root))
        for folder in map(copy.below, inputs):
            copy.fetch_parts(folder)
        for path in map(copy.below, outputs):
            copy.fetch(path)
        with copy.sending([*map(copy.below, outputs)]):
            yield here
        copy.send([*map(copy.below, results)])


class _Copy:
    """A run's folder in the store, and the same on this machine."""

    def __init__(self, layout: Layout, here: Path) -> None:
        self._store = layout.root
        self._here = here
        self._trainings = self.below(layout.trainings)
        self._sent: dict[str, tuple[int, int]] = {}
        """Of what the store holds as it is here: size and time of change, by path below both."""

    def below(self, path: str) -> str:
        """A path of the store relative to the run's folder; so all paths are told here."""
        return path.removeprefix(self._store).strip("/")

    def fetch_parts(self, folder: str) -> None:
        """An output of parts: all of it where its manifest is another one, else what is missing; the manifest last."""
        there = list_tree(join(self._store, folder))
        if MANIFEST_NAME not in there:  # whoever reads it says so
            return
        same = self._same(f"{folder}/{MANIFEST_NAME}")
        for name, size in there.items():
            local = self._here / folder / name
            if name != MANIFEST_NAME and not (same and local.is_file() and local.stat().st_size == size):
                self._fetch(f"{folder}/{name}")
        self._fetch(f"{folder}/{MANIFEST_NAME}")

    def fetch(self, path: str) -> None:
        """A file, or everything below a folder."""
        there = list_tree(join(self._store, path))
        if path != self._trainings:
            for name in there:
                self._fetch(f"{path}/{name}" if name else path)
            return
        finished = {name.removesuffix(f"/{RESULT}") for name in there if name.endswith(f"/{RESULT}")}
        marks = (re.fullmatch(rf"(.+)/{_STEPS}/step-\d+/{_MARK}", name) for name in there)
        for training in finished:
            self._fetch_finished(f"{path}/{training}", _below(training, there))
        for training in {mark[1] for mark in marks if mark} - finished:
            self._fetch_checkpoint(f"{path}/{training}", _below(training, there))

    def _fetch_finished(self, path: str, there: Sequence[str]) -> None:
        """What the result vouches for, unless the same result is here, and then the result."""
        names = [name for name in there if not name.startswith(f"{_STEPS}/") and name != RESULT]
        same = self._same(f"{path}/{RESULT}")
        if not same:
            (self._here / path / RESULT).unlink(missing_ok=True)
        for name in (*names, RESULT):
            local = self._here / path / name
            if same and local.is_file() and local.name != _CARD:
                self._sent[f"{path}/{name}"] = _state(local)
            else:
                self._fetch(f"{path}/{name}")

    def _fetch_checkpoint(self, path: str, there: Sequence[str]) -> None:
        """The newest whole checkpoint with what went with it, unless the training is here as far or further."""
        local, newest = self._here / path, max(_whole_steps(there))
        if (local / RESULT).is_file() or any(mark.parent.name >= newest for mark in local.glob(f"{_STEPS}/*/{_MARK}")):
            return
        step = f"{path}/{_STEPS}/{newest}"
        names = _below(f"{_STEPS}/{newest}", there)
        beside = _below(_BESIDE, names)
        if best := _below("best", beside):
            with atomic_folder(local / "best") as made:
                for name in best:
                    download(join(self._store, step, _BESIDE, "best", name), made / name)
        for name in (name for name in beside if "/" not in name):
            download(join(self._store, step, _BESIDE, name), local / name)
        own = [name for name in names if not name.startswith(f"{_BESIDE}/")]
        for name in sorted(own, key=lambda name: name == _MARK):
            self._fetch(f"{step}/{name}")

    def _same(self, path: str) -> bool:
        local = self._here / path
        return local.is_file() and local.read_bytes() == read_bytes(join(self._store, path))

    def _fetch(self, path: str) -> None:
        local = self._here / path
        download(join(self._store, path), local)
        self._sent[path] = _state(local)

    @contextmanager
    def sending(self, outputs: Sequence[str]) -> Iterator[None]:
        """Sends what appears while the block runs, and all of it at its end, however that comes."""
        ended = threading.Event()

        def keep_sending() -> None:
            while not ended.wait(_SECONDS):
                try:
                    self.send(outputs)
                except FusionXError as error:
                    print(f"[store] tried again soon. {error}", file=sys.stderr, flush=True)

        thread = threading.Thread(target=keep_sending, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            _end(thread, ended)
            with suppress(FusionXError):  # what broke the work off is what is told; the copy has everything
                self.send(outputs)
            raise
        _end(thread, ended)
        self.send(outputs)

    def send(self, paths: Sequence[str]) -> None:
        for path in paths:
            if path == self._trainings:
                for job in sorted(self._here.glob(f"{path}/**/{_JOB}")):
                    self._send_training(job.parent.relative_to(self._here).as_posix())
            else:
                self._send_below(path)

    def _send_training(self, path: str) -> None:
        local = self._here / path
        if not (local / RESULT).is_file():
            self._send_checkpoint(path)
        elif not self._is_sent(f"{path}/{RESULT}"):
            self._take_back(f"{path}/{RESULT}")
            for name in (*EXPORTS, LOG, _JOB, RESULT):
                self._send_below(f"{path}/{name}")
            self._take_back(f"{path}/{_STEPS}")
        else:  # the report adds to the cards
            for name in EXPORTS:
                self._send_below(f"{path}/{name}/{_CARD}")

    def _send_checkpoint(self, path: str) -> None:
        """The newest, if it is not there, with the log and the best model of now; then the store lets go those that are
        gone here."""
        local = self._here / path
        steps = sorted(mark.parent for mark in local.glob(f"{_STEPS}/step-*/{_MARK}"))
        if not steps or self._is_sent(f"{path}/{_STEPS}/{steps[-1].name}/{_MARK}"):
            return
        self._take_back(f"{path}/{RESULT}")  # of a training that this one is carried out instead of
        step = f"{path}/{_STEPS}/{steps[-1].name}"
        with TemporaryDirectory(dir=self._here, prefix=".sending-") as place:
            frozen = Path(place) / "step"
            there = [name for name in ("best", LOG, _JOB) if (local / name).exists()]
            beside = {frozen / _BESIDE / name: local / name for name in there}
            if not all(_freeze(source, into) for into, source in {frozen: steps[-1], **beside}.items()):
                return  # deleted or replaced meanwhile: there is a newer one soon
            state = _state(frozen / _MARK)
            for name in _files_of(frozen, last=_MARK):
                upload(frozen / name, join(self._store, step, name))
            self._sent[f"{step}/{_MARK}"] = state
        for old in _whole_steps(list_tree(join(self._store, path))) - {kept.name for kept in steps}:
            self._take_back(f"{path}/{_STEPS}/{old}")

    def _send_below(self, path: str) -> None:
        """A file, or a folder, of a sealed one the seal last; nothing where there is neither."""
        local = self._here / path
        if local.is_file():
            self._send_file(path)
        if not local.is_dir():
            return
        names = _files_of(local, last=FOLDER_SEAL)
        seal = f"{path}/{FOLDER_SEAL}"
        if FOLDER_SEAL in names and not self._is_sent(seal):
            there = list_tree(join(self._store, path))
            if FOLDER_SEAL in there and self._same(seal) and set(there) >= set(names):
                self._sent |= {f"{path}/{name}": _state(local / name) for name in names if name != _CARD}
            else:
                self._take_back(seal)
                for name in there.keys() - set(names):
                    self._take_back(f"{path}/{name}")
        for name in names:
            self._send_file(f"{path}/{name}")

    def _send_file(self, path: str) -> None:
        if not self._is_sent(path):
            local = self._here / path
            state = _state(local)
            upload(local, join(self._store, path))
            self._sent[path] = state

    def _is_sent(self, path: str) -> bool:
        with suppress(FileNotFoundError):
            return self._sent.get(path) == _state(self._here / path)
        return False

    def _take_back(self, path: str) -> None:
        """A file of the store, or all below a folder, the mark or seal first."""
        delete_folder(join(self._store, path), _MARK, FOLDER_SEAL)
        self._sent = {name: state for name, state in self._sent.items() if not f"{name}/".startswith(f"{path}/")}


def _end(thread: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    thread.join()


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _files_of(folder: Path, last: str) -> list[str]:
    """Relative to it, sorted, the mark last; nothing hidden."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    return sorted(shown, key=lambda name: name == last)


def _freeze(source: Path, into: Path) -> bool:
    """The file or folder as it is at one instant. False where it is gone, or is being replaced all the time."""
    for _ in range(_TRIES):
        into.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source.is_file():
                shutil.copyfile(source, into)  # the log grows in place
            else:
                shutil.copytree(source, into, copy_function=_link)
                check_folder(into)
            return True
        except (OSError, shutil.Error, DamageError):
            shutil.rmtree(into, ignore_errors=True)
    return False


def _link(source: str, into: str) -> None:
    try:
        os.link(source, into)
    except PermissionError:  # a filesystem without hard links
        shutil.copyfile(source, into)


def _below(folder: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]


def _whole_steps(names: Iterable[str]) -> set[str]:
    """Of one training's files, the checkpoints that have their mark."""
    return {match[1] for name in names if (match := re.fullmatch(rf"{_STEPS}/(step-\d+)/{_MARK}", name))}
