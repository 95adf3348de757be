"""The executors: several units in a worker's hands, lost workers, units that kill theirs, what can never be placed."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fusionx.contract.config import load_config
from fusionx.contract.errors import ConfigError, DataError, IncompleteError, StoppedError
from fusionx.contract.shards.parts import PartEntry
from fusionx.contract.stage import Resources, Unit, Worker
from fusionx.pipelines.config import ExecutorConfig, FusionConfig
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.execution.ray_executor import RayExecutor
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.pipelines.execution.worker_host import load_worker
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import Pipeline

FEWER = ("align.methods=[mined]", "train.methods=[ct]")


@dataclass(frozen=True)
class DeadlyStage:
    """Writes nothing. `deadly` units kill their process, the others give an entry; one may die, or hang, only once."""

    folder: str
    deadly: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    bug: tuple[int, ...] = ()
    broken_worker: str = ""
    num_cpus: float = 0.5

    concurrency: int = 1
    custom: tuple[str, ...] = ()

    name = "fake/source-a"

    @property
    def output(self) -> str:
        return self.folder

    @property
    def resources(self) -> Resources:
        return Resources(2, self.num_cpus, concurrency=self.concurrency, custom=dict.fromkeys(self.custom, 1.0))

    def worker(self) -> Worker:
        (Path(self.folder) / f"loaded-{uuid4()}").touch()
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
        hung = Path(self.folder) / f"hung-{unit.index}"
        if unit.index in self.hanging and not hung.exists():
            with hung.open("a") as stream:
                stream.write("x")
            ctypes.PyDLL(None).sleep(1000)  # never gives back Python's lock
        if unit.index in self.bug:
            raise KeyError("a bug of ours")
        return PartEntry(unit.part, unit.split, 1, 1, 1, "0" * 64)


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Ray's workers must find this file's stage
        made = RayExecutor(ExecutorConfig(num_cpus=4, object_store_mb=100, retries=1))
        yield made
        made.close()


@pytest.fixture(scope="module")
def inline(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data stages of one source, made in this process."""
    output = tmp_path_factory.mktemp("inline") / "out"
    for command in ("chunk", "precompute --source coder", "align --source coder"):
        world.run(output, command, *FEWER)
    return output


@pytest.mark.slow
def test_wherever_and_whenever_it_is_made_it_is_the_same(
    executor: RayExecutor, world: Any, inline: Path, tmp_path: Path, part_hashes: Any
) -> None:
    """Ray with three workers, or two, and one process without it give the same bytes, stage by stage."""
    output = tmp_path / "out"
    workers = {"chunk": 2, "precompute": 3, "align": 2}
    pools = [f"{stage}.workers={count}" for stage, count in workers.items()]
    config = load_config(FusionConfig, world.config, [f"output={output}", *pools, *FEWER])
    pipeline = Pipeline(config, Layout(str(output)), executor)
    pipeline.chunk()
    pipeline.precompute("coder")
    pipeline.align("coder")
    for name in ("chunks", "logits/coder", "aligned/target/tokens", "aligned/target/mined/coder"):
        made = part_hashes(output / name)
        assert made == part_hashes(inline / name), name
        assert len(made) > 4 + 1, "each worker can have had a part, and there is the manifest"


