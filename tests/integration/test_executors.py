"""The Ray executor: lost workers are retried, a unit that always kills its worker is named, the rest goes on."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.errors import ConfigError, DataError, IncompleteError
from contract.shard import PartEntry
from contract.stage import Resources, Unit, Worker
from pipelines.config import ExecutorConfig
from pipelines.executors import RayExecutor

pytest.importorskip("ray")


@dataclass(frozen=True)
class DeadlyStage:
    """Writes nothing. `deadly` units kill their process, the others give an entry; one may die only once."""

    folder: str
    deadly: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    bug: tuple[int, ...] = ()
    broken_worker: str = ""
    num_cpus: float = 0.5

    name = "fake/source-a"

    @property
    def resources(self) -> Resources:
        return Resources(workers=2, num_cpus=self.num_cpus)

    def worker(self) -> Worker:
        if self.broken_worker == "error":
            raise ZeroDivisionError("cannot load")
        if self.broken_worker == "config":
            raise ConfigError("The model is not there.")
        if self.broken_worker == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.make

    def make(self, unit: Unit) -> PartEntry:
        marker = Path(self.folder) / f"died-{unit.index}"
        if unit.index in self.deadly or (unit.index in self.once and not marker.exists()):
            with marker.open("a") as stream:
                stream.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.index in self.bug:
            raise KeyError("a bug of ours")
        return PartEntry(unit.part, unit.split, 1, 1, 1, "0" * 64)


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Ray's workers must find this file's stage
        made = RayExecutor(ExecutorConfig(num_cpus=2, object_store_mb=100, retries=1))
        yield made
        made.close()


def run(executor: RayExecutor, stage: DeadlyStage, count: int = 5) -> dict[int, PartEntry | Exception]:
    units = [Unit(index, "train", {}, {}) for index in range(count)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deprecated.*Ray")
        return {unit.index: outcome for unit, outcome in executor.map(stage, units)}  # type: ignore[arg-type]


@pytest.mark.slow
def test_lost_workers_are_retried_a_bug_is_not_and_a_deadly_unit_is_named(
    executor: RayExecutor, tmp_path: Path
) -> None:
    found = run(executor, DeadlyStage(str(tmp_path), deadly=(3,), once=(1,), bug=(2,)), count=6)
    assert sorted(found) == list(range(6))
    assert {index for index, outcome in found.items() if isinstance(outcome, PartEntry)} == {0, 1, 4, 5}
    assert isinstance(found[2], DataError)
    assert "a bug of ours" in str(found[2])
    assert isinstance(found[3], IncompleteError)
    assert "making this unit, 2 times" in str(found[3])
    assert (tmp_path / "died-3").read_text() == "xx", "one attempt and one retry"
    assert (tmp_path / "died-1").read_text() == "x"


@pytest.mark.parametrize(("how", "said"), [("error", "cannot load"), ("config", "model is not there")])
def test_a_worker_that_cannot_be_loaded_is_the_outcome_of_every_unit(
    executor: RayExecutor, tmp_path: Path, how: str, said: str
) -> None:
    found = run(executor, DeadlyStage(str(tmp_path), broken_worker=how), count=3)
    assert len(found) == 3
    assert all(said in str(outcome) for outcome in found.values())


def test_workers_that_are_killed_while_loading_end_the_run(executor: RayExecutor, tmp_path: Path) -> None:
    found = run(executor, DeadlyStage(str(tmp_path), broken_worker="killed"), count=2)
    assert len(found) == 2
    assert all("lost while loading" in str(outcome) for outcome in found.values())


def test_a_worker_that_the_machine_can_never_hold_is_refused(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs more than"):
        run(executor, DeadlyStage(str(tmp_path), num_cpus=64))