def run(executor: RayExecutor, stage: DeadlyStage | CrawlingStage, count: int = 5) -> dict[int, PartEntry | Exception]:
    jobs = [(0, Unit(index, "train", {}, {})) for index in range(count)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deprecated.*Ray")
        return {unit.index: outcome for (_, unit), outcome in executor.map([stage], jobs)}  # type: ignore[list-item]


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


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_unit_is_made_elsewhere(executor: RayExecutor, tmp_path: Path) -> None:
    assert run(executor, DeadlyStage(str(tmp_path)), count=1), "Ray is there"
    strict = RayExecutor(ExecutorConfig(retries=1, deadline=1.0))
    found = run(strict, DeadlyStage(str(tmp_path), hanging=(1,)), count=4)
    assert all(isinstance(outcome, PartEntry) for outcome in found.values()), found
    assert (tmp_path / "hung-1").read_text() == "x", "once, and made elsewhere"


@pytest.mark.slow
def test_a_deadly_unit_takes_none_of_its_neighbours_with_it(executor: RayExecutor, tmp_path: Path) -> None:
    """A worker that dies with three units in its hands counts against each; from then on each goes alone."""
    found = run(executor, DeadlyStage(str(tmp_path), deadly=(1,), concurrency=3), count=8)
    assert {index for index, outcome in found.items() if not isinstance(outcome, PartEntry)} == {1}
    assert (tmp_path / "died-1").read_text() == "xx"


@pytest.mark.parametrize(("more", "said"), [({"num_cpus": 64}, "64 CPU"), ({"custom": ("tpu",)}, "0 tpu")])
def test_a_worker_that_the_machine_can_never_hold_is_refused(
    executor: RayExecutor, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match="needs more than") as refused:
        run(executor, DeadlyStage(str(tmp_path), **more))
    assert said in str(refused.value)


def test_units_are_listed_as_needed_and_an_error_in_that_ends_the_run_after_what_was_begun(
    executor: RayExecutor, tmp_path: Path
) -> None:
    found: list[int] = []
    ahead = 0

    def jobs() -> Iterator[tuple[int, Unit]]:
        nonlocal ahead
        for index in range(30):
            ahead = max(ahead, index + 1 - len(found))
            yield 0, Unit(index, "train", {}, {})
        raise DataError("This part is of another run.")

    def run_all() -> None:
        for (_, unit), _ in executor.map([DeadlyStage(str(tmp_path))], jobs()):  # type: ignore[list-item]
            found.append(unit.index)

    with pytest.raises(DataError, match="of another run"):
        run_all()
    assert sorted(found) == list(range(30))
    assert ahead <= 4 * 2 + 2, "a bounded number of units exists at once"


def test_workers_do_not_load_several_sources_in_turn(executor: RayExecutor, tmp_path: Path) -> None:
    stages = [DeadlyStage(str(tmp_path / name), concurrency=2) for name in "abc"]
    for stage in stages:
        Path(stage.folder).mkdir()
    jobs = [(number, Unit(index, "train", {}, {})) for number in range(3) for index in range(8)]
    found = list(executor.map(stages, jobs))  # type: ignore[arg-type]
    assert len(found) == len(jobs)
    assert all(isinstance(outcome, PartEntry) for _, outcome in found)
    loads = sum(len(list(Path(stage.folder).glob("loaded-*"))) for stage in stages)
    # Two workers, three stages; where two stages meet, a worker may get their units in the wrong order once.
    assert loads <= 2 * 3 + 2


ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class CrawlingStage:
    """Writes nothing. Whoever gets the first unit makes one while the other worker makes five; none is faster or slower
    than that. It notes how many units it has in hand when nobody has anything else to do."""

    output: str
    units: int

    name = "fake/source-c"

    @property
    def resources(self) -> Resources:
        return Resources(2, 0.5, concurrency=6)

    def worker(self) -> Worker:
        return self.make

    def make(self, unit: Unit) -> PartEntry:
        me = f"{os.getpid()}"
        if unit.index == 0:
            self._mark("slow", me)
        wait_until(lambda: len(self._marks("slow")) == 1)
        if self._marks("slow") == [me]:
            self._mark("begun", unit.index)
            with ONE_AT_A_TIME:
                wait_until(lambda: len(self._marks("quick")) >= 5 * len(self._marks("crawled")) or self._is_alone())
                self._mark("crawled", unit.index)
        else:
            time.sleep(0.2)  # so that Ray has sent as much as it will
            with ONE_AT_A_TIME:
                wait_until(lambda: len(self._marks("quick")) < 5 * len(self._marks("crawled")) + 5 or self._is_idle())
                self._mark("quick", unit.index)
        return PartEntry(unit.part, unit.split, 1, 1, 1, "0" * 64)

    def _is_alone(self) -> bool:
        quick = len(self._marks("quick"))
        if len(self._marks("begun")) + quick < self.units:
            return False
        self._mark("last", self.units - quick - len(self._marks("crawled")))
        return True

    def _is_idle(self) -> bool:
        return len(self._marks("begun")) == len(self._marks("crawled"))

    def _mark(self, kind: str, what: Any) -> None:
        (Path(self.output) / f"{kind}-{what}").touch()

    def _marks(self, kind: str) -> list[str]:
        return [path.name.removeprefix(f"{kind}-") for path in Path(self.output).glob(f"{kind}-*")]


@pytest.mark.slow
def test_a_slow_worker_keeps_few_units_from_others_at_the_end(executor: RayExecutor, tmp_path: Path) -> None:
    found = run(executor, CrawlingStage(str(tmp_path), 60), count=60)
    assert len(found) == 60
    assert all(isinstance(outcome, PartEntry) for outcome in found.values()), found
    assert len(list(tmp_path.glob("begun-*"))) > 6, "it went on after the six that it began with"
    in_hand = max(int(path.name.removeprefix("last-")) for path in tmp_path.glob("last-*"))
    assert in_hand <= 3, "of the six that it takes at once"


@dataclass
class SlowStage:
    """Notes in whose company each unit is made; every unit waits until `together` are under way."""

    output: str
    together: int = 1
    loads: Counter[str] = field(default_factory=Counter)

    name = "fake/source-b"

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.together)

    @property
    def resources(self) -> Resources:
        return Resources(concurrency=self.together)

    def worker(self) -> Worker:
        self.loads["worker"] += 1
        return self.make

    def make(self, unit: Unit) -> PartEntry:
        self.barrier.wait(timeout=20)
        return PartEntry(unit.part, unit.split, 1, 1, 1, "0" * 64)


def test_inline_has_as_many_units_in_hand_as_the_worker_takes_and_reads_no_further(tmp_path: Path) -> None:
    stage, listed = SlowStage(str(tmp_path), together=3), 0

    def jobs() -> Iterator[tuple[int, Unit]]:
        nonlocal listed
        for index in range(6):
            listed += 1
            yield 0, Unit(index, "train", {}, {})

    outcomes = InlineExecutor().map([stage], jobs())  # type: ignore[list-item]
    first = next(outcomes)
    assert listed <= 4, "a bounded number is in memory"
    assert sorted(unit.index for (_, unit), _ in [first, *outcomes]) == list(range(6))
    assert stage.loads["worker"] == 1


def test_a_worker_that_does_not_see_the_output_refuses_it(tmp_path: Path) -> None:
    assert callable(load_worker(SlowStage(str(tmp_path))))  # type: ignore[arg-type]
    assert callable(load_worker(SlowStage("memory://run")))  # type: ignore[arg-type]
    said = str(load_worker(SlowStage(str(tmp_path / "elsewhere"))))  # type: ignore[arg-type]
    assert "does not see the run's output folder" in said
    assert "every machine of the cluster shares" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_ends_a_run_with_a_remedy(number: signal.Signals, tmp_path: Path) -> None:
    """Batch systems send them before they kill."""

    class Stopped(InlineExecutor):
        def map(self, stages: Any, jobs: Any) -> Iterator[Any]:
            os.kill(os.getpid(), number)
            yield from super().map(stages, jobs)

    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match="finished parts are kept") as ended:
        run_stages([SlowStage(str(tmp_path))], Stopped())  # type: ignore[list-item]
    assert number.name in str(ended.value)
    assert signal.getsignal(number) == before


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
